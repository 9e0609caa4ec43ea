# Types for compiling parameters.py with Cython (tools/compile.py); the module itself is plain Python.


cdef class Parameters(dict):
    cdef public object stamp

    cpdef bint are_those(self, Parameters other) except -1
