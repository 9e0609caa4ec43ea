# Types for compiling reactor.py with Cython (tools/compile.py); the module itself is plain Python.

cimport cython

from holdfast.proxy cimport syscalls


cdef class Wire


@cython.final
cdef class Reactor:
    cdef object _loop
    cdef object _epoll
    cdef int _epoll_descriptor
    cdef public bint must_return
    cdef dict _handlers
    cdef dict _wires

    @cython.locals(until_s=double)
    cpdef serve(self, double wait_s)

    cdef watch(self, int descriptor, int mask, Wire wire)

    @cython.locals(ready=list, wires=dict, wire=Wire)
    cpdef Py_ssize_t serve_ready(self, double wait_s) except -1


@cython.final
cdef class Wire:
    cdef public object received
    cdef public object socket
    cdef public Py_ssize_t high_bytes
    cdef public bint is_closing
    cdef public bint is_paused
    cdef Reactor _reactor
    cdef int _descriptor
    cdef object _protocol
    cdef bytearray _unsent
    cdef int _mask
    cdef bint _is_full

    @cython.locals(sent=Py_ssize_t)
    cpdef write(self, object data)

    @cython.locals(mask=int)
    cpdef look(self)

    cdef _want(self, int mask)

    @cython.locals(is_understood=bint)
    cpdef ready(self, int mask)

    @cython.locals(sent=Py_ssize_t)
    cdef _send_more(self)

    cdef _end(self, object error)
