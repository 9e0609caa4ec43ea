# Types for compiling fast.py with Cython (tools/compile.py); the module itself is plain Python.

cimport cython

from holdfast.core.admission.gate cimport Permit
from holdfast.proxy.door cimport Door
from holdfast.proxy.footing cimport Footing, Switched
from holdfast.proxy.link cimport Link
from holdfast.proxy.pool cimport Pool, Waiter
from holdfast.proxy.reactor cimport Wire
from holdfast.proxy.sharing cimport Share
from holdfast.wire.flight cimport Flight
from holdfast.wire.held cimport Kept
from holdfast.wire.owed cimport Ledger
from holdfast.wire.replies cimport Replies
from holdfast.wire.requests cimport Requests


cdef int _IDLE


cdef class FastPath:
    cdef public Link current
    cdef public Wire wire
    cdef public object lane
    cdef public object _client
    cdef public object _login
    cdef Footing _footing
    cdef Door _door
    cdef Switched _quarantine
    cdef Switched _commit_guard
    cdef Switched _stale
    cdef public Share _share
    cdef public Requests _requests
    cdef public Kept _state
    cdef public Replies _replies
    cdef public object _client_cutter
    cdef public Permit _permit
    cdef public Py_ssize_t _permit_version
    cdef public bint _is_client_busy
    cdef public bint _is_unused
    cdef public bint hears_answers
    cdef public bint _may_fly
    cdef public bint _is_quiet
    cdef public double _asked_ms
    cdef public object _custody
    cdef public object _keeping
    cdef public Flight _flight
    cdef public Waiter _waiter

    cdef bint _surely_serves(self) except -1

    @cython.locals(flight=Flight, share=Share, server=Link, is_idle=bint)
    cdef bint _take_off(self, bytes data) except -1

    cdef bint _needs_full_way(self) except -1

    @cython.locals(flight=Flight, share=Share, permit=Permit, door=Door)
    cdef bint _send(self, Link server, bint is_idle) except -1

    @cython.locals(server=Link)
    cdef Link _borrow_at_once(self, Share share)

    cdef _has_at_once(self, Share share, Link server)

    @cython.locals(share=Share, state=Kept, data=bytes, ledger=Ledger, was=int)
    cdef _arrive(self, Flight flight)

    @cython.locals(server=Link)
    cdef _give_back(self, Share share)
