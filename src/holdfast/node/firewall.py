"""A table of its own in nftables, with which the kernel turns everybody but the investigator away from one port."""

from __future__ import annotations

import os
import shutil
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

from holdfast.model.errors import ConfigurationError, EnvironmentFault
from holdfast.model.settings import NodeSettings
from holdfast.node.commands import run_command

_NET_ADMIN = 1 << 12
"""CAP_NET_ADMIN (capabilities(7))."""
_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
"""Where `nft` is if the agent's own PATH lacks the directories of root."""


class Firewall:
    """The table of one node. It touches no connection but those that come in to PostgreSQL's own address and port."""

    name = "nftables"

    def __init__(self, settings: NodeSettings) -> None:
        isolation, postgres = settings.isolation, settings.postgres
        self._table = f"inet holdfast_{settings.cluster.name.replace('-', '_')}_{settings.node.name}"
        self._host, self._port = _address(postgres.host), postgres.port
        self._investigators = isolation.investigator_addresses
        self._timeout_s, self._kill_ms = isolation.command_timeout_s, settings.timeouts.kill_ms

    def check(self) -> None:
        """Raises ConfigurationError if the agent cannot use nftables."""
        if _program() is None:
            raise ConfigurationError(
                "isolation.nftables is true, and there is no `nft` here: install nftables, or set it to false"
            )
        if not may_change_network():
            raise ConfigurationError(
                "isolation.nftables is true, and the agent lacks CAP_NET_ADMIN: give it to it "
                "(AmbientCapabilities=CAP_NET_ADMIN in its systemd unit), or set it to false"
            )

    async def begin(self) -> None:
        """Turn everybody else away, also those who are in; idempotent. Raises EnvironmentFault."""
        await self._run(self.rules())

    async def lift(self) -> None:
        """Leave no trace; idempotent. Raises EnvironmentFault."""
        if _program() is not None:
            await self._run(f"add table {self._table}; delete table {self._table}")

    def rules(self) -> str:
        """What `nft` is told: all of it takes effect at once, in place of what there was."""
        lines = [f"{_matches('saddr', network)} tcp dport {self._port} accept" for network in self._investigators]
        to = f"{_matches('daddr', str(self._host))} " if self._host is not None else ""
        lines.append(f"{to}tcp dport {self._port} reject with tcp reset")
        chain = "type filter hook input priority -10; policy accept; "
        return (
            f"add table {self._table}; delete table {self._table}; "
            f"table {self._table} {{ chain input {{ {chain}{'; '.join(lines)}; }}; }}"
        )

    async def _run(self, rules: str) -> None:
        program = _program()
        if program is None:
            raise EnvironmentFault("isolation.nftables: there is no `nft` here any more: install nftables")
        outcome = await run_command([program, rules], {}, self._timeout_s, self._kill_ms)
        if not outcome.ok:
            raise EnvironmentFault(f"isolation.nftables: nft {outcome.words}")


def may_change_network() -> bool:
    """Whether this process has CAP_NET_ADMIN, as its kernel says."""
    status = Path("/proc/self/status").read_text()
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective, 16) & _NET_ADMIN)


def _program() -> str | None:
    return shutil.which("nft", path=f"{os.environ.get('PATH', '')}:{_PATH}")


def _address(host: str) -> IPv4Address | IPv6Address | None:
    """The address that a host setting is; None for a name, and for all addresses."""
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return None if address.is_unspecified else address


def _matches(side: str, network: str) -> str:
    return f"{'ip6' if ip_network(network).version == 6 else 'ip'} {side} {network}"
