"""What the drills' network does, tried inside: prints one JSON object. Run by test_network.py."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time

from holdfast.drill import hosts
from holdfast.drill.hosts import Direction, Host
from holdfast.drill.probes import connects, must_be_stopped, state_of
from holdfast.drill.wire import Wires

PORT = 5000
SERVER = f"import socket; s = socket.create_server(('', {PORT})); print('ready', flush=True)\nwhile True: s.accept()"


def serve(host: Host) -> subprocess.Popen[bytes]:
    """A server on a host; returns when it listens."""
    server = subprocess.Popen(host.enter(sys.executable, "-c", SERVER), stdout=subprocess.PIPE)
    assert server.stdout is not None
    server.stdout.readline()
    return server


async def no_longer_silent(host: Host) -> str:
    """What a host meets new connections with once its neighbours have found it again."""
    for _ in range(10):
        found = await connects(host.address, PORT)
        if found != "silence":
            return found
    return "silence"


async def round_trip_ms(address: str) -> float:
    began_at = time.monotonic()
    assert await connects(address, PORT) == "connected"
    return (time.monotonic() - began_at) * 1000


async def trial() -> dict[str, object]:
    found: dict[str, object] = {}
    hosts.make_network()
    host = Host("n1", 1, "10.77.1.1")
    server = serve(host)
    met = found.setdefault("met", {})
    assert isinstance(met, dict)
    met["whole"] = await connects(host.address, PORT)
    host.cut()
    met["cut"] = await connects(host.address, PORT)
    host.mend()
    met["mended"] = await no_longer_silent(host)
    for direction in Direction:
        host.deafen(direction)
        met[f"deaf {direction}"] = await connects(host.address, PORT)
        host.mend()
    met["mended again"] = await no_longer_silent(host)
    frozen = host.freeze()
    await must_be_stopped(frozen.processes)  # a signal takes a moment to arrive
    found["frozen"] = [state_of(process) for process in frozen.processes]
    frozen.thaw()
    found["killed"] = host.kill()
    server.wait()
    met["killed"] = await connects(host.address, PORT)
    serve_again = serve(host)
    host.power_off()
    serve_again.wait()
    met["off"] = await connects(host.address, PORT)
    host.power_on()
    met["on"] = await no_longer_silent(host)
    third = serve(host)
    met["booted"] = await no_longer_silent(host)
    # Until the kernel has removed a namespace, whose last user is gone, its end of the cable is there.
    namespace = os.open(f"/proc/{third.pid}/ns/net", os.O_RDONLY)
    host.close()
    third.wait()
    Host("n1", 1, "10.77.1.1").close()
    os.close(namespace)
    wired = Host("n2", 2, "10.77.1.2", wired=True)
    assert wired.cable is not None
    wires = Wires([wired.cable], 0.0, seed=1)
    fourth = serve(wired)
    await round_trip_ms(wired.address)
    found["quick_ms"] = [await round_trip_ms(wired.address) for _ in range(10)]
    wires.set_jitter(40.0)
    await asyncio.sleep(0.2)  # the line is on its way to the process between
    found["round_trips_ms"] = [await round_trip_ms(wired.address) for _ in range(30)]
    wired.close()
    fourth.wait()
    wires.close()
    hosts.remove_network()
    return found


if __name__ == "__main__":
    hosts.enter([sys.executable, *sys.argv])
    sys.stdout.write(json.dumps(asyncio.run(trial())))
