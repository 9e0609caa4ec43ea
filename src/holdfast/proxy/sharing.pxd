# Types for compiling sharing.py with Cython (tools/compile.py); the module itself is plain Python.

cimport cython

from holdfast.proxy.link cimport Link
from holdfast.proxy.pool cimport Pool
from holdfast.wire.held cimport Held, Kept
from holdfast.wire.sharing cimport SharedNames


@cython.final
cdef class Share:
    cdef public Pool pool
    cdef public SharedNames names
    cdef str _application_name

    @cython.locals(server=Link)
    cpdef Link peek_at_once(self, Kept state)

    @cython.locals(held=Held)
    cpdef bint is_there(self, Kept state, Link server) except -1

    @cython.locals(held=Held)
    cpdef give_back(self, Kept state, Link server)

    @cython.locals(held=Held)
    cdef _note(self, Kept state, Link server)
