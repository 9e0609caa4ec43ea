"""How a command ends when it fails: one clear line, and an exit status that says whose fault it was."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from holdfast.cli.output import as_typed
from holdfast.model.errors import ConfigurationError, EnvironmentFault, HoldfastError, StoreUnavailable

FAILED, BAD_INPUT, BUG, INTERRUPTED, TERMINATED = 1, 2, 70, 130, 143

_PROCESSES = {"node", "proxy", "supervise", "witness"}

T = TypeVar("T")


class Terminated(Exception):
    """SIGTERM asked us to stop, and we have cleaned up."""


@contextmanager
def reported(ctx: click.Context) -> Iterator[None]:
    """Turn what a command raises into its last line and its exit status."""
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        ctx.exit(INTERRUPTED)
    except Terminated:
        ctx.exit(TERMINATED)
    except (ConfigurationError, EnvironmentFault, StoreUnavailable) as error:
        _say(error)
        ctx.exit(BAD_INPUT)
    except HoldfastError as error:
        _say(error)
        ctx.exit(FAILED)
    except BrokenPipeError:
        # Nobody reads us any more (`holdfast status | head -1`): not worth a word.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        ctx.exit(FAILED)
    except Exception as error:
        what = f"Error: a bug in Holdfast: {type(error).__name__}: {error}"
        if ctx.invoked_subcommand in _PROCESSES:
            # Their standard error is a log already: the details belong there.
            traceback.print_exc()
            click.echo(what, err=True)
        else:
            click.echo(f"{what} (the details are in {_keep_traceback()})", err=True)
        raise click.exceptions.Exit(BUG) from error


def _say(error: HoldfastError) -> None:
    click.echo(as_typed(f"Error: {error}"), err=True)


def _keep_traceback() -> str:
    with tempfile.NamedTemporaryFile("w", prefix="holdfast-error-", suffix=".log", delete=False) as file:
        traceback.print_exc(file=file)
    return file.name


def run(work: Coroutine[Any, Any, T], loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> T:
    """Run to the end, or until Ctrl-C or SIGTERM cancels it; it cleans up in both cases.

    Raises KeyboardInterrupt or Terminated then.
    """

    async def terminable() -> T:
        task = asyncio.current_task()
        assert task is not None
        terminated = False

        def terminate() -> None:
            nonlocal terminated
            terminated = True
            task.cancel()

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
        try:
            return await work
        except asyncio.CancelledError:
            if terminated:
                raise Terminated from None
            raise

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(terminable())
