"""Time that is simulated, and processes in it."""

from __future__ import annotations

import asyncio
import contextlib

from holdfast.testing.loop import Process, SimulatedLoop


def world() -> SimulatedLoop:
    return SimulatedLoop()  # type: ignore[abstract]


async def tick(seen: list[float], loop: SimulatedLoop) -> None:
    while True:
        seen.append(round(loop.time(), 3))
        await asyncio.sleep(1)


def test_time_jumps_to_the_next_timer() -> None:
    loop = world()
    seen: list[float] = []
    loop.spawn(Process("a"), tick(seen, loop))
    loop.run_until(3600.5)
    assert seen == [float(n) for n in range(3601)]
    loop.end()


def test_a_frozen_process_goes_on_where_it_was_and_a_killed_one_never() -> None:
    loop = world()
    frozen, killed = Process("frozen"), Process("killed")
    seen: dict[Process, list[float]] = {frozen: [], killed: []}
    for process, times in seen.items():
        loop.spawn(process, tick(times, loop))
    loop.after(1500, loop.freeze, frozen)
    loop.after(1500, loop.kill, killed)
    loop.after(4200, loop.thaw, frozen)
    loop.run_until(6.0)
    assert seen[killed] == [0.0, 1.0]
    assert seen[frozen] == [0.0, 1.0, 4.2, 5.2]
    loop.end()


def test_what_a_killed_process_would_clean_up_is_not_cleaned_up() -> None:
    loop, process, cleaned = world(), Process("a"), []

    async def work() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            cleaned.append(loop.time())

    loop.spawn(process, work())
    loop.after(1000, loop.kill, process)
    loop.run_until(60.0)
    assert cleaned == []
    loop.end()


def test_who_is_cancelled_first_is_not_chance() -> None:
    """A task group keeps its tasks in a set, whose order was that of their addresses."""

    async def work(number: int, ended: list[int]) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(number)

    async def group(ended: list[int], litter: list[object]) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1), asyncio.TaskGroup() as tasks:
                for number in range(40):
                    tasks.create_task(work(number, ended))
                    litter.extend(bytearray(300 + number) for _ in range(number % 7))

    orders: list[list[int]] = []
    for _ in range(2):
        loop = world()
        ended: list[int] = []
        litter: list[object] = []
        loop.spawn(Process("a"), group(ended, litter))
        loop.run_until(5.0)
        loop.end()
        orders.append(ended)
    assert sorted(orders[0]) == list(range(40))
    assert orders[0] == orders[1]
