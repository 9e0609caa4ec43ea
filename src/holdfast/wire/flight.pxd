# Types for compiling flight.py with Cython (tools/compile.py); the module itself is plain Python.

cimport cython

from holdfast.wire cimport heads


cdef str _MARK
cdef int _QUERY
cdef int _SYNC
cdef int _DATA_ROW
cdef int _IDLE
cdef int _IN_TRANSACTION
cdef Py_ssize_t _HEADER_BYTES
cdef int _NOT_ORDINARY
cdef int _STAYS
cdef int _NEXT
cdef int _COMPLETE
cdef int _COMPLETE_NEXT
cdef int _READY

@cython.locals(lowered=bytes, words=str)
cpdef bint is_plain(bytes text) except -1


@cython.final
cdef class Flight:
    cdef public bytes data
    cdef public bint is_done
    cdef public int status
    cdef public bint keeps_uncommitted
    cdef public bint is_simple
    cdef public Py_ssize_t parse_end
    cdef public Py_ssize_t bind_at
    cdef public Py_ssize_t bind_end
    cdef public bytes name
    cdef public bytes portal
    cdef public bytes sql
    cdef bytes _kinds
    cdef Py_ssize_t _at
    cdef list _seen
    cdef bytes _rest

    @cython.locals(size=Py_ssize_t, kind=int, length="long long")
    cpdef bint begin(self, bytes data, object texts) except -1

    @cython.locals(position=Py_ssize_t, end=Py_ssize_t, rank=int, before=int, kind=int, length="long long", kinds=bytearray)
    cdef bint _begin_extended(self, bytes data, Py_ssize_t size, object texts) except -1

    @cython.locals(body=Py_ssize_t, named=Py_ssize_t, told=Py_ssize_t, ported=Py_ssize_t)
    cdef bint _is_ordinary(self, int kind, bytes data, Py_ssize_t start, Py_ssize_t end, object texts) except -1

    cpdef forget(self)

    @cython.locals(
        size=Py_ssize_t, at=Py_ssize_t, position=Py_ssize_t, end=Py_ssize_t, others=Py_ssize_t, body=Py_ssize_t,
        kind=int, length="long long", step=int, kinds=bytes, moves=dict,
    )
    cpdef bytes answer(self, bytes data)

    cdef bint _only_ends_transaction(self, bytes tag) except -1

    @cython.locals(status=int)
    cdef bytes _ready(self, bytes data, Py_ssize_t position, Py_ssize_t size)

    @cython.locals(start=Py_ssize_t, end=Py_ssize_t, kind=int, length="long long")
    cdef _keep(self, bytes data, Py_ssize_t position, Py_ssize_t others)
