"""The last change of leadership, told from the journal."""

from __future__ import annotations

import pytest
from pydantic import JsonValue

from holdfast.core.story import stories, tell, told
from tests.core.histories import CREATED, SERVING, T0, event, failover, verdict


def test_a_cluster_that_never_changed_its_leader_has_no_story() -> None:
    assert tell([]) is None
    assert tell([CREATED, SERVING, verdict(0, "n2", "overloaded")]) is None


def test_a_failover_from_its_first_sign_to_the_return_of_the_old_primary() -> None:
    story = tell([CREATED, SERVING, *failover(0, "n1", "n2", 2)])
    assert story is not None
    assert (story.old, story.new, story.epoch, story.switchover) == ("n1", "n2", 2, False)
    assert (story.opened_ms, story.chosen_ms, story.promoted_ms, story.serving_ms) == (50, 90, 150, 190)
    assert story.old_back_ms == 900
    assert story.headline == "The last failover: n2 took over from n1 in epoch 2, 190 ms after its first sign."
    first = story.lines[0]
    assert (first.offset_ms, first.who, first.says) == (0, "n2", "holds n1 for unreachable: as the test says")
    assert first.evidence == ("fresh session: answered in 3 ms (1600 ms before)",)
    assert first.why == "nothing heard on any path"
    assert [line.who for line in story.lines if line.kind == "recruit.joined"] == ["n2"]


def test_the_last_one_is_told_and_entries_may_come_in_any_order() -> None:
    events = [CREATED, SERVING, *failover(0, "n1", "n2", 2), *failover(50_000, "n2", "n1", 3)]
    story = tell(list(reversed(events)))
    assert story is not None
    assert (story.old, story.new, story.began_at_ms, len(story.lines)) == ("n2", "n1", T0 + 50_000, 8)


def test_a_doubt_that_passed_does_not_belong_to_it() -> None:
    passed = [verdict(-5000, "n2", "overloaded"), verdict(-4000, "n2", "healthy")]
    story = tell([CREATED, SERVING, *passed, *failover(0, "n1", "n2", 2)])
    assert story is not None
    assert story.began_at_ms == T0


def test_one_that_has_not_ended_says_so() -> None:
    story = tell([CREATED, SERVING, *failover(0, "n1", "n2", 2)[:4]])
    assert story is not None
    assert (story.new, story.serving_ms) == (None, None)
    assert story.headline == "A failover away from n1 has not ended yet (epoch 2)."


def test_an_epoch_that_had_to_be_replaced_is_part_of_the_same_story() -> None:
    replaced = event(55, "n2", "epoch.opened", 3, "epoch.replace", reason="recruiting did not advance")
    later = [e for e in failover(100, "n1", "n2", 3) if e.kind != "verdict.changed"][1:]
    story = tell([CREATED, SERVING, *failover(0, "n1", "n2", 2)[:4], replaced, *later])
    assert story is not None
    assert (story.began_at_ms, story.opened_ms, story.serving_ms, story.epoch) == (T0, 50, 290, 3)
    assert [line.kind for line in story.lines].count("epoch.opened") == 2


def test_a_switchover_begins_with_the_wish() -> None:
    begun = event(0, "n1", "handover.begun", 1, None, target="n2")
    rest = [e for e in failover(500, "n1", "n2", 2) if e.kind != "verdict.changed"]
    story = tell([CREATED, SERVING, begun, *rest])
    assert story is not None
    assert (story.switchover, story.serving_ms) == (True, 690)
    assert story.lines[0].says == "was asked to hand over to n2"


def test_a_failover_that_waited_for_a_person_says_who_approved() -> None:
    first_sign, *rest = failover(0, "n1", "n2", 2)
    waited = [e for e in failover(3_600_000, "n1", "n2", 2) if e.kind != "verdict.changed"]
    approved = event(3_599_900, "n3", "failover.approved", 1, None, by="alice as root on db1", address="10.0.0.7")
    story = tell([CREATED, SERVING, first_sign, rest[0], approved, *waited])
    assert story is not None
    assert (story.began_at_ms, story.opened_ms) == (T0, 3_600_050)
    says = [(line.offset_ms, line.says) for line in story.lines]
    assert (3_599_900, "has a person's approval for the failover by alice as root on db1 (10.0.0.7)") in says


def test_orders_are_told_with_who_gave_them() -> None:
    asked = {"by": "alice as root on db1", "address": "10.0.0.7"}
    changes: dict[str, JsonValue] = {"durability": "degrading", "nodes": {"n2": {"priority": 10}}}
    told = [
        event(10, "n1", "handover.begun", 1, None, target="n2", **asked),
        *(e for e in failover(500, "n1", "n2", 2) if e.kind != "verdict.changed"),
        event(9000, "n2", "policy.changed", 2, None, changes=changes, **asked),
        event(9100, "n2", "ramp.ordered", 2, None, order="hold"),
    ]
    story = tell([CREATED, SERVING, *told])
    assert story is not None
    says = [line.says for line in story.lines]
    assert says[0] == "was asked to hand over to n2 by alice as root on db1 (10.0.0.7)"
    changed = "durability = degrading, nodes.n2.priority = 10"
    assert says[-2] == f"was given another policy by alice as root on db1 (10.0.0.7): {changed}"
    assert says[-1] == "passes an order for the ramp on: hold"


def test_every_one_is_told_each_with_what_came_after_it() -> None:
    doubt = verdict(40_000, "n1", "overloaded", "n2", 2)
    events = [CREATED, SERVING, *failover(0, "n1", "n2", 2), doubt, *failover(50_000, "n2", "n1", 3)]
    first, second = stories(events)
    assert (first.old, first.new, first.epoch, first.old_back_ms) == ("n1", "n2", 2, 900)
    assert (second.old, second.new, second.epoch, second.began_at_ms) == ("n2", "n1", 3, T0 + 40_000)
    assert second == tell(events)
    assert stories([CREATED, SERVING]) == ()


@pytest.mark.parametrize(
    ("kind", "detail", "said"),
    [
        ("candidate.chosen", {"candidate": "n3", "reason": "most log"}, "chose n3: most log"),
        ("epoch.opened", {"reason": "its PostgreSQL is gone"}, "opened epoch 2: its PostgreSQL is gone"),
        ("epoch.opened", {}, "opened epoch 2: ?"),
        ("quorum.register", {"quorum": "ANY 1 (n2)"}, "put into the register that commits need ANY 1 (n2)"),
        ("never.heard.of", {"a": "b"}, "never.heard.of: a b"),
        ("never.heard.of", {}, "never.heard.of"),
        ("verdict.changed", {"about": "n1", "verdict": "dead", "evidence": "it refuses", "readings": [{"age_ms": 3}]},
         "holds n1 for dead: it refuses"),
    ],
)  # fmt: skip
def test_the_journal_in_words(kind: str, detail: dict[str, JsonValue], said: str) -> None:
    assert told(event(0, "n1", kind, 2, "rule", **detail)) == said
