# Types for compiling sharing.py with Cython (tools/compile.py); the module itself is plain Python.

cimport cython

from holdfast.wire.flight cimport Flight
from holdfast.wire.held cimport Held


@cython.final
cdef class Outdated:
    cdef dict _found
    cdef public Py_ssize_t count

    cpdef leave_out(self, Held held)


@cython.final
cdef class SharedNames:
    cdef Outdated _outdated
    cdef public dict _made
    cdef public set _told
    cdef public bint _unnamed_is_there
    cdef public bint is_supposed
    cdef public bint has_made
    cdef bytes _mark

    cpdef attached(self, Held held)

    cpdef settled(self, dict prepared)

    @cython.locals(names=Py_ssize_t, tail=bytes, shared=bytes, data=bytes, rest=bytes, bind=bytes)
    cpdef bytes translate_at_once(self, Flight flight, Held held, bytes mark)

    @cython.locals(shared=bytes)
    cpdef sent_at_once(self, Flight flight, Held held, bytes mark)

    cpdef sent_query_at_once(self)
