"""The stable endpoint: clients connect here and stay, whichever server is the primary.

users      who may log in, and the keys to log in elsewhere as them
routing    which server serves what, by the store's word
streams    sockets: listening, connecting, reading and writing for all of them in one turn
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
