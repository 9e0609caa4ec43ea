# Types for compiling footing.py with Cython (tools/compile.py); the module itself is plain Python.

cimport cython

from holdfast.proxy cimport syscalls


cdef class Versioned:
    cdef public long long version


@cython.final
cdef class Trust:
    cdef public double until_s
    cdef object _clock

    cpdef double now_s(self) except? -1

    cpdef bint is_fresh(self) except -1


cdef class Switched:
    cdef public bint is_on


@cython.final
cdef class Footing:
    cdef public Versioned routing
    cdef public Trust trust
    cdef public bint is_failing
    cdef public long long known_version
    cdef public bint has_target

    @cython.locals(is_known=bint)
    cpdef bint surely_serves(self) except -1
