"""Holdfast keeps a PostgreSQL cluster writing through failures, and accounts for every transaction afterwards.

Rooms, from the ground up (imports go downward only; a test enforces it):

    model     the words of the domain                                   pure
    wire      PostgreSQL protocol v3 as sans-I/O machines                pure
    core      decisions: the leadership table, quorums, verdicts         pure
    store     the register's home: contract, etcd, an in-memory twin     one outside thing
    postgres  one server: process, settings, probes, rewind, clone       one outside thing
    proxy     the stable endpoint: pools, holds, routes
    node      the agent: observe, decide, apply, record
    local     a whole cluster on one machine: files, secrets, supervisor
    drill     faults on purpose, workload, checker, verdict, report
    cli       one file per command group: parse, compose, run
"""

__version__ = "0.1.0"
