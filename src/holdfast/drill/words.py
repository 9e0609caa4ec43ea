"""A drill's figures in words: the same sentences on the page and in the terminal."""

from __future__ import annotations

from holdfast.core.words import amount, duration
from holdfast.drill.result import DrillResult, LostTransactions


def headline(result: DrillResult) -> str:
    """The one sentence to read."""
    writes = result.writes
    if result.new_primary is None:
        return "No primary came back. Nobody can write."
    stall = f"Writes stood still for {duration(result.rto_ms)}."
    if writes.lost is None:
        return f"{stall} What was lost is not known."
    if writes.lost:
        verb = "write is" if writes.lost == 1 else "writes are"
        return f"{stall} {amount(writes.lost)} acknowledged {verb} lost{_listed(result.lost_transactions)}."
    if writes.duplicated:
        return f"{stall} Nothing was lost, but {amount(writes.duplicated)} rows are there more than once."
    if not result.rejoined:
        return f"{stall} Nothing acknowledged was lost, but the cluster is not whole again."
    if not result.passed:
        return f"{stall} Nothing acknowledged was lost, but not all is well."
    return f"{stall} Nothing acknowledged was lost."


def _listed(found: LostTransactions | None) -> str:
    if found is None or found.matched < found.known or found.wrong_rows or found.not_brought_back:
        return ""
    return ", each of them listed, and brought back by the script"


def story(result: DrillResult) -> list[str]:
    """What happened, a sentence each."""
    writes, connections = result.writes, result.connections
    at = f"at {result.fault_at:%H:%M:%S} UTC, while {connections.clients} clients wrote"
    said = [f"The primary {result.old_primary} was killed {at}."]
    if result.fault:
        said = [f"The fault came {at}: {result.fault}."]
    if result.fault and result.new_primary == result.old_primary:
        said.append(f"{result.old_primary} is the primary as before.")
    elif result.new_primary is None:
        said.append("No other node took over while the drill watched.")
    else:
        said.append(f"{result.new_primary} took over, and clients wrote again {duration(result.rto_ms)} later.")
    if writes.lost == 0 and not writes.duplicated:
        said.append(f"All {amount(writes.acknowledged)} writes that were acknowledged are there, once each.")
    elif writes.lost:
        said.append(f"Of {amount(writes.acknowledged)} acknowledged writes, {amount(writes.lost)} are missing.")
    if failed := writes.unknown + writes.errors:
        said.append(
            f"{amount(failed)} {'write was' if failed == 1 else 'writes were'} not acknowledged "
            f"({amount(writes.unknown)} cut off, {amount(writes.errors)} refused)."
        )
    if connections.dropped_idle:
        said.append(f"{connections.dropped_idle} of {connections.idle} idle sessions were dropped.")
    elif connections.idle:
        said.append(f"All {connections.idle} idle sessions lived through it.")
    if result.rejoin_ms is not None and result.new_primary != result.old_primary:
        said.append(f"{result.old_primary} came back as a standby by itself after {duration(result.rejoin_ms)}.")
    return said


def figures(result: DrillResult) -> list[tuple[str, str]]:
    """The figures that matter, name and value, for the end of a run on a terminal."""
    writes, connections = result.writes, result.connections

    def known(value: int | None) -> str:
        return "not known" if value is None else amount(value)

    parts = ", ".join(f"{name} {duration(ms)}" for name, ms in result.phases_ms.in_order())
    resolved = "" if writes.unknown_committed is None else f" ({amount(writes.unknown_committed)} found committed)"
    back = "no" if result.rejoin_ms is None else f"yes, after {duration(result.rejoin_ms)}"
    agree = [node for node, same in result.standbys_agree.items() if same]
    rows = [
        ("longest stall of writes", duration(result.rto_ms)),
        ("its parts", parts),
        ("writes acknowledged", amount(writes.acknowledged)),
        ("  lost / duplicated", f"{known(writes.lost)} / {known(writes.duplicated)}"),
        ("writes failed / unknown", f"{amount(writes.errors)} / {amount(writes.unknown)}{resolved}"),
        ("connections dropped", f"{connections.dropped_idle} of {connections.idle} idle, {connections.dropped} in all"),
        ("primary", _primaries(result)),
        ("old primary back as a standby" if result.failovers != 0 else "cluster whole again", back),
        ("standbys with the same rows", f"{len(agree)} of {len(result.standbys_agree)}"),
        ("cluster", _cluster(result)),
        ("settings", result.settings[:23]),
    ]
    if result.fresh_reads:
        rows.insert(4, ("  stale reads", f"{known(result.stale_reads)} of {amount(result.fresh_reads)}"))
    if result.writes.lost_by_choice:
        rows.insert(4, ("  lost by their own setting", amount(result.writes.lost_by_choice)))
    if result.nothing_lost_proved is not None:
        proved = "proved" if result.nothing_lost_proved else "not proved"
        rows.insert(4, ("  that nothing is lost", f"{proved} by the cluster itself"))
    if (found := result.lost_transactions) is not None:
        listed = f"{amount(found.known)} / {amount(found.matched)}, {amount(found.listed)} with those in flight"
        wrong = f"{amount(found.wrong_rows)} wrong, {amount(found.not_brought_back)} not brought back"
        rows.insert(4, ("  their transactions / listed", listed))
        rows.insert(5, ("  rows of these", f"{amount(found.salvaged_rows)}, {wrong}"))
    if result.report is not None:
        rows.append(("report", result.report))
    rows += [("retrospective", path) for path in result.retrospectives]
    return rows


def _primaries(result: DrillResult) -> str:
    if result.failovers == 0:
        return f"{result.old_primary}, as before"
    return f"{result.old_primary} → {result.new_primary or 'none'}"


def _cluster(result: DrillResult) -> str:
    cluster = result.cluster
    return f"{cluster.nodes} nodes, {cluster.durability}, PostgreSQL {cluster.postgresql}, etcd {cluster.etcd}"
