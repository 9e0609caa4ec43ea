"""The proxy's own HTTP endpoint: ``/health`` for load balancers, ``/status`` for people and programs."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

StatusReader = Callable[[], dict[str, object]]


async def start_status_endpoint(host: str, port: int, read: StatusReader) -> web.AppRunner:
    """Serve what ``read`` returns; raises OSError if the port cannot be had. The caller cleans the runner up.

    ``/health`` is 200 while the proxy can serve writes, else 503; ``/status`` is always 200.
    """

    async def health(request: web.Request) -> web.Response:
        status = read()
        return web.json_response({"serving": status["serving"]}, status=200 if status["serving"] else 503)

    async def status(request: web.Request) -> web.Response:
        return web.json_response(read())

    app = web.Application()
    app.add_routes([web.get("/health", health), web.get("/status", status)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError:
        await runner.cleanup()
        raise
    return runner
