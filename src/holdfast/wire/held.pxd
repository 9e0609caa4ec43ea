# Types for compiling held.py with Cython (tools/compile.py); the module itself is plain Python.

cimport cython


@cython.final
cdef class Held:
    cdef public object application_name
    cdef public dict settings
    cdef public dict prepared
    cdef public Py_ssize_t outdated_seen


cdef class Kept:
    cdef public dict settings
    cdef public dict prepared
    cdef public set pins
    cdef public set prepared_by_sql
    cdef public bint has_reset_name
    cdef public list _uncommitted
    cdef public bytes _settings_mark
    cdef public bytes _taint

    cdef bint has_all_on(self, Held held) except -1
