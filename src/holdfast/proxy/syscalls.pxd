# The bodies of `syscalls` for compiled modules: libc's own, without the interpreter's detours.

from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from libc.errno cimport EAGAIN, EINTR, errno
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef extern from "sys/epoll.h" nogil:
    ctypedef union epoll_data_t:
        int fd
    struct epoll_event:
        unsigned int events
        epoll_data_t data
    int epoll_wait(int descriptor, epoll_event* events, int most, int wait_ms)

cdef extern from "math.h" nogil:
    double ceil(double number)

cdef extern from "sys/socket.h" nogil:
    ssize_t c_recv "recv" (int descriptor, void* space, size_t size, int flags)
    ssize_t c_send "send" (int descriptor, const void* data, size_t size, int flags)
    int MSG_DONTWAIT
    int MSG_NOSIGNAL


cdef inline double monotonic() noexcept:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec + now.tv_nsec * 1e-9


cdef inline list ready(object epoll, int descriptor, double wait_s):
    cdef epoll_event events[256]
    cdef int wait_ms = -1 if wait_s < 0 else <int>ceil(min(wait_s, 1e6) * 1000)
    cdef int count
    if wait_ms == 0:
        count = epoll_wait(descriptor, events, 256, 0)
    else:
        with nogil:
            count = epoll_wait(descriptor, events, 256, wait_ms)
    if count < 0:
        if errno == EINTR:
            PyErr_CheckSignals()
            return []
        PyErr_SetFromErrno(OSError)
    cdef list found = []
    cdef int index
    for index in range(count):
        found.append((events[index].data.fd, events[index].events))
    return found


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
