"""Whether anything that was acknowledged is lost: said only where journal and lists prove it. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from holdfast.model.event import Event
from holdfast.model.lost import LostLog
from holdfast.model.register import Quorum


@dataclass(frozen=True, slots=True)
class Proof:
    """``nothing_lost``: every change of leadership so far lost nothing that was acknowledged; else ``doubts`` say why
    that is not proved.

    Commits of sessions that lowered ``synchronous_commit`` are not meant: they were acknowledged without a quorum.
    """

    nothing_lost: bool
    doubts: tuple[str, ...] = ()


def opened_under(events: Sequence[Event]) -> dict[int, Quorum | None]:
    """The committed quorum of the register when each epoch was opened; None where the journal does not tell it.

    At that moment it is what every acknowledged commit has fulfilled: the register tightens only when the log so far
    has it, and is loosened before PostgreSQL is (protocol.md, "Changing S and k").
    """
    found: dict[int, list[Quorum | None]] = defaultdict(list)
    for event in events:
        if event.kind == "epoch.opened":
            found[event.epoch].append(Quorum.parse(str(event.detail.get("quorum", ""))))
    return {epoch: quorums[0] if len(quorums) == 1 else None for epoch, quorums in found.items()}


def is_unacknowledged(account: LostLog, opened: Mapping[int, Quorum | None]) -> bool:
    """Whether it is proved that nobody was told of any commit in a divergent log."""
    epochs = account.replaced_by
    return len(epochs) > 0 and all(_needed_quorum(opened, epoch) for epoch in epochs)


def is_empty(account: LostLog) -> bool:
    """Whether it is proved that a divergent log holds no transaction of a client."""
    return not account.of_clients and not account.unread


def covered(accounts: Sequence[LostLog]) -> dict[int, LostLog]:
    """Of which accounts (by position) another one has every transaction, with its rows: to bring back both is too much.

    A standby that was not asked, or was not there when the new primary was chosen, may have had more of the old one's
    log: it is taken back like the old primary, and both list the same transactions.
    """
    found: dict[int, LostLog] = {}
    for i, one in enumerate(accounts):
        mine = {(t.xid, t.lsn) for t in one.of_clients}
        for j, other in enumerate(accounts):
            theirs = {(t.xid, t.lsn) for t in other.of_clients}
            whole = other.salvage is not None and (other.salvage.is_whole or one.salvage is None)
            first = mine < theirs or (mine == theirs and j < i)
            if i != j and mine and other.timeline == one.timeline and whole and first:
                found[i] = other
    return found


def proof(
    events: Sequence[Event],
    accounts: Sequence[LostLog],
    silent: Sequence[str],
    epoch: int | None,
    only: Collection[int] | None = None,
) -> Proof:
    """What journal and lists amount to; ``epoch`` is the register's, None if nobody knows it.

    ``only``: the openings of these epochs are meant, not every one so far.
    """
    if epoch is None:
        return Proof(False, ("the store has no register, or does not answer: the journal is missing",))
    doubts = [f"{node} does not answer: what it knows is missing" for node in silent]
    opened = opened_under(events)
    meant = range(2, epoch + 1) if only is None else only
    for account in (a for a in accounts if only is None or not set(a.replaced_by).isdisjoint(only)):
        if not is_unacknowledged(account, opened) and not is_empty(account):
            what = f"{len(account.of_clients)} transactions" if account.of_clients else "transactions"
            doubts.append(f"{account.member.node} may have acknowledged {what} that are not in epoch {account.epoch}")
    doubts += unlisted(events, accounts, meant)
    return Proof(not doubts, tuple(doubts))


def unlisted(events: Sequence[Event], accounts: Sequence[LostLog], meant: Collection[int]) -> list[str]:
    """The epochs, of those meant, whose former primary may have acknowledged what no list tells of; why, for people."""
    opened, examined = opened_under(events), _examined(events, accounts)
    found = []
    for number in (n for n in meant if not _needed_quorum(opened, n) and n not in examined):
        quorum = opened.get(number)
        why = "the journal does not tell its quorum" if quorum is None else "commits were local"
        found.append(f"{why} before epoch {number}, and there is no list of the log of the primary that it replaced")
    return found


def gaps(events: Sequence[Event], accounts: Sequence[LostLog], silent: Sequence[str], epoch: int) -> list[str]:
    """Why it is not certain that the lists, with their rows, have everything that was lost up to ``epoch``."""
    found = [f"{node} does not answer: what it knows is missing" for node in silent]
    for account in accounts:
        where = f"the log of {account.member.node} that epoch {account.epoch} replaced"
        if account.unread:
            found.append(f"{where} was not listed to its end: {account.unread}")
        if account.salvage is None and account.of_clients:
            found.append(f"the rows of {where} were not read")
        elif account.salvage is not None:
            found += [f"{where}: {note}" for note in account.salvage.notes]
    return [*found, *unlisted(events, accounts, range(2, epoch + 1))]


def _examined(events: Sequence[Event], accounts: Sequence[LostLog]) -> set[int]:
    """Epochs whose former primary left a log that was listed; a standby may leave one too, which says nothing of it."""
    leaders = {e.epoch: str(e.detail.get("leader")) for e in events if e.kind == "epoch.serving"}
    examined: set[int] = set()
    for account in accounts:
        replaced_by = account.replaced_by
        served_between = leaders.keys() & set(replaced_by[:-1])
        if leaders.get(account.timeline) == account.member.node and not served_between:
            examined.update(replaced_by)
    return examined


def _needed_quorum(opened: Mapping[int, Quorum | None], epoch: int) -> bool:
    quorum = opened.get(epoch)
    return quorum is not None and quorum.k > 0
