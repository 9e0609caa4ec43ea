"""A place to send captures to: storage that checks what a real one checks, and can be told to refuse."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from aiohttp import web

from holdfast.node.s3 import Credentials, authorization

KEY = Credentials("AKIDEXAMPLE", "secret/of+it")
_SIGNED = re.compile(r"SignedHeaders=([a-z0-9;-]+),Signature=([0-9a-f]{64})\Z")


@dataclass
class FakeStorage:
    """What arrived, by path, in order. ``refuses_after``: so many more are taken, then none; None: all."""

    endpoint: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    refuses_after: int | None = None

    async def put(self, request: web.Request) -> web.Response:
        """One object; 503 if it is to be refused, 403 for a wrong signature, 400 for another body than was signed."""
        body = await request.read()
        if self.refuses_after is not None:
            if self.refuses_after == 0:
                return web.Response(status=503, text="<Code>SlowDown</Code>")
            self.refuses_after -= 1
        found = _SIGNED.search(request.headers["authorization"])
        if found is None:
            return web.Response(status=400)
        headers = {name: request.headers[name] for name in found[1].split(";")}
        at = datetime.strptime(request.headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        if authorization(KEY, "us-east-1", "PUT", request.raw_path, headers, at) != request.headers["authorization"]:
            return web.Response(status=403, text="<Code>SignatureDoesNotMatch</Code>")
        if hashlib.sha256(body).hexdigest() != request.headers["x-amz-content-sha256"]:
            return web.Response(status=400, text="<Code>XAmzContentSHA256Mismatch</Code>")
        self.objects[request.path] = body
        return web.Response()


@asynccontextmanager
async def storage() -> AsyncIterator[FakeStorage]:
    """It listens on a port of its own meanwhile."""
    found = FakeStorage()
    app = web.Application(client_max_size=1 << 30)
    app.router.add_put("/{path:.*}", found.put)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        found.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield found
    finally:
        await runner.cleanup()
