"""The lease: what stands in for the quorum while commits are local (docs/protocol.md, "Asynchronous and degraded")."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pydantic import ConfigDict, TypeAdapter, ValidationError

from holdfast.model.errors import RegisterError
from holdfast.model.lsn import Lsn
from holdfast.model.register import Member


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """Who may acknowledge alone. Each renewal swaps it by its revision, so that one written after `revoked` fails.

    ``lsn`` is the holder's flushed position when it renewed, what a candidate's lag is measured against; None if it
    was never told. ``epoch`` is the holder's own, or of those who revoked it.
    """

    holder: Member
    epoch: int
    lsn: Lsn | None
    revoked: bool = False
    renewed_revision: int = 0
    """Of a revoked lease: the revision of its last renewal, so that others can tell whether they have seen that."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    def withdrawn(self, epoch: int, revision: int) -> LeaseRecord:
        """The lease at ``revision``, which its holder can renew no more: a later ``epoch`` replaces it."""
        return replace(self, epoch=epoch, revoked=True, renewed_revision=revision)

    def to_json(self) -> bytes:
        """The stored form."""
        return _LEASE.dump_json(self)

    @classmethod
    def from_json(cls, raw: bytes) -> LeaseRecord:
        """Read the stored form; raises RegisterError."""
        try:
            return _LEASE.validate_json(raw)
        except ValidationError as error:
            raise RegisterError(f"the lease cannot be read: {error.errors()[0]['msg']}") from error


_LEASE = TypeAdapter(LeaseRecord)
