# Types for compiling replies.py with Cython (tools/compile.py); the module itself is plain Python.

cimport cython

from holdfast.wire.held cimport Held, Kept
from holdfast.wire.owed cimport Ledger
from holdfast.wire.parameters cimport Parameters
from holdfast.wire.requests cimport Requests
from holdfast.wire.sharing cimport SharedNames


@cython.final
cdef class Replies:
    cdef public Ledger ledger
    cdef public Parameters reported
    cdef public object given_up
    cdef public bint is_unconfirmed
    cdef public bint is_over
    cdef public bint has_failed
    cdef Requests _requests
    cdef Kept _state
    cdef SharedNames _names
    cdef public object _cutter
    cdef Parameters _parameters
    cdef Held _held
    cdef list _kept_parts
    cdef public object guard_row

    @cython.locals(reported=Parameters)
    cpdef bint begin_at_once(self, Parameters parameters, Held held) except -1
