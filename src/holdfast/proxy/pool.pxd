# Types for compiling pool.py with Cython (tools/compile.py); the module itself is plain Python.

cimport cython

from holdfast.proxy cimport syscalls
from holdfast.proxy.footing cimport Footing
from holdfast.proxy.link cimport Link


@cython.final
cdef class Waiter:
    cdef object _future
    cdef bint _is_awaited
    cdef object _session
    cdef public double since_s

    cdef bint give(self, Link server) except -1


@cython.final
cdef class Rest:
    cdef public object cutter
    cdef public Link server
    cdef public double since_s


@cython.final
cdef class Pool:
    cdef object __weakref__
    cdef public object key
    cdef public object limits
    cdef public object rules
    cdef public object clock
    cdef public Py_ssize_t open
    cdef public object outdated
    cdef public list idle
    cdef public object _waiting
    cdef object _alarm
    cdef Footing _footing
    cdef Py_ssize_t _next
    cdef Py_ssize_t _size
    cdef double _lifetime_s

    cdef double _now_s(self) except? -1

    @cython.locals(entry=Rest, server=Link)
    cpdef Link peek(self)

    cpdef take_shown(self)

    @cython.locals(footing=Footing)
    cdef bint _is_fit(self, Link server) except -1

    cdef _pop(self)

    cpdef Waiter stand_in_line(self, object session)

    @cython.locals(now_s=double, is_old=bint, is_fit=bint, waiter=Waiter, entry=Rest)
    cpdef give(self, Link server)
