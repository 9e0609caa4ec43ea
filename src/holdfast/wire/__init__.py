"""PostgreSQL's frontend/backend protocol, version 3, as sans-I/O machines: bytes in, values and bytes out.

    frames     cutting a byte stream into messages
    messages   building and reading single messages
    startup    what a client may send before it is logged in
    scram      SCRAM-SHA-256, both sides (saslprep prepares the password)
    owed       which replies a server still owes: the table of legal moves
    flight     common batches, recognised at a glance, and their answers, walked by their headers
    sql        tokens and statements, as far as a session's state depends on them
    state      what a session holds, and how it is replayed on another server
    loss       what a client is told when its server connection is lost

Facts about messages are from the PostgreSQL manual, chapter "Frontend/Backend Protocol".
"""
