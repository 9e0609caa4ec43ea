# Types for compiling door.py with Cython (tools/compile.py); the module itself is plain Python.

cimport cython

from holdfast.core.admission.gate cimport Gate, Permit
from holdfast.proxy cimport syscalls


cdef class Door:
    cdef public Gate gate
    cdef public Py_ssize_t version
    cdef public dict _waiters

    @cython.locals(now_ms=double)
    cdef bint enter_at_once(self, Permit permit) except -1

    cdef went_out(self, Permit permit)
