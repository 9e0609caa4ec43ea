"""etcd's JSON gateway over HTTP: endpoints tried in turn, deadlines, TLS, tokens. It knows no keys and no meanings.

Two things about the gateway that shape this file:

- A watch is one HTTP/1.1 exchange whose request body stays open, so that progress can be asked for on it. That needs
  ``Connection: close`` in the request: otherwise Go's server wants the whole body before it sends the first answer.
- The header ``Grpc-Metadata-Hasleader`` makes a member that has lost its leader refuse (and end its watches) instead
  of waiting or, worse, staying silent on the minority's side of a cut network.
"""

from __future__ import annotations

import asyncio
import errno
import json
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
import structlog

from holdfast.model.errors import ConfigurationError, EnvironmentFault, HoldfastError, StoreUnavailable
from holdfast.model.settings import StoreSettings
from holdfast.model.timeouts import Timeouts
from holdfast.store.etcd_version import is_supported, parse_version, survives_kill

JsonObject = dict[str, Any]

# gRPC status codes, as the gateway shows them
NOT_FOUND = 5
PERMISSION_DENIED = 7
RESOURCE_EXHAUSTED = 8
FAILED_PRECONDITION = 9
OUT_OF_RANGE = 11
_UNAUTHENTICATED = 16
_NOT_DECIDED = frozenset({1, 2, 4, 10, 13, 14})
"""Cancelled, unknown, deadline, aborted, internal, unavailable: the request may or may not have taken effect."""

_QUESTIONS = frozenset({"/v3/kv/range", "/v3/lease/keepalive"})
"""May be asked of two endpoints at the same time: a late answer to one changes nothing that came after it."""

_IS_ALIVE: JsonObject = {"key": b64encode(b"/holdfast/").decode(), "count_only": True}
"""Linearizable: a member that is cut off from the others does not answer it."""

_STALE_TOKEN = ("invalid auth token", "revision of auth store is old")

_log = structlog.get_logger(__name__)


class EtcdRefusal(Exception):
    """etcd answered that it will not do this: it has taken no effect. For this package only."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class StreamBroken(Exception):
    """A watch's stream ended or fell silent. For this package only."""


class _Unanswered(Exception):
    """No usable answer from one endpoint.

    ``reached``: whether the request may have arrived there. ``fault``: what to raise if it never worked anywhere.
    """

    def __init__(self, reason: str, *, reached: bool, fault: HoldfastError | None = None) -> None:
        super().__init__(reason)
        self.reached = reached
        self.fault = fault


@dataclass(frozen=True, slots=True)
class Answer:
    """What etcd answered, and which endpoint did."""

    body: JsonObject
    endpoint: str

    @property
    def revision(self) -> int:
        """The store's revision when it answered."""
        return int(self.body.get("header", {}).get("revision", 0))


class EtcdGateway:
    """Requests to etcd. Remembers the endpoint that answered last and begins with it."""

    def __init__(self, settings: StoreSettings, timeouts: Timeouts) -> None:
        """Raises ConfigurationError if certificates or the password cannot be used."""
        self._settings = settings
        self._timeouts = timeouts
        self._endpoints = settings.endpoints
        self._preferred = 0
        self._ssl = tls_context(settings)
        self._session: aiohttp.ClientSession | None = None
        self._versions: dict[str, str] = {}
        self._answered_at: dict[str, float] = {}
        self._token: str | None = None
        self._token_lock = asyncio.Lock()
        self._proven = False
        self.closed = False
        if settings.user is not None:
            self._password()
        elif settings.password_file is not None:
            raise ConfigurationError("store.password_file is set but store.user is not: set both, or neither")

    async def call(self, path: str, body: JsonObject, *, repeatable: bool = True) -> Answer:
        """POST ``body``; one endpoint after the other until one answers.

        A question goes to the next endpoint also when the one before is slow to answer. What changes something does
        not: it is sent to an endpoint that has just answered, and, if it is not ``repeatable``, to a second one only
        if it cannot have reached the first.
        Raises EtcdRefusal; StoreUnavailable; ConfigurationError or EnvironmentFault if it has never worked so far and
        that is why.
        """
        if path in _QUESTIONS:
            return await self._ask_around(path, body)
        if len(self._endpoints) > 1 and self._is_silent(self._endpoints[self._preferred]):
            await self._ask_around("/v3/kv/range", _IS_ALIVE)
        problems: list[_Unanswered] = []
        for endpoint in self._in_order():
            try:
                return await self._ask_one(endpoint, path, body)
            except _Unanswered as problem:
                problems.append(problem)
                self.turn_away(endpoint)
                if problem.reached and not repeatable:
                    break
        raise self._verdict(problems)

    async def _ask_around(self, path: str, body: JsonObject) -> Answer:
        """Ask one endpoint after the other, a slow one and the next at the same time; the first answer counts."""
        waiting = list(self._in_order())
        asking: dict[asyncio.Task[Answer], str] = {}
        problems: list[_Unanswered] = []
        try:
            while waiting or asking:
                if waiting:
                    endpoint = waiting.pop(0)
                    asking[asyncio.create_task(self._ask_one(endpoint, path, body))] = endpoint
                patience_s = self._timeouts.store_patience_ms / 1000 if waiting else None
                done, _ = await asyncio.wait(asking, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    endpoint = asking.pop(task)
                    try:
                        return task.result()
                    except _Unanswered as problem:
                        problems.append(problem)
                        self.turn_away(endpoint)
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        raise self._verdict(problems)

    async def _ask_one(self, endpoint: str, path: str, body: JsonObject) -> Answer:
        """Raises EtcdRefusal, _Unanswered."""
        try:
            async with asyncio.timeout(self._timeouts.store_request_ms / 1000):
                answer = await self._ask_as_user(endpoint, path, body)
        except (TimeoutError, aiohttp.ClientError, OSError, _Unanswered) as error:
            raise self._classify(endpoint, error) from error
        self._proven = True
        self._preferred = self._endpoints.index(endpoint)
        self._answered_at[endpoint] = asyncio.get_running_loop().time()
        return Answer(answer, endpoint)

    def _in_order(self) -> tuple[str, ...]:
        """All endpoints, the one in use first."""
        return self._endpoints[self._preferred :] + self._endpoints[: self._preferred]

    def _is_silent(self, endpoint: str) -> bool:
        """Whether it has not answered anything of late."""
        answered_at = self._answered_at.get(endpoint)
        silent_s = self._timeouts.store_patience_ms / 1000
        return answered_at is None or asyncio.get_running_loop().time() - answered_at > silent_s

    def version_of(self, endpoint: str) -> str:
        """The version of an endpoint that has answered."""
        return self._versions[endpoint]

    def stream(self, path: str, first: JsonObject) -> GatewayStream:
        """An exchange in both directions with the endpoint in use, to be opened with ``async with``."""
        return GatewayStream(self, self._endpoints[self._preferred], path, first)

    async def open_exchange(self, endpoint: str, path: str, outgoing: AsyncIterator[bytes]) -> aiohttp.ClientResponse:
        """POST a body that stays open; returns with the first answer. Raises StreamBroken; for `GatewayStream`."""
        headers = {**_headers(self._token), "Connection": "close", "Content-Type": "application/json"}
        unlimited = aiohttp.ClientTimeout(total=None)
        try:
            async with asyncio.timeout(self._timeouts.store_request_ms / 1000):
                response = await self._http().post(endpoint + path, data=outgoing, headers=headers, timeout=unlimited)
                if response.status == 200:
                    return response
                async with response:
                    raise StreamBroken(f"{endpoint}: {_refusal(await response.read(), response.status).message}")
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise StreamBroken(str(self._classify(endpoint, error))) from error

    def turn_away(self, endpoint: str) -> None:
        """Begin with the next endpoint from now on, if ``endpoint`` is the one in use."""
        if self._endpoints[self._preferred] == endpoint:
            self._preferred = (self._preferred + 1) % len(self._endpoints)

    async def close(self) -> None:
        """Drop all connections. Idempotent."""
        self.closed = True
        if self._session is not None:
            await self._session.close()

    def _http(self) -> aiohttp.ClientSession:
        if self.closed:
            raise StoreUnavailable("this store was closed by its owner")
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, ssl=self._ssl if self._ssl is not None else True)
            self._session = aiohttp.ClientSession(connector=connector)
        return self._session

    async def _ask_as_user(self, endpoint: str, path: str, body: JsonObject) -> JsonObject:
        if endpoint not in self._versions:
            await self._read_version(endpoint)
        if self._settings.user is None:
            return await self._ask(endpoint, path, body, None)
        token = self._token or await self._new_token(endpoint, None)
        try:
            return await self._ask(endpoint, path, body, token)
        except EtcdRefusal as refusal:
            if refusal.code != _UNAUTHENTICATED and not any(text in refusal.message for text in _STALE_TOKEN):
                raise
            _log.debug("etcd_token_renewed", endpoint=endpoint, reason=refusal.message)
        token = await self._new_token(endpoint, token)
        return await self._ask(endpoint, path, body, token)

    async def _ask(self, endpoint: str, path: str, body: JsonObject, token: str | None) -> JsonObject:
        async with self._http().post(endpoint + path, json=body, headers=_headers(token)) as response:
            raw = await response.read()
            if response.status != 200:
                raise self._checked_refusal(endpoint, path, raw, response.status)
        answer = _json_object(raw)
        if answer is None:
            raise _not_etcd(endpoint)
        if "error" in answer:
            raise self._checked_refusal(endpoint, path, raw, 200)
        result = answer.get("result", answer)  # a streaming method wraps each of its answers
        return result if isinstance(result, dict) else {}

    def _checked_refusal(self, endpoint: str, path: str, raw: bytes, status: int) -> EtcdRefusal | _Unanswered:
        """What an error answer means: refused (no effect), or no answer at all."""
        if status == 404 and _json_object(raw) is None:
            absent = ConfigurationError(
                f"{endpoint} (store.endpoints) is etcd without its JSON gateway ({path} is not there): "
                "start it with --enable-grpc-gateway=true"
            )
            return _Unanswered(f"{endpoint}: no JSON gateway", reached=False, fault=absent)
        refusal = _refusal(raw, status)
        if refusal.code in _NOT_DECIDED:
            return _Unanswered(f"{endpoint}: {refusal.message}", reached=True)
        fault = self._access_fault(refusal)
        if fault is not None:
            return _Unanswered(f"{endpoint}: {refusal.message}", reached=False, fault=fault)
        return refusal

    def _access_fault(self, refusal: EtcdRefusal) -> ConfigurationError | None:
        user = self._settings.user
        if "invalid user ID or password" in refusal.message:
            return ConfigurationError(
                f"etcd refuses the password of user {user!r}: put the right one into store.password_file "
                f"({self._settings.password_file}), or correct store.user"
            )
        if "user name is empty" in refusal.message:
            return ConfigurationError("etcd asks for a user: set store.user and store.password_file")
        if "authentication is not enabled" in refusal.message:
            return ConfigurationError(
                "store.user is set but etcd has no authentication: "
                "remove store.user and store.password_file, or run `etcdctl auth enable`"
            )
        if refusal.code == PERMISSION_DENIED:
            return ConfigurationError(
                f"etcd denies user {user!r} (store.user) this: grant it a role with readwrite on the prefix /holdfast/"
            )
        return None

    async def _read_version(self, endpoint: str) -> None:
        """Once for each endpoint, before anything else is asked of it."""
        async with self._http().get(f"{endpoint}/version") as response:
            answer = _json_object(await response.read())
        text = str(answer["etcdserver"]) if answer is not None and "etcdserver" in answer else ""
        version = parse_version(text)
        if version is None:
            raise _not_etcd(endpoint)
        if not is_supported(version):
            fault = EnvironmentFault(f"etcd at {endpoint} (store.endpoints) is {text}: Holdfast needs 3.4 or newer")
            raise _Unanswered(str(fault), reached=False, fault=fault)
        if not survives_kill(version) and endpoint not in self._versions:
            _log.warning(
                "etcd_version_can_lose_data",
                endpoint=endpoint,
                version=text,
                fix="run 3.4.22, 3.5.6 or newer: this one can lose consistency when it is killed",
            )
        self._versions[endpoint] = text

    async def _new_token(self, endpoint: str, stale: str | None) -> str:
        async with self._token_lock:
            if self._token is None or self._token == stale:
                body = {"name": self._settings.user, "password": self._password()}
                answer = await self._ask(endpoint, "/v3/auth/authenticate", body, None)
                self._token = str(answer["token"])
            return self._token

    def _password(self) -> str:
        """Read anew for every token, so that a changed password needs no restart."""
        path = self._settings.password_file
        if path is None:
            raise ConfigurationError("store.user is set but store.password_file is not: set both, or neither")
        try:
            password = path.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"store.password_file cannot be read: {error}") from error
        if not password:
            raise ConfigurationError(f"store.password_file ({path}) is empty: write the password into it")
        return password

    def _classify(self, endpoint: str, error: Exception) -> _Unanswered:
        if isinstance(error, _Unanswered):
            return error
        if isinstance(error, TimeoutError):
            return _Unanswered(f"{endpoint}: no answer in {self._timeouts.store_request_ms} ms", reached=True)
        if isinstance(error, aiohttp.ClientResponseError):  # it speaks, but not HTTP
            return _not_etcd(endpoint)
        reason = f"{endpoint}: {error or type(error).__name__}"
        if endpoint not in self._versions and _hung_up(error):
            reason += " (is it http:// or https://?)"
        return _Unanswered(
            reason,
            reached=not isinstance(error, aiohttp.ClientConnectorError),
            fault=_tls_fault(endpoint, error),
        )

    def _verdict(self, problems: list[_Unanswered]) -> HoldfastError:
        """A wrong setting is one only as long as nothing has worked; later the world has changed, not the setting."""
        faults = [problem.fault for problem in problems if problem.fault is not None]
        if faults and not self._proven:
            return faults[0]
        reasons = "; ".join(str(problem) for problem in problems)
        return StoreUnavailable(f"no etcd endpoint answers (store.endpoints): {reasons}")


class GatewayStream:
    """One open exchange: JSON objects out and in. An endpoint that breaks it is turned away."""

    def __init__(self, gateway: EtcdGateway, endpoint: str, path: str, first: JsonObject) -> None:
        self.endpoint = endpoint
        self._gateway = gateway
        self._path = path
        self._response: aiohttp.ClientResponse | None = None
        self._outgoing: asyncio.Queue[bytes] = asyncio.Queue()
        self._pending = bytearray()
        self.send(first)

    async def __aenter__(self) -> Self:
        try:
            self._response = await self._gateway.open_exchange(self.endpoint, self._path, self._body())
        except StreamBroken:
            self._gateway.turn_away(self.endpoint)
            raise
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, StreamBroken):
            self._gateway.turn_away(self.endpoint)
        if self._response is not None:
            self._response.close()

    def send(self, message: JsonObject) -> None:
        """Send one object; does not wait."""
        self._outgoing.put_nowait(json.dumps(message).encode() + b"\n")

    async def _body(self) -> AsyncIterator[bytes]:
        while True:
            yield await self._outgoing.get()

    async def receive(self, within_s: float) -> JsonObject | None:
        """The next object, or None if none came in time; raises StreamBroken."""
        assert self._response is not None
        searched = 0
        try:
            async with asyncio.timeout(within_s):
                while (end := self._pending.find(b"\n", searched)) < 0:
                    searched = len(self._pending)
                    chunk = await self._response.content.readany()
                    if not chunk:
                        raise StreamBroken(f"{self.endpoint}: etcd ended the watch")
                    self._pending += chunk
        except TimeoutError:
            return None
        except (aiohttp.ClientError, OSError, RuntimeError) as error:  # RuntimeError: aiohttp's word for a closed one
            raise StreamBroken(f"{self.endpoint}: {error or type(error).__name__}") from error
        line = bytes(self._pending[:end])
        del self._pending[: end + 1]
        message = _json_object(line) if line else {}
        if message is None:
            raise StreamBroken(f"{self.endpoint}: not JSON on a watch")
        if "error" in message:
            raise StreamBroken(f"{self.endpoint}: {_refusal(line, 200).message}")
        result = message.get("result", {})
        return result if isinstance(result, dict) else {}


def tls_context(settings: StoreSettings) -> ssl.SSLContext | None:
    """TLS as the settings want it, None without an https endpoint; raises ConfigurationError."""
    if (settings.cert_file is None) != (settings.key_file is None):
        absent = "store.key_file" if settings.key_file is None else "store.cert_file"
        raise ConfigurationError(f"{absent} is missing: a client certificate needs store.cert_file and store.key_file")
    if not any(endpoint.startswith("https://") for endpoint in settings.endpoints):
        for name in ("ca_file", "cert_file"):
            if getattr(settings, name) is not None:
                raise ConfigurationError(f"store.{name} is set but no URL in store.endpoints begins with https://")
        return None
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigurationError(f"store.ca_file ({settings.ca_file}) cannot be used: {error}") from error
    if settings.cert_file is not None:
        try:
            context.load_cert_chain(settings.cert_file, settings.key_file)
        except OSError as error:
            raise ConfigurationError(
                f"store.cert_file ({settings.cert_file}) with store.key_file ({settings.key_file}) "
                f"cannot be used: {error}"
            ) from error
    return context


def _headers(token: str | None) -> dict[str, str]:
    headers = {"Grpc-Metadata-Hasleader": "true"}
    if token is not None:
        headers["Authorization"] = token
    return headers


def _tls_fault(endpoint: str, error: Exception) -> ConfigurationError | None:
    text = str(error).lower()
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return ConfigurationError(
            f"the certificate of {endpoint} is not trusted: set store.ca_file to the authority that signed it ({error})"
        )
    if "certificate required" in text or "bad certificate" in text or "unknown ca" in text:
        return ConfigurationError(
            f"{endpoint} does not accept our client certificate: set store.cert_file and store.key_file "
            f"to one that etcd's --trusted-ca-file signed ({error})"
        )
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return ConfigurationError(f"no TLS with {endpoint}: is it https at all? Correct store.endpoints ({error})")
    return None


def _hung_up(error: Exception) -> bool:
    """Whether somebody was there and closed the connection, as a server does that wants TLS, or wants none."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.errno in (None, errno.ECONNRESET)
    return isinstance(error, aiohttp.ServerDisconnectedError | ConnectionResetError)


def _not_etcd(endpoint: str) -> _Unanswered:
    fault = ConfigurationError(f"{endpoint} is not etcd: correct store.endpoints (and use https:// if it wants TLS)")
    return _Unanswered(str(fault), reached=False, fault=fault)


def _refusal(raw: bytes, status: int) -> EtcdRefusal:
    answer = _json_object(raw) or {}
    error = answer.get("error")
    if isinstance(error, dict):  # how streaming methods say it
        return EtcdRefusal(int(error.get("grpc_code") or error.get("code") or 2), str(error.get("message", "")))
    message = str(answer.get("message") or error or f"HTTP status {status}")
    return EtcdRefusal(int(answer.get("code", 14 if status >= 500 else 2)), message)


def _json_object(raw: bytes) -> JsonObject | None:
    try:
        value = json.loads(raw)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
