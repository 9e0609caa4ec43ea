# Types for compiling requests.py with Cython (tools/compile.py); the module itself is plain Python.

cimport cython


@cython.final
cdef class Requests:
    cdef public dict texts
    cdef public dict portals

    cpdef ended(self)
