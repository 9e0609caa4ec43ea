"""Names of the keys in the store, all below ``/holdfast/<cluster>/``."""

from __future__ import annotations


class Keys:
    """The keys of one cluster."""

    def __init__(self, cluster: str) -> None:
        self.prefix = f"/holdfast/{cluster}/"
        self.register = f"{self.prefix}register"
        self.nodes = f"{self.prefix}nodes/"
        self.addresses = f"{self.prefix}addresses/"
        self.all_recruits = f"{self.prefix}recruits/"
        self.proxies = f"{self.prefix}proxies/"
        self.obeying = f"{self.prefix}obeying/"
        self.journal = f"{self.prefix}journal/"
        self.journal_heads = f"{self.prefix}journal-heads/"
        self.journal_bases = f"{self.prefix}journal-bases/"
        self.all_of_journal = f"{self.prefix}journal"
        """The prefix of these three."""
        self.clocks = f"{self.prefix}clocks/"
        self.policy = f"{self.prefix}policy"
        self.lease = f"{self.prefix}lease"
        self.planned = f"{self.prefix}planned-switchover"
        self.approval = f"{self.prefix}approval"
        self.announced = f"{self.prefix}announced-switchover"
        self.suspects = f"{self.prefix}suspects/"
        self.cut_off = f"{self.prefix}cut-off/"
        self.ramp_order = f"{self.prefix}ramp-order"

    def node(self, name: str) -> str:
        """Where a node's record is."""
        return f"{self.nodes}{name}"

    def address(self, name: str) -> str:
        """Where a node's address is, also while its agent is away."""
        return f"{self.addresses}{name}"

    def proxy(self, name: str) -> str:
        """Where a proxy says what it sees of the primary."""
        return f"{self.proxies}{name}"

    def suspect(self, fingerprint: str) -> str:
        """Where the record of a statement that may have killed a primary is."""
        return f"{self.suspects}{fingerprint}"

    def cut_off_node(self, name: str) -> str:
        """Where it is kept that a leader runs its command against a node."""
        return f"{self.cut_off}{name}"

    def clock(self, owner: str) -> str:
        """What a process's clock showed when it last wrote anything."""
        return f"{self.clocks}{owner}"

    def head(self, source: str) -> str:
        """The last entry of a writer's chain in the journal."""
        return f"{self.journal_heads}{source}"

    def base(self, source: str) -> str:
        """The last entry of a writer's chain that has left the journal."""
        return f"{self.journal_bases}{source}"

    def obeys(self, proxy: str) -> str:
        """Where a proxy says which epoch it has obeyed."""
        return f"{self.obeying}{proxy}"

    def recruits(self, epoch: int) -> str:
        """The prefix below which the recruits of an epoch are."""
        return f"{self.all_recruits}{epoch:010d}/"

    def recruit(self, epoch: int, name: str) -> str:
        """Where a node says that it joined an epoch."""
        return f"{self.recruits(epoch)}{name}"
