"""What an agent does in nftables, tried inside a network namespace: prints one JSON object. Run by test_firewall.py."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Collection
from pathlib import Path

from holdfast.model.settings import IsolationSettings, NodeSettings, parse_settings
from holdfast.model.timeouts import Timeouts
from holdfast.node.isolation import Isolation
from holdfast.store.journal import Journal
from holdfast.store.memory import MemoryStore
from tests.core.test_isolation import BACK, seen_by_n1

NODE, INVESTIGATOR, STRANGER, NEIGHBOUR = (f"10.99.0.{n}" for n in (1, 2, 3, 4))
POSTGRES, API = 5432, 8008
MEANWHILE_S = 10
CONFIG = f"""
[node]
name = "n1"
state_dir = "{{directory}}"
[postgres]
data_dir = "/nowhere"
host = "{NODE}"
port = {POSTGRES}
socket_dir = "/nowhere"
superuser_password_file = "/nowhere"
replication_password_file = "/nowhere"
[api]
port = {API}
token_file = "/nowhere"
[store]
endpoints = ["http://127.0.0.1:1"]
[cluster]
name = "some-cluster"
"""


class Stopped:
    """A server that does not run: there is nothing to settle."""

    def isolate(self, only: Collection[str] | None) -> None:
        """What its next start would be given."""

    async def settle_isolation(self) -> None:
        """Nothing runs."""

    async def has_failed(self) -> bool:
        """It was shut down."""
        return False


class Agent:
    """As much of an agent as cuts its node off."""

    def __init__(self, directory: Path, *, nftables: bool = True) -> None:
        settings = parse_settings(CONFIG.format(directory=directory), NodeSettings, "here")
        isolation = IsolationSettings(nftables=nftables, investigator_addresses=(INVESTIGATOR,))
        store = MemoryStore("some-cluster", owner="n1")
        self.journal = Journal(store, "n1", Timeouts())
        self._done = asyncio.Event()
        whole = settings.model_copy(update={"isolation": isolation})
        self.isolation = Isolation(whole, Stopped(), store, self.journal, self._done.set)

    async def lost(self) -> str | None:
        """Another leads where its node led; what people are told then."""
        self._done.clear()
        self.isolation.look(seen_by_n1())
        await asyncio.wait_for(self._done.wait(), MEANWHILE_S)
        return self.isolation.told

    async def back(self) -> str | None:
        """Its node streams from who leads."""
        self._done.clear()
        self.isolation.look(seen_by_n1(**BACK))
        await asyncio.wait_for(self._done.wait(), MEANWHILE_S)
        return self.isolation.told


async def meets(source: str, host: str, port: int) -> str:
    """What a new connection meets."""
    try:
        async with asyncio.timeout(MEANWHILE_S):
            _, writer = await asyncio.open_connection(host, port, local_addr=(source, 0))
    except ConnectionRefusedError:
        return "refused"
    except TimeoutError:
        return "silence"
    writer.close()
    return "connected"


async def all_meet() -> dict[str, str]:
    """What everybody meets."""
    return {
        "investigator": await meets(INVESTIGATOR, NODE, POSTGRES),
        "stranger": await meets(STRANGER, NODE, POSTGRES),
        "itself": await meets(NODE, NODE, POSTGRES),
        "stranger at the agent": await meets(STRANGER, NODE, API),
        "stranger at a neighbour": await meets(STRANGER, NEIGHBOUR, POSTGRES),
        "itself at a neighbour": await meets(NODE, NEIGHBOUR, POSTGRES),
    }


def nft(words: str) -> str:
    """Run nft as a person would."""
    return subprocess.run(["nft", words], capture_output=True, text=True, check=True).stdout


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[None]:
    """PostgreSQL, the agent and a neighbour: they say again what they hear."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while said := await reader.read(100):
            writer.write(said)
        writer.close()

    async with contextlib.AsyncExitStack() as stack:
        for host, port in ((NODE, POSTGRES), (NODE, API), (NEIGHBOUR, POSTGRES)):
            await stack.enter_async_context(await asyncio.start_server(echo, host, port))
        yield


async def held_session(agent: Agent) -> str:
    """What becomes of a session that was there before."""
    reader, writer = await asyncio.open_connection(NODE, POSTGRES, local_addr=(STRANGER, 0))
    writer.write(b"before")
    assert await reader.read(100) == b"before"
    await agent.lost()
    writer.write(b"after")
    try:
        async with asyncio.timeout(MEANWHILE_S):
            return (await reader.read(100)).decode()
    except ConnectionResetError:
        return "reset"
    except TimeoutError:
        return "silence"
    finally:
        writer.transport.abort()


async def trial(directory: Path) -> dict[str, object]:
    """Everything, one after another."""
    found: dict[str, object] = {}
    note = directory / "isolation.json"
    nft("add table inet theirs")
    theirs = nft("list ruleset")
    async with serving():
        found["before"] = await all_meet()
        agent = Agent(directory)
        await agent.isolation.prepare()
        found["held session"] = await held_session(agent)
        found["isolated"] = await all_meet()
        found["told"] = agent.isolation.told
        found["noted"] = note.exists()

        later = Agent(directory)  # the former was killed
        await later.isolation.prepare()
        found["shut after a restart"] = later.isolation.shut
        found["told after a restart"] = await later.lost()
        found["resumed"] = [e.detail["resumed"] for e in later.journal.recent]
        found["still isolated"] = await meets(STRANGER, NODE, POSTGRES)
        found["told when back"] = await later.back()
        found["after"] = await all_meet()
        found["trace"] = (nft("list ruleset") != theirs, note.exists())
        found["journal"] = [(e.kind, e.detail.get("measures")) for e in later.journal.recent]

        ending = Agent(directory)
        await ending.isolation.prepare()
        await ending.lost()
        await ending.isolation.close()
        found["trace of one that ended"] = (nft("list ruleset") != theirs, note.exists())

        killed = Agent(directory)
        await killed.isolation.prepare()
        await killed.lost()
        without = Agent(directory, nftables=False)
        await without.isolation.prepare()
        await without.back()
        found["trace after the setting was changed"] = (nft("list ruleset") != theirs, note.exists())
    return found


def main() -> None:
    """Make the addresses, try, and print what was found."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for address in (NODE, INVESTIGATOR, STRANGER, NEIGHBOUR):
        subprocess.run(["ip", "addr", "add", f"{address}/32", "dev", "lo"], check=True)
    print(json.dumps(asyncio.run(trial(Path(sys.argv[1])))))


if __name__ == "__main__":
    main()
