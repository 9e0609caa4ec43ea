"""The agent's HTTP endpoint: for peers, for people, for load balancers."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from aiohttp import web

from holdfast.model.asker import CLOCK_HEADER, ORIGIN_HEADER, USER_HEADER, Asker
from holdfast.model.capture import Capture
from holdfast.model.errors import ConfigurationError, EnvironmentFault, HoldfastError, RegisterError
from holdfast.model.event import Event, Stamp
from holdfast.model.lost import LostLog
from holdfast.model.outcome import OutcomeAnswer, OwnQuestion, parse_epoch, parse_position, parse_xid
from holdfast.model.plan import PlannedSwitchover
from holdfast.model.register import Member
from holdfast.model.report import NodeReport
from holdfast.model.settings import ApiSettings
from holdfast.model.token import TokenAnswer, TokenQuestion, parse_token, read_questions, write_answers
from holdfast.node.control import ASKED_BY, Control
from holdfast.node.outcome import NotPrimary


class Subject(Protocol):
    """What the endpoint tells about and acts upon."""

    def report(self) -> NodeReport:
        """The node now."""
        ...

    def recent_events(self) -> tuple[Event, ...]:
        """What this agent noted lately, oldest first."""
        ...

    def has_looked(self) -> bool:
        """Whether there is anything to tell yet."""
        ...

    def serves_writes(self) -> bool:
        """Whether this node is the primary and acknowledges."""
        ...

    def serves_reads(self) -> bool:
        """Whether this node is a standby that streams from the primary."""
        ...

    def fresh_for_ms(self) -> int:
        """For how long the primary here is surely the only one; 0 if it is none, or nobody has confirmed it lately."""
        ...

    def is_healthy(self) -> bool:
        """Whether PostgreSQL answers its agent."""
        ...

    def pledge(self, leader: Member, epoch: int) -> bool:
        """Promise a leader that is cut off from the store to join no epoch for a moment; whether that was possible."""
        ...

    @property
    def control(self) -> Control:
        """What people may ask for."""
        ...


USER_LENGTH_MAX = 100
"""What is kept of the name of whoever gives an order."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Answer = tuple[bool, str]
Order = Callable[[dict[str, Any]], Awaitable[Answer]]


class Finder(Protocol):
    """Says what became of transactions; each call raises HoldfastError where it cannot."""

    async def answer(self, xid: int, epoch: int | None) -> OutcomeAnswer:
        """Of one transaction: by its id and, if it is known, the epoch in which a client wrote it."""
        ...

    async def answer_own(self, question: OwnQuestion) -> OutcomeAnswer:
        """Of the one that an application gave a token."""
        ...

    async def answer_tokens(self, questions: Sequence[TokenQuestion]) -> tuple[TokenAnswer, ...]:
        """Of many with tokens of the proxy."""
        ...


class Api:
    """``/primary``, ``/replica`` and ``/health`` answer 200 or 503; orders, and what tells of clients, need a token."""

    def __init__(
        self,
        settings: ApiSettings,
        token: str,
        subject: Subject,
        accounts: Callable[[], list[LostLog]] = list,
        finder: Finder | None = None,
        captures: Callable[[], list[Capture]] = list,
        moment: Callable[[], Stamp] | None = None,
        read_token: str | None = None,
    ) -> None:
        """``accounts`` reads what was lost with divergent logs of this node; called in a thread.

        ``finder`` says what became of transactions; None: there is no PostgreSQL here.
        ``captures`` reads what was taken of this node; called in a thread. ``moment`` is the clock that answers carry.
        ``token`` is the cluster's; with ``read_token`` one may read what tells of clients, too, and give no orders.
        """
        self._settings = settings
        self._token = token
        self._readers = (token,) if read_token is None else (token, read_token)
        self._subject = subject
        self._accounts = accounts
        self._finder = finder
        self._captures = captures
        self._moment = moment
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen; raises EnvironmentFault if the address cannot be had."""
        app = web.Application()
        app.on_response_prepare.append(self._tell_clock)
        app.add_routes(
            [
                web.get("/primary", self._status(self._subject.serves_writes)),
                web.get("/replica", self._status(self._subject.serves_reads)),
                web.get("/health", self._status(self._subject.is_healthy)),
                web.get("/node", self._node),
                web.get("/events", self._for_readers(self._events)),
                web.get("/policy", self._policy),
                web.get("/fresh", self._fresh),
                web.get("/lost", self._for_readers(self._lost)),
                web.get("/captures", self._for_readers(self._list_captures)),
                web.get("/outcome", self._for_readers(self._outcome)),
                web.post("/outcomes", self._token_outcomes),
                web.post("/switchover", self._control(self._switchover)),
                web.post("/policy", self._control(self._subject.control.set_policy)),
                web.post("/approve", self._control(self._approve)),
                web.post("/ramp", self._control(self._subject.control.order_ramp)),
                web.post("/suspect", self._control(self._subject.control.judge_suspect)),
                web.post("/pledge", self._control(self._pledge)),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._settings.host, self._settings.port)
        try:
            await site.start()
        except OSError as error:
            await self.stop()
            raise EnvironmentFault(
                f"api.host and api.port: cannot listen on {self._settings.host}:{self._settings.port} "
                f"({error.strerror}): stop what uses it, or choose another api.port"
            ) from error

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _tell_clock(self, request: web.Request, response: web.StreamResponse) -> None:
        if self._moment is not None:
            response.headers[CLOCK_HEADER] = str(self._moment())

    def _status(self, holds: Callable[[], bool]) -> Handler:
        async def handler(request: web.Request) -> web.StreamResponse:
            report = self._subject.report()
            body = {"node": report.node, "status": report.status.value, "epoch": report.register_epoch}
            return web.json_response(body, status=200 if holds() else 503)

        return handler

    async def _node(self, request: web.Request) -> web.StreamResponse:
        if not self._subject.has_looked():
            raise web.HTTPServiceUnavailable(text="the agent has not looked at its server yet\n")
        return web.Response(body=self._subject.report().to_json(), content_type="application/json")

    async def _events(self, request: web.Request) -> web.StreamResponse:
        lines = b"\n".join(event.to_json() for event in self._subject.recent_events())
        return web.Response(body=lines, content_type="application/x-ndjson")

    async def _lost(self, request: web.Request) -> web.StreamResponse:
        try:
            accounts = await asyncio.to_thread(self._accounts)
        except (RegisterError, OSError) as error:
            raise web.HTTPInternalServerError(text=f"{error}\n") from error
        body = b"[" + b",".join(a.to_json() for a in accounts) + b"]"
        return web.Response(body=body, content_type="application/json")

    async def _list_captures(self, request: web.Request) -> web.StreamResponse:
        captures = await asyncio.to_thread(self._captures)
        body = b"[" + b",".join(c.to_json() for c in captures) + b"]"
        return web.Response(body=body, content_type="application/json")

    async def _outcome(self, request: web.Request) -> web.StreamResponse:
        """400 for what cannot be asked, 421 on a node that does not lead, 503 where nobody can tell now."""
        try:
            answer = await self._find(request.query)
        except HoldfastError as error:
            return _not_told(error)
        return web.Response(body=answer.to_json(), content_type="application/json")

    async def _find(self, query: Mapping[str, str]) -> OutcomeAnswer:
        asked, lsn = query.get("epoch"), query.get("lsn")
        epoch = None if asked is None else parse_epoch(asked)
        if ("xid" in query) == ("token" in query) or ("xid" in query and lsn is not None):
            raise ConfigurationError(
                "ask for /outcome?xid=XID or /outcome?token=TOKEN, with &epoch=N if the epoch is known; with a token "
                "&lsn=LSN may say where it was written"
            )
        xid = parse_xid(query["xid"]) if "xid" in query else None
        question = None if xid is not None else OwnQuestion(parse_token(query["token"]), epoch, parse_position(lsn))
        if self._finder is None:
            raise NotPrimary("a witness has no transactions: ask the agent of the primary")
        if question is not None:
            return await self._finder.answer_own(question)
        assert xid is not None
        return await self._finder.answer(xid, epoch)

    async def _token_outcomes(self, request: web.Request) -> web.StreamResponse:
        """The same for a list of questions about tokens."""
        try:
            questions = read_questions(await request.read())
            if self._finder is None:
                raise NotPrimary("a witness has no transactions: ask the agent of the primary")
            answers = await self._finder.answer_tokens(questions)
        except HoldfastError as error:
            return _not_told(error)
        return web.Response(body=write_answers(answers), content_type="application/json")

    async def _fresh(self, request: web.Request) -> web.StreamResponse:
        epoch = self._subject.report().register_epoch
        return web.json_response({"epoch": epoch, "fresh_for_ms": self._subject.fresh_for_ms()})

    async def _policy(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=self._subject.control.policy().to_json(), content_type="application/json")

    def _for_readers(self, handler: Handler) -> Handler:
        """Only with one of the tokens: it tells of clients, or makes the server work."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            return await handler(request) if _carries(request, self._readers) else _without_token()

        return guarded

    def _control(self, order: Order) -> Handler:
        """Only with the token; 409 if the order is refused, 400 if it cannot be understood."""

        async def handler(request: web.Request) -> web.StreamResponse:
            if not _carries(request, (self._token,)):
                return _without_token()
            try:
                wanted = json.loads(await request.text() or "{}")
            except json.JSONDecodeError:
                wanted = None
            if not isinstance(wanted, dict):
                message = 'the body must be a JSON object, such as {"to": "n2"} or {}'
                return web.json_response({"ok": False, "message": message}, status=400)
            asked = ASKED_BY.set(_asker(request))
            try:
                ok, message = await order(wanted)
            except ConfigurationError as error:
                return web.json_response({"ok": False, "message": str(error)}, status=400)
            finally:
                ASKED_BY.reset(asked)
            return web.json_response({"ok": ok, "message": message}, status=200 if ok else 409)

        return handler

    async def _switchover(self, wanted: dict[str, Any]) -> Answer:
        to, at_ms, control = wanted.get("to"), wanted.get("at_ms"), self._subject.control
        known = {"to": (str, type(None)), "dry_run": (bool,), "cancel": (bool,), "at_ms": (int, type(None))}
        if any(name not in known or not isinstance(value, known[name]) for name, value in wanted.items()):
            raise ConfigurationError(
                'the body must be JSON such as {"to": "n2"}, with "dry_run": true, "at_ms": 1795260000000 or '
                '"cancel": true if wanted'
            )
        if wanted.get("cancel"):
            return await control.cancel_planned()
        if wanted.get("dry_run"):
            return control.rehearse_switchover(to)
        if at_ms is not None:
            return await control.plan_switchover(PlannedSwitchover(to, at_ms))
        return await control.switchover(to)

    async def _approve(self, wanted: dict[str, Any]) -> Answer:
        return await self._subject.control.approve()

    async def _pledge(self, wanted: dict[str, Any]) -> Answer:
        leader, epoch = Member.parse(str(wanted.get("leader"))), wanted.get("epoch")
        if leader is None or not isinstance(epoch, int):
            raise ConfigurationError('the body must be JSON such as {"leader": "n1_0123abcd", "epoch": 3}')
        given = self._subject.pledge(leader, epoch)
        return given, "promised" if given else "this node knows of another leader or epoch"


def _carries(request: web.Request, tokens: Sequence[str]) -> bool:
    given = request.headers.get("Authorization", "").encode()
    return any(hmac.compare_digest(given, f"Bearer {token}".encode()) for token in tokens)


def _without_token() -> web.Response:
    message = "the cluster's token is missing or wrong: send it as `Authorization: Bearer TOKEN`"
    return web.json_response({"ok": False, "message": message}, status=401)


def _not_told(error: HoldfastError) -> web.Response:
    status = {ConfigurationError: 400, NotPrimary: 421}.get(type(error), 503)
    return web.json_response({"ok": False, "message": str(error)}, status=status)


def _asker(request: web.Request) -> Asker:
    return Asker(
        _printable(request, USER_HEADER) or "somebody",
        request.remote or "an unknown address",
        _printable(request, ORIGIN_HEADER) or None,
    )


def _printable(request: web.Request, header: str) -> str:
    return "".join(c for c in request.headers.get(header, "") if c.isprintable())[:USER_LENGTH_MAX]
