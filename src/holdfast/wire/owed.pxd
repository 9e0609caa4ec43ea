# Types for compiling owed.py with Cython (tools/compile.py); the module itself is plain Python.

cimport cython


@cython.final
cdef class Ledger:
    cdef public object _queue
    cdef public bint _copying
    cdef public Py_ssize_t _swallowed_syncs
    cdef public int status
    cdef public bint skipping
    cdef public bint in_batch
    cdef public bint executed
    cdef public bint batch_failed
