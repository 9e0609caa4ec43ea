"""Tells the world that this node's role changed: a command and webhooks, one after another, beside the turns."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import structlog

from holdfast.model.errors import ConfigurationError
from holdfast.model.settings import HookSettings, WebhookSettings
from holdfast.node.commands import run_command
from holdfast.store.journal import Journal

log = structlog.get_logger(__name__)

WAITING_MAX = 100
"""Changes that wait to be told; beyond it the oldest are dropped."""
SIGNATURE_HEADER = "X-Holdfast-Signature"


@dataclass(frozen=True, slots=True)
class RoleChange:
    """What is told."""

    cluster: str
    node: str
    role: str
    former_role: str
    epoch: int
    at_ms: float

    def to_json(self) -> bytes:
        """The body of a webhook."""
        return json.dumps(
            {
                "event": "role_change",
                "cluster": self.cluster,
                "node": self.node,
                "role": self.role,
                "former_role": self.former_role,
                "epoch": self.epoch,
                "at_ms": round(self.at_ms),
            }
        ).encode()

    def variables(self) -> dict[str, str]:
        """The environment of the command."""
        return {
            "HOLDFAST_CLUSTER": self.cluster,
            "HOLDFAST_NODE": self.node,
            "HOLDFAST_ROLE": self.role,
            "HOLDFAST_FORMER_ROLE": self.former_role,
            "HOLDFAST_EPOCH": str(self.epoch),
        }


class Hooks:
    """Each change is told once; what became of it stands in the journal."""

    def __init__(
        self,
        settings: HookSettings,
        cluster: str,
        node: str,
        journal: Journal,
        kill_ms: int,
        wall_ms: Callable[[], float] = lambda: time.time() * 1000,
    ) -> None:
        self._settings = settings
        self._cluster = cluster
        self._node = node
        self._journal = journal
        self._kill_ms = kill_ms
        self._wall_ms = wall_ms
        self._role: str | None = None
        self._waiting: asyncio.Queue[RoleChange] = asyncio.Queue(WAITING_MAX)

    def role_is(self, role: str, epoch: int) -> None:
        """The role of this node now; returns at once. The first one after the agent's start is no change."""
        former, self._role = self._role, role
        if former in (None, role) or not (self._settings.on_role_change or self._settings.webhooks):
            return
        if self._waiting.full():
            self._waiting.get_nowait()
        self._waiting.put_nowait(RoleChange(self._cluster, self._node, role, str(former), epoch, self._wall_ms()))

    async def run(self) -> None:
        """Tell what waits, for ever."""
        while True:
            change = await self._waiting.get()
            if self._settings.on_role_change:
                command = self._settings.on_role_change
                outcome = await run_command(command, change.variables(), self._settings.timeout_s, self._kill_ms)
                self._note(change, command[0], outcome.ok, outcome.words)
            for webhook in self._settings.webhooks:
                await self._post(webhook, change)

    async def _post(self, webhook: WebhookSettings, change: RoleChange) -> None:
        words, pause_s = "", self._settings.retry_s
        for attempt in range(1, self._settings.attempts + 1):
            try:
                words = await self._post_once(webhook, change)
            except ConfigurationError as error:
                words = str(error)
                break
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                words = f"no answer: {str(error) or 'time-out'}"
            if words.startswith("answered 2"):
                self._note(change, webhook.url, True, f"{words} at attempt {attempt}")
                return
            if attempt < self._settings.attempts:
                await asyncio.sleep(pause_s)
                pause_s *= 2
        self._note(change, webhook.url, False, f"given up: {words}")

    async def _post_once(self, webhook: WebhookSettings, change: RoleChange) -> str:
        body = change.to_json()
        headers = {"Content-Type": "application/json"}
        if webhook.secret_file is not None:
            headers[SIGNATURE_HEADER] = sign(body, webhook.secret_file)
        timeout = aiohttp.ClientTimeout(total=self._settings.timeout_s)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(webhook.url, data=body, headers=headers) as answer,
        ):
            return f"answered {answer.status}"

    def _note(self, change: RoleChange, where: str, ok: bool, words: str) -> None:
        self._journal.record("hook.done", change.epoch, None, role=change.role, to=where, ok=ok, outcome=words)


def sign(body: bytes, secret_file: Path) -> str:
    """``sha256=`` and the HMAC of the body under the secret; raises ConfigurationError if that cannot be read."""
    try:
        secret = secret_file.read_text().strip()
    except OSError as error:
        raise ConfigurationError(f"hooks.webhooks: secret_file {secret_file}: {error.strerror}") from error
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
