"""What every statement passes on its way in and out, of the `admission.Admission` of its port."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from holdfast.core.admission.gate import Gate, Permit
from holdfast.proxy import syscalls


class Door:
    """A gate and a clock. Who has to wait is the business of the `Admission`.

    What `door.pxd` declares as a function of C only compiled modules can call.
    """

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.version = 0
        """Grows when classes change: permits of before are of no use then."""
        self._waiters: dict[Permit, Any] = {}

    def enter_at_once(self, permit: Permit) -> bool:
        """Whether a statement may go to the server now; if not, nothing has changed."""
        now_ms = syscalls.monotonic() * 1000
        return self.gate.enter_freely(permit, now_ms) or self.gate.enter(permit, now_ms)

    def leave(self, permit: Permit) -> None:
        """The statement has ended."""
        self.went_out(permit)

    def went_out(self, permit: Permit) -> None:
        """The same."""
        if permit.is_in:
            self.gate.leave(permit, syscalls.monotonic() * 1000)
            if self._waiters:
                self._let_in()

    @abstractmethod
    def _let_in(self) -> None:
        """Let in who may go in now."""
