"""Every contract can be broken: a model that is wrong in one point does not keep it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from holdfast.model.errors import PostgresError
from holdfast.model.register import Member
from holdfast.model.server import ServerStatus, Upstream
from holdfast.testing import postgres as model
from holdfast.testing import server as face
from holdfast.testing.checks import Violation
from holdfast.testing.postgres import Commit, Postgres, names_of
from holdfast.testing.replication import RETRY_MS, Receiver, Sender
from holdfast.testing.server import SimulatedServer
from tests.postgres import contracts, replaying
from tests.postgres.contracts import CONTRACTS, Contract
from tests.postgres.model_place import ModelPlace

SEEDS = 25
Patch = pytest.MonkeyPatch
WRONG: list[tuple[Contract, Callable[[Patch], None]]] = []


def breaks(contract: Contract) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    """Say which contract a wrong model does not keep."""

    def register(wrong: Callable[[Patch], None]) -> Callable[[Patch], None]:
        WRONG.append((contract, wrong))
        return wrong

    return register


# ---- commits --------------------------------------------------------------------------------------------------


@breaks(contracts.commits_wait_for_any_k_of_the_names)
def one_is_enough(patch: Patch) -> None:
    patch.setattr(face, "names_of", lambda quorum: (min(1, names_of(quorum)[0]), names_of(quorum)[1]))


@breaks(contracts.only_names_that_are_listed_count)
def everybody_counts(patch: Patch) -> None:
    right = Postgres.release

    def release(self: Postgres, by: Sender) -> None:
        by.names = by.names[0], frozenset(sender.name for sender in self.senders)
        right(self, by)

    patch.setattr(Postgres, "release", release)


@breaks(contracts.a_cancelled_wait_shows_the_row)
def a_cancelled_wait_is_a_success(patch: Patch) -> None:
    def cancel(self: Postgres, commit: Commit) -> None:
        self.waiting.remove(commit)
        self._finish(commit)

    patch.setattr(Postgres, "cancel", cancel)


@breaks(contracts.emptied_names_release_everybody)
def emptied_names_are_for_new_commits(patch: Patch) -> None:
    patch.setattr(Postgres, "_reloaded", lambda self, waits: setattr(self, "waits_in_force", waits))


@breaks(contracts.a_restart_shows_what_waited)
def a_restart_is_open(patch: Patch) -> None:
    patch.setattr(model, "BARRIER", model.NOBODY)


@breaks(contracts.a_fast_stop_gives_waits_up)
def a_fast_stop_confirms(patch: Patch) -> None:
    def end_sessions(self: Postgres) -> None:
        self._reloaded(False)

    patch.setattr(Postgres, "end_sessions", end_sessions)


@breaks(contracts.a_report_in_flight_counts_when_it_arrives)
def reports_die_with_their_connection(patch: Patch) -> None:
    right = Receiver.close

    def close(self: Receiver, *, silently: bool = False) -> None:
        right(self, silently=silently)
        if self.sender is not None:
            self.sender.close()

    patch.setattr(Receiver, "close", close)


@breaks(contracts.a_slot_serves_one_connection)
def connections_are_counted(patch: Patch) -> None:
    patch.setattr(Postgres, "lets_in", lambda self, host: True)


# ---- standbys -------------------------------------------------------------------------------------------------


@breaks(contracts.a_detached_standby_confirms_nothing)
def a_walreceiver_goes_on(patch: Patch) -> None:
    patch.setattr(Postgres, "end_receiver", lambda self: setattr(self, "receiver", None))


@breaks(replaying.a_walreceiver_outlives_a_reload_while_replay_is_paused)
def a_reload_ends_it(patch: Patch) -> None:
    patch.setattr(Postgres, "is_replaying", False)


@breaks(replaying.a_lost_connection_stays_lost_while_replay_is_paused)
def a_walreceiver_starts_itself(patch: Patch) -> None:
    def connect(self: Receiver) -> None:
        if self.is_open and self.sender is None:
            self.server.network.send(self.server.host, self.upstream.host, self._asked)
            self.server.soon(RETRY_MS, self.connect)

    patch.setattr(Receiver, "connect", connect)


@breaks(replaying.a_walreceiver_outlives_a_reload_while_replay_is_behind)
def what_is_received_is_shown(patch: Patch) -> None:
    patch.setattr(Postgres, "replayed", property(lambda self: len(self.directory.log)))


@breaks(replaying.a_lost_connection_stays_lost_while_replay_is_behind)
def it_connects_before_it_has_replayed(patch: Patch) -> None:
    patch.setattr(Postgres, "is_replaying", property(lambda self: self.replay_paused))


@breaks(replaying.a_standby_that_replays_its_own_log_is_starting)
def it_knows_its_end_at_once(patch: Patch) -> None:
    patch.setattr(Postgres, "knows_its_end", True)


@breaks(contracts.a_freeze_delays_and_loses_nothing)
def what_comes_meanwhile_is_lost(patch: Patch) -> None:
    def thaw(self: Postgres) -> None:
        self.frozen = False
        self._backlog.clear()

    patch.setattr(Postgres, "thaw", thaw)


@breaks(contracts.positions_stay_what_they_are_over_a_restart)
def a_stop_loses_the_last_record(patch: Patch) -> None:
    _lose_at_end(patch, clean_too=True)


@breaks(contracts.a_kill_keeps_what_was_confirmed)
def a_kill_loses_the_last_record(patch: Patch) -> None:
    _lose_at_end(patch, clean_too=False)


def _lose_at_end(patch: Patch, *, clean_too: bool) -> None:
    right = Postgres.end

    def end(self: Postgres, *, power: bool = False, clean: bool = False) -> None:
        if self.directory is not None and (clean_too or not clean):
            self.directory.truncate(len(self.directory.log) - 1)
        right(self, power=power, clean=clean)

    patch.setattr(Postgres, "end", end)


@breaks(contracts.a_fast_stop_leaves_the_standbys_with_everything)
def a_fast_stop_waits_for_nobody(patch: Patch) -> None:
    async def stop_fast(self: SimulatedServer, give_up_s: float) -> None:
        self.postgres.insert(0)
        self.postgres.end(clean=True)

    patch.setattr(SimulatedServer, "_stop_fast", stop_fast)


# ---- promotion and what comes of it ---------------------------------------------------------------------------


@breaks(contracts.what_must_not_be_is_refused)
def a_timeline_begins_twice(patch: Patch) -> None:
    async def promote(self: SimulatedServer, epoch: int) -> None:
        self._require(ServerStatus.STANDBY)
        self.postgres.promote(epoch)

    patch.setattr(SimulatedServer, "promote", promote)


@breaks(contracts.a_promotion_takes_everybody_along)
def a_promotion_ends_connections(patch: Patch) -> None:
    right = Postgres._promoted

    def promoted(self: Postgres, timeline: int) -> None:
        for sender in list(self.senders):
            sender.close()
        right(self, timeline)

    patch.setattr(Postgres, "_promoted", promoted)


@breaks(contracts.log_beyond_the_fork_must_go)
def a_rewind_keeps_the_incarnation(patch: Patch) -> None:
    right = SimulatedServer.rewind

    async def rewind(self: SimulatedServer, *args: object) -> None:
        former = self.incarnation()
        await right(self, *args)  # type: ignore[arg-type]
        assert self.postgres.directory is not None
        self.postgres.directory.incarnation = former

    patch.setattr(SimulatedServer, "rewind", rewind)


@breaks(contracts.log_beyond_the_fork_must_go)
def it_is_turned_away_at_once(patch: Patch) -> None:
    patch.setattr(Receiver, "_serve_in_vain", lambda *_: None)


@breaks(contracts.a_log_that_fits_is_not_rewound)
def a_rewind_takes_whatever_comes(patch: Patch) -> None:
    patch.setattr(face, "is_on_history", lambda *_: False)


@breaks(contracts.a_clone_is_another_member)
def a_clone_is_who_was_there_before(patch: Patch) -> None:
    right = SimulatedServer.clone

    async def clone(self: SimulatedServer, source: Upstream, member: Member, progress: object) -> None:
        former = self.incarnation()
        await right(self, source, member, progress)  # type: ignore[arg-type]
        assert self.postgres.directory is not None
        self.postgres.directory.incarnation = former or member.incarnation

    patch.setattr(SimulatedServer, "clone", clone)


def test_every_contract_can_be_broken() -> None:
    assert {contract for contract, _ in WRONG} == set(CONTRACTS)


@pytest.mark.parametrize(("contract", "wrong"), WRONG, ids=[wrong.__name__ for _, wrong in WRONG])
def test_a_wrong_model_does_not_keep_it(
    contract: Contract, wrong: Callable[[Patch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong(monkeypatch)
    assert any(_is_broken(contract, seed) for seed in range(SEEDS))


def _is_broken(contract: Contract, seed: int) -> bool:
    place = ModelPlace(seed)
    try:
        place.run(contract(place))
    except (AssertionError, TimeoutError, PostgresError, Violation, pytest.fail.Exception):
        return True
    finally:
        place.end()
    return False
