"""How much work is let into the database at once, whose, and how that grows again after a failover.

gate        who goes in now, who waits, who is refused
ramp        how the limit climbs after a promotion
adaptive    the limit found from the latency that is measured
breaker     whether a server is tried at all
suspicion   which statements may have killed a primary
quarantine  how such a statement is let in on trial
"""
