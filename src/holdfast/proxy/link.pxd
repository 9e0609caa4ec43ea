# Types for compiling link.py with Cython (tools/compile.py); the module itself is plain Python.

cimport cython

from holdfast.proxy.reactor cimport Wire
from holdfast.wire.held cimport Held
from holdfast.wire.parameters cimport Parameters


cdef class Link:
    cdef public Parameters parameters
    cdef public Held held
    cdef public int status
    cdef public bint on_hold
    cdef public double opened_s
    cdef public int cancels
    cdef public bint is_doubtful
    cdef public long long fit_version
    cdef public bint is_full
    cdef public object output
    cdef public Wire wire
    cdef public object rest
    cdef public object _transport
    cdef public object _session
    cdef public object _lost

    cdef bint stands(self) except -1

    cdef hand_to(self, object session)
