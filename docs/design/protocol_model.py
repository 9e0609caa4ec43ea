#!/usr/bin/env python3
"""Model of the leadership protocol (see protocol.md): every interleaving in a small scope, random walks beyond it.

    python3 protocol_model.py                     # the protocol as designed, default scope
    python3 protocol_model.py --break NAME        # leave one rule out: prints a shortest counterexample
    python3 protocol_model.py --list              # the rules that can be left out
    python3 protocol_model.py --walks 20000 --writes 4 --elections 4 --faults 5 --changes 5

State is one immutable tuple; `steps` yields every (label, next state). A violation is a client write that was
acknowledged and is absent from the log of a leader whose configuration is committed, or a log that was given up
although nobody can be recruited without it. While the committed k is 0 commits
are local, and a candidate may be chosen without the leader: what it lacks at that moment is lost, which is counted and
no violation; what is acknowledged later is. Time is in the model as one assumption: whoever waits for a lease waits
until its holder is fenced. Safety only: liveness (pre-vote, time-outs, back-off) is the simulator's work. The last line
says whether the scope was exhausted or cut off by --limit.

The default scope catches intersect, revoke-first, best-log and promise; log-kept needs --faults 2, caught-up needs
--changes 2 --faults 0, slot needs k = 2, which it takes by itself, and the others the walks above.
"""
from __future__ import annotations

import argparse
import random
import sys
from collections import deque
from itertools import combinations
from typing import Iterator, NamedTuple

NODES = (0, 1, 2)
NAMES = "ABC"
DOWN, STANDBY, PRIMARY = "down", "standby", "primary"
REBUILDING = "rebuilding"             # its directory is half made, and is no recruit until it has been made anew
BARRIER = 0                           # the value of an epoch's first entry

Member = tuple[int, int]              # (node, incarnation of its data directory)
Log = tuple[tuple[int, int], ...]     # (epoch, value)


class Node(NamedTuple):
    role: str
    log: Log
    promised: int                     # highest epoch the agent has joined
    upstream: int | None              # whom a standby streams from
    incarnation: int                  # a directory made anew is another member
    epoch: int                        # the epoch a primary leads
    members: frozenset[Member]        # synchronous_standby_names = 'ANY k (members)', as PostgreSQL has it now
    k: int
    reports: tuple[Member, ...]       # per node: (incarnation, flushed length) this primary has been told
    open: bool                        # PostgreSQL may acknowledge (before: it waits for a name nobody has)
    leased: bool                      # its agent holds the lease, and kills PostgreSQL when it ends
    lingering: tuple[Member, ...] = ((0, 0),) * 3   # the same of a former connection that has not ended here


class Register(NamedTuple):
    """The one compare-and-swap register in the store."""
    epoch: int
    phase: str                        # serving | recruiting | promoting
    candidate: int | None
    leader: Member                    # committed configuration: leader, its epoch, members, k
    committed: int
    members: frozenset[Member]
    k: int
    recruits: tuple[tuple[Member, Log], ...]


class State(NamedTuple):
    nodes: tuple[Node, ...]
    reg: Register
    acked: frozenset[tuple[int, int]]
    cut: int | None                   # a node that reaches neither its peers nor the store
    writes: int
    elections: int
    faults: int
    changes: int
    stranded: bool = False            # a log was given up, and without it nobody can be recruited


RULES = {
    "intersect": "recruit the committed leader or |members|-k+1 members, not just anybody",
    "revoke-first": "a standby stops receiving before its position is read",
    "best-log": "promote the recruit with the newest (epoch, length), not just any recruit",
    "barrier": "commit the new configuration only after an entry of the new epoch is on k of its members",
    "closed-until-serving": "PostgreSQL itself acknowledges nothing before the configuration is committed",
    "promise": "a node that joined a newer epoch never streams from an older one",
    "implied": "PostgreSQL's setting always implies the register's: k_pg - |S_pg minus S_reg| >= k_reg",
    "caught-up": "the register tightens only after the log so far is on k of the members it will name",
    "incarnation": "a data directory made anew is a new member, and a new leader",
    "log-kept": "before an epoch serves, a log that does not fit is given up only if enough stay to recruit another",
    "slot": "a member streams through its own slot, so that two connections of it are never counted both",
    "lease": "with k = 0 a candidate without the leader's log waits until the leader's lease is over",
    "lease-first": "nothing turns to k = 0, neither PostgreSQL nor the register, before the leader has the lease",
}


def initial(a: argparse.Namespace) -> State:
    boot = ((1, BARRIER),)
    members = frozenset(((1, 0), (2, 0)))
    none: frozenset[Member] = frozenset()
    standby = Node(STANDBY, boot, 1, 0, 0, 0, none, 0, ((0, 0),) * 3, False, False)
    primary = Node(PRIMARY, boot, 1, None, 0, 1, members, a.k, ((0, 1),) * 3, True, False)
    reg = Register(1, "serving", None, (0, 0), 1, members, a.k, ())
    return State((primary, standby, standby), reg, frozenset(), None, a.writes, a.elections, a.faults, a.changes)


def put(s: State, i: int, **kw) -> tuple[Node, ...]:
    return s.nodes[:i] + (s.nodes[i]._replace(**kw),) + s.nodes[i + 1:]


def apart(s: State, i: int, j: int) -> bool:
    return s.cut in (i, j)


def common(a: Log, b: Log) -> int:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


def covered(n: Node, members: frozenset[Member], k: int, length: int, by_name: bool) -> bool:
    return sum((by_name or n.reports[m][0] == inc) and n.reports[m][1] >= length for m, inc in members) >= k


def acknowledges(n: Node, length: int, by_name: bool) -> bool:
    """PostgreSQL counts connections: one that lingers counts beside the one that its standby has made since."""
    lingering = sum((by_name or n.lingering[m][0] == inc) and n.lingering[m][1] >= length for m, inc in n.members)
    return covered(n, n.members, n.k - lingering, length, by_name)


def implies(members: frozenset[Member], k: int, reg_members: frozenset[Member], reg_k: int) -> bool:
    """Whatever satisfies ANY k (members) has at least reg_k acknowledgements from reg_members."""
    return k - len(members - reg_members) >= reg_k


def configurations(s: State, i: int) -> Iterator[tuple[frozenset[Member], int]]:
    others = [(j, s.nodes[j].incarnation) for j in NODES if j != i]
    for size in range(len(others) + 1):
        for chosen in combinations(others, size):
            for k in range(size + 1):
                yield frozenset(chosen), k


def show(members: frozenset[Member], k: int) -> str:
    return f"ANY {k} ({', '.join(sorted(NAMES[m] + (chr(39) * inc) for m, inc in members))})"


def steps(s: State, broken: str | None) -> Iterator[tuple[str, State]]:
    for i in NODES:
        yield from replication_and_clients(s, i, broken)
        yield from faults(s, i, broken)
        if s.cut != i and s.nodes[i].role == REBUILDING:
            yield from rebuilding(s, i)
        elif s.cut != i and s.nodes[i].role != DOWN:
            yield from failover(s, i, broken)
            yield from joining(s, i, broken)
            yield from reconfiguration(s, i, broken)


def replication_and_clients(s: State, i: int, broken: str | None) -> Iterator[tuple[str, State]]:
    n, me, by_name = s.nodes[i], NAMES[i], broken == "incarnation"
    if n.role == PRIMARY:
        if s.writes:                  # also by sessions that came past every proxy
            v = (n.epoch, 10 - s.writes)
            yield f"write {v} on {me}", s._replace(nodes=put(s, i, log=n.log + (v,)), writes=s.writes - 1)
        for at, e in enumerate(n.log):
            if (n.open and e[1] != BARRIER and e[0] == n.epoch and e not in s.acked
                    and acknowledges(n, at + 1, by_name)):
                yield f"{me} acknowledges {e}", s._replace(acked=s.acked | {e})
        for j in NODES:               # a flush report may arrive late, even after its sender was recruited elsewhere
            o = s.nodes[j]
            if j != i and not apart(s, i, j) and o.role not in (DOWN, REBUILDING):
                told = (o.incarnation, common(o.log, n.log))
                if told[0] > n.reports[j][0] or (told[0] == n.reports[j][0] and told[1] > n.reports[j][1]):
                    yield f"{NAMES[j]} reports {told[1]} to {me}", s._replace(
                        nodes=put(s, i, reports=n.reports[:j] + (told,) + n.reports[j + 1:]))
                # With the rule it connects again only once the former connection has ended: a report that comes late.
                if broken == "slot" and n.reports[j][1] and n.lingering[j] != n.reports[j]:
                    yield f"{NAMES[j]} connects to {me} again, its former connection lingers", s._replace(
                        nodes=put(s, i, lingering=n.lingering[:j] + (n.reports[j],) + n.lingering[j + 1:]))
    elif n.role == STANDBY and n.upstream is not None and not apart(s, i, n.upstream):
        p = s.nodes[n.upstream]
        if p.role == PRIMARY and len(n.log) < len(p.log) and p.log[:len(n.log)] == n.log:
            yield f"{me} receives from {NAMES[n.upstream]}", s._replace(nodes=put(s, i, log=p.log[:len(n.log) + 1]))


def faults(s: State, i: int, broken: str | None) -> Iterator[tuple[str, State]]:
    n, me = s.nodes[i], NAMES[i]
    if s.faults and n.role not in (DOWN, REBUILDING):  # what is half made stays so
        yield f"{me} crashes", s._replace(nodes=put(s, i, role=DOWN, upstream=None, open=False, leased=False), faults=s.faults - 1)
    if n.leased:
        yield f"{me}'s lease ends, and it is killed", s._replace(
            nodes=put(s, i, role=DOWN, upstream=None, open=False, leased=False))
    if s.faults and s.cut is None:
        yield f"{me} is cut off", s._replace(cut=i, faults=s.faults - 1)
    if n.role == DOWN:
        yield f"{me} restarts as a standby of nobody", s._replace(nodes=put(s, i, role=STANDBY, upstream=None))
        if s.faults:
            inc = n.incarnation + (broken != "incarnation")
            yield f"{me} loses its disk and comes back empty", s._replace(
                nodes=put(s, i, role=STANDBY, upstream=None, log=((1, BARRIER),), promised=0, incarnation=inc),
                faults=s.faults - 1)


def choices(r: Register, got: dict[Member, Log]) -> set[Member]:
    """Whom the recruits allow. The leader that was lost comes last, and then only if it has more log than the others."""

    def position(m: Member) -> tuple[int, int, Member]:
        return got[m][-1][0], len(got[m]), m

    allowed = set()
    others = [m for m in got if m != r.leader]
    if others:
        best = max(others, key=position)
        standbys_suffice = len(r.members & set(others)) >= len(r.members) - r.k + 1
        equals_leader = r.leader in got and position(best)[:2] >= position(r.leader)[:2]
        if standbys_suffice or equals_leader:
            allowed.add(best)
    if r.leader in got:
        allowed.add(max(got, key=position))
        allowed.add(r.leader)
    return allowed or {max(got, key=position)}


def failover(s: State, i: int, broken: str | None) -> Iterator[tuple[str, State]]:
    n, me, r = s.nodes[i], NAMES[i], s.reg
    by_name = broken == "incarnation"
    if s.elections and not (r.phase == "recruiting" and not r.recruits):
        yield f"{me} opens epoch {r.epoch + 1}", s._replace(
            reg=r._replace(epoch=r.epoch + 1, phase="recruiting", candidate=None, recruits=()),
            elections=s.elections - 1)
    if r.phase == "recruiting" and n.promised < r.epoch:
        kw: dict = dict(promised=r.epoch, role=STANDBY, open=False, leased=False)
        if broken != "revoke-first":
            kw["upstream"] = None
        yield f"{me} is recruited into epoch {r.epoch}", s._replace(
            nodes=put(s, i, **kw),
            reg=r._replace(recruits=tuple(sorted(r.recruits + (((i, n.incarnation), n.log),)))))
    if r.phase == "recruiting" and r.recruits and i == r.recruits[0][0][0]:
        got = dict(r.recruits)
        leader_in = r.leader in got or (by_name and r.leader[0] in {m for m, _ in got})
        enough = leader_in or len(r.members & got.keys()) >= len(r.members) - r.k + 1
        # Commits were local: the newest recruit may be promoted without the leader, but only once that is fenced.
        over = r.k == 0 and (broken == "lease" or not s.nodes[r.leader[0]].leased)
        if enough or over or broken == "intersect":
            enough = enough or not over
            for w in got if broken == "best-log" else choices(r, got):
                if s.nodes[w[0]].incarnation == w[1]:
                    lost = frozenset() if enough else s.acked - set(s.nodes[w[0]].log)
                    yield f"epoch {r.epoch}: {NAMES[w[0]]} is chosen" + f", losing {sorted(lost)}" * bool(lost), s._replace(
                        acked=s.acked - lost, reg=r._replace(phase="promoting", candidate=w[0]))
    if r.phase == "promoting" and r.candidate == i and n.promised == r.epoch:
        if n.role == STANDBY:
            for members, k in configurations(s, i):
                log = n.log + ((r.epoch, BARRIER),)
                reports = tuple((s.nodes[j].incarnation, len(log) if j == i else 0) for j in NODES)
                kw = dict(role=PRIMARY, epoch=r.epoch, upstream=None, log=log, members=members, k=k, reports=reports,
                          lingering=((0, 0),) * 3, open=broken == "closed-until-serving")
                reg = r
                if broken == "barrier":
                    kw["open"] = True
                    reg = r._replace(phase="serving", leader=(i, n.incarnation), committed=r.epoch, members=members, k=k)
                yield f"{me} promotes in epoch {r.epoch} with {show(members, k)}", s._replace(
                    nodes=put(s, i, **kw), reg=reg)
        elif n.role == PRIMARY and n.epoch == r.epoch:
            at = n.log.index((r.epoch, BARRIER)) + 1
            if covered(n, n.members, n.k, at, by_name):
                yield f"{me} commits {show(n.members, n.k)}", s._replace(reg=r._replace(
                    phase="serving", leader=(i, n.incarnation), committed=r.epoch, members=n.members, k=n.k))
    if r.phase == "serving" and r.leader == (i, n.incarnation) and n.role == PRIMARY and n.epoch == r.epoch and not n.open:
        for leased in {n.leased, True}:
            if leased or broken == "lease-first" or (n.k and r.k):
                how = "with the lease " if leased else ""
                yield f"{me} opens {how}to clients", s._replace(nodes=put(s, i, open=True, leased=leased))


def joining(s: State, i: int, broken: str | None) -> Iterator[tuple[str, State]]:
    """Follow the current leader, by rewinding if the logs have diverged; keep everything until it serves.

    With one exception, for else logs that have diverged could wait for each other for ever: a log is given up for a
    candidate that has every acknowledged write, if that one, and those who joined and come later by name, are enough of
    recruits for another epoch. The committed leader is enough alone.
    """
    n, me, r = s.nodes[i], NAMES[i], s.reg
    lead = led_by(s)
    if lead is not None and lead != i and not apart(s, i, lead):
        p = s.nodes[lead]
        shared = common(n.log, p.log)
        rewinds = shared < len(n.log)
        leads = p.role == PRIMARY and p.epoch == r.epoch and n.upstream != lead
        gives_up = r.phase == "promoting" and rewinds
        if leads and gives_up and (broken == "log-kept" or enough_without(s, lead, i)):
            after = s._replace(nodes=put(
                s, i, role=REBUILDING, open=False, leased=False, upstream=None, promised=r.epoch,
                incarnation=n.incarnation + (broken != "incarnation")))
            after = after._replace(stranded=can_recruit(s) and not can_recruit(after))
            yield f"{me} begins to rewind for {NAMES[lead]} in epoch {r.epoch}", after
        if leads and not gives_up:
            yield f"{me} joins {NAMES[lead]} in epoch {r.epoch}", s._replace(nodes=put(
                s, i, role=STANDBY, open=False, leased=False, upstream=lead, promised=r.epoch, log=n.log[:shared],
                incarnation=n.incarnation + (rewinds and broken != "incarnation")))
    if broken == "promise" and n.role == STANDBY and n.upstream is None:
        for j in NODES:
            p = s.nodes[j]
            if j != i and p.role == PRIMARY and not apart(s, i, j) and p.log[:len(n.log)] == n.log:
                yield f"{me} streams from {NAMES[j]} again", s._replace(nodes=put(s, i, upstream=j))


def rebuilding(s: State, i: int) -> Iterator[tuple[str, State]]:
    """Whoever leads by now is what a half-made directory is made into."""
    n, r, lead = s.nodes[i], s.reg, led_by(s)
    if lead is not None and lead != i and not apart(s, i, lead):
        p = s.nodes[lead]
        if p.role == PRIMARY and p.epoch == r.epoch:
            yield f"{NAMES[i]} is a copy of {NAMES[lead]} in epoch {r.epoch}", s._replace(nodes=put(
                s, i, role=STANDBY, upstream=lead, promised=r.epoch, log=n.log[:common(n.log, p.log)]))


def enough_without(s: State, candidate: int, i: int) -> bool:
    """Whether enough are left when all up to this node by name give their logs up at the same time.

    Who joined is asked whether it still has the directory with which it did.
    """
    r, now = s.reg, {(j, n.incarnation) for j, n in enumerate(s.nodes) if n.role != REBUILDING}
    kept = {(candidate, s.nodes[candidate].incarnation)} | {m for m, _ in r.recruits if m[0] > i and m in now}
    return r.leader in kept or len(r.members & kept) >= len(r.members) - r.k + 1


def led_by(s: State) -> int | None:
    return {"promoting": s.reg.candidate, "serving": s.reg.leader[0]}.get(s.reg.phase)


def can_recruit(s: State) -> bool:
    """Whether the directories that there are suffice for another epoch, once their nodes are back."""
    there = {(j, n.incarnation) for j, n in enumerate(s.nodes) if n.role != REBUILDING}
    return s.reg.leader in there or len(s.reg.members & there) >= len(s.reg.members) - s.reg.k + 1


def reconfiguration(s: State, i: int, broken: str | None) -> Iterator[tuple[str, State]]:
    n, me, r = s.nodes[i], NAMES[i], s.reg
    by_name = broken == "incarnation"
    if not (s.changes and r.phase == "serving" and r.leader == (i, n.incarnation) and n.role == PRIMARY):
        return
    if not n.leased:
        yield f"{me} takes the lease", s._replace(nodes=put(s, i, leased=True))
    elif n.k and r.k:
        yield f"{me} lets go of the lease", s._replace(nodes=put(s, i, leased=False))
    for members, k in configurations(s, i):
        if not (k or n.leased or broken == "lease-first"):
            continue
        if n.open and (members, k) != (n.members, n.k) and (
                broken == "implied" or implies(members, k, r.members, r.k)):
            yield f"{me} sets {show(members, k)}", s._replace(
                nodes=put(s, i, members=members, k=k), changes=s.changes - 1)
        loosens = implies(r.members, r.k, members, k)  # closed, PostgreSQL implies everything: loosening is legal then
        legal = implies(n.members, n.k, members, k) and (
            broken == "caught-up" or loosens or covered(n, members, k, len(n.log), by_name))
        if (members, k) != (r.members, r.k) and (legal if n.open else loosens):
            yield f"register says {show(members, k)}", s._replace(
                reg=r._replace(members=members, k=k), changes=s.changes - 1)


def violated(s: State) -> bool:
    r = s.reg
    lead = s.nodes[r.leader[0]]
    serves = (r.phase == "serving" and lead.role == PRIMARY and lead.epoch == r.committed
              and lead.incarnation == r.leader[1])
    return s.stranded or (serves and not s.acked <= set(lead.log))


def report(trace: list[str], how: str) -> int:
    print(f"violation after {len(trace)} steps, {how}:")
    print("\n".join(f"  {k}. {t}" for k, t in enumerate(trace, 1)))
    return 1


def check(a: argparse.Namespace) -> int:
    start = initial(a)
    seen: dict[State, tuple[State, str] | None] = {start: None}
    queue = deque([start])
    while queue:
        s = queue.popleft()
        if violated(s):
            trace, how = [], f"{len(seen)} states"
            while (came := seen[s]) is not None:
                s, label = came
                trace.append(label)
            return report(trace[::-1], how)
        for label, nxt in steps(s, a.broken):
            if nxt not in seen:
                seen[nxt] = (s, label)
                queue.append(nxt)
        if len(seen) > a.limit:
            print(f"no violation in the first {len(seen)} states, breadth first (limit reached, scope not exhausted)")
            return 0
    print(f"no violation: {len(seen)} states, every interleaving of {a.writes} writes, {a.elections} elections, "
          f"{a.faults} faults, {a.changes} changes")
    return 0


def walk(a: argparse.Namespace) -> int:
    rng = random.Random(a.seed)
    for n in range(a.walks):
        s, trace = initial(a), []
        for _ in range(a.depth):
            options = list(steps(s, a.broken))
            if not options:
                break
            label, s = rng.choice(options)
            trace.append(label)
            if violated(s):
                return report(trace, f"walk {n}, seed {a.seed}")
    print(f"no violation in {a.walks} random walks of up to {a.depth} steps (seed {a.seed})")
    return 0


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--break", dest="broken", choices=RULES)
    p.add_argument("--list", action="store_true")
    p.add_argument("--k", type=int, choices=(1, 2), help="at the beginning: 1, but 2 with --break slot, which needs it")
    p.add_argument("--writes", type=int, default=1)
    p.add_argument("--elections", type=int, default=1)
    p.add_argument("--faults", type=int, default=1)
    p.add_argument("--changes", type=int, default=0)
    p.add_argument("--limit", type=int, default=3_000_000)
    p.add_argument("--walks", type=int, default=0, help="random walks instead of every interleaving")
    p.add_argument("--depth", type=int, default=120)
    p.add_argument("--seed", type=int, default=1)
    a = p.parse_args()
    a.k = a.k or (2 if a.broken == "slot" else 1)
    if a.list:
        print("\n".join(f"{k:22} {v}" for k, v in RULES.items()))
        return 0
    return walk(a) if a.walks else check(a)


if __name__ == "__main__":
    sys.exit(main())
