# Types for compiling gate.py with Cython (tools/compile.py); the module itself is plain Python.

cimport cython


@cython.final
cdef class Permit:
    cdef public object traffic_class
    cdef public bint is_in
    cdef public double since_ms
    cdef public object holder
    cdef public str tenant
    cdef public object counted


@cython.final
cdef class Line:
    cdef public object settings
    cdef public dict waiting
    cdef public dict short
    cdef public set long
    cdef public double turns
    cdef public Py_ssize_t refused
    cdef public object quota
    cdef public dict tenants


@cython.final
cdef class Gate:
    cdef public double long_ms
    cdef public object limit
    cdef public Py_ssize_t waited
    cdef public Py_ssize_t peak
    cdef public object durations_ms
    cdef Py_ssize_t _short
    cdef Py_ssize_t _long
    cdef public Py_ssize_t done
    cdef public double left_ms
    cdef double _since_ms
    cdef Py_ssize_t _done_then
    cdef public dict lines

    @cython.locals(line=Line)
    cpdef bint enter_freely(self, Permit permit, double now_ms) except -1

    @cython.locals(line=Line)
    cpdef leave(self, Permit permit, double now_ms)

    @cython.locals(line=Line)
    cpdef give_back(self, Permit permit)

    @cython.locals(line=Line)
    cdef Line _line(self, Permit permit)

    cdef _let_in(self, Permit permit, Line line, double now_ms)
