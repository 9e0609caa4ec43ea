"""The stable endpoint: clients connect here and stay, whichever server is the primary.

users      who may log in, and the keys to log in elsewhere as them
routing    which server serves what, by the store's word
syscalls   receiving and sending by descriptor
reactor    the turn of all sockets, and one socket's reading and writing
loop       the event loop that serves them while it waits
streams    connections as transports; listening and connecting
server     one connection to a server: login, check, replay
pool       server connections that sessions share, one for a transaction
sharing    a session's part in a pool
lane       one port's way to a server: choosing, holding, pacing
admission  one port's gate and ramp: who is let in, who waits, who is refused
client     one connection of a client: start-up, TLS, authentication
fates      what becomes of a client's messages
fast       what both ways of a session share, and the fast one for common batches
relay      one session, the full way: every message in both directions, and what happens when its server is lost
orphans    statements whose clients have gone: they keep their places
answers    what a client is told in place of a lost server's answer
status     the proxy's own HTTP endpoint
run        listeners and their life
"""
