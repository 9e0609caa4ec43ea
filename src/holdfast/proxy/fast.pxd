# Types for compiling fast.py with Cython (tools/compile.py); the module itself is plain Python.

from holdfast.wire.flight cimport Flight


cdef class FastPath:
    cdef public object current
    cdef public object lane
    cdef public object _client
    cdef public object _login
    cdef public object _share
    cdef public object _requests
    cdef public object _state
    cdef public object _replies
    cdef public object _client_cutter
    cdef public object _permit
    cdef public object _permit_version
    cdef public bint _is_client_busy
    cdef public bint _is_unused
    cdef public bint _is_quiet
    cdef public double _asked_ms
    cdef public object _custody
    cdef public Flight _flight
    cdef public object _waiter
