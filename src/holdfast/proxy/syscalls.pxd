# The bodies of `syscalls` for compiled modules: libc's own, without the interpreter's detours.

from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_SetFromErrno
from libc.errno cimport EAGAIN, EINTR, errno
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef extern from "sys/socket.h" nogil:
    ssize_t c_recv "recv" (int descriptor, void* space, size_t size, int flags)
    ssize_t c_send "send" (int descriptor, const void* data, size_t size, int flags)
    int MSG_DONTWAIT
    int MSG_NOSIGNAL


cdef inline double monotonic() noexcept:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec + now.tv_nsec * 1e-9


cdef inline object receive(int descriptor):
    cdef char space[65536]
    cdef ssize_t count = c_recv(descriptor, space, sizeof(space), MSG_DONTWAIT)
    if count >= 0:
        return PyBytes_FromStringAndSize(space, count)
    if errno == EAGAIN or errno == EINTR:
        return None
    PyErr_SetFromErrno(OSError)


cdef inline Py_ssize_t send(int descriptor, object data) except -1:
    cdef const char* begin
    if PyBytes_CheckExact(data):
        begin = PyBytes_AS_STRING(data)
    elif isinstance(data, bytearray):
        begin = PyByteArray_AS_STRING(data)
    else:
        return send(descriptor, bytes(data))
    cdef ssize_t count = c_send(descriptor, begin, len(data), MSG_DONTWAIT | MSG_NOSIGNAL)
    if count >= 0:
        return count
    if errno == EAGAIN or errno == EINTR:
        return 0
    PyErr_SetFromErrno(OSError)
    return -1
