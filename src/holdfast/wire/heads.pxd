# The body of `heads` for compiled modules. The caller knows that five bytes are there.

cdef inline (int, long long) header(bytes data, Py_ssize_t position):
    cdef const unsigned char* at = <const unsigned char*><const char*>data + position
    return at[0], (<long long>at[1] << 24) | (<long long>at[2] << 16) | (at[3] << 8) | at[4]
