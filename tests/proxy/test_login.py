"""Start-up, authentication and everything a client may get wrong."""

from __future__ import annotations

import asyncio
import struct
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trustme
from structlog.testing import capture_logs

from holdfast.model.errors import ConfigurationError, EnvironmentFault
from holdfast.proxy.run import Proxy
from holdfast.proxy.users import Users
from holdfast.wire import messages as m
from tests.proxy.cluster import Cluster, fetch, until
from tests.proxy.servers import PASSWORD, USER, Server

pytestmark = pytest.mark.live


class Raw:
    """A client that speaks bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int) -> Raw:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def message(self) -> tuple[bytes, bytes]:
        kind = await self.reader.readexactly(1)
        (length,) = struct.unpack("!I", await self.reader.readexactly(4))
        return kind, await self.reader.readexactly(length - 4)

    async def until_ready(self) -> list[tuple[bytes, bytes]]:
        seen = [await self.message()]
        while seen[-1][0] != b"Z":
            seen.append(await self.message())
        return seen

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


async def test_garbage_closes_that_connection_only(served: Cluster) -> None:
    async with await served.connect() as bystander:
        for garbage in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"\x16\x03\x01\x02\x00",
            b"\0" * 64,
            b"\xff" * 64,
            b"\0\0\0\x08\0\0\0\0",
        ):
            raw = await Raw.open(served.write_port)
            raw.writer.write(garbage)
            raw.writer.write_eof()
            await asyncio.wait_for(raw.reader.read(), 10)
            await raw.close()
        assert await fetch(bystander, "select 1") == 1


@pytest.mark.parametrize("garbage", [b"\0\0\0\0\0\0", b"Q\0\0\0\1", b"p\0\0\0\4", b"Q\xff\xff\xff\xff", b"P\0\0\0\5x"])
async def test_garbage_of_a_logged_in_client(cluster: Cluster, lasting: Server, garbage: bytes) -> None:
    await cluster.serve(lasting, 1)
    await cluster.start(auth="trust")
    async with await cluster.connect() as bystander:
        raw = await Raw.open(cluster.write_port)
        raw.writer.write(m.startup_message({"user": "trusted", "database": "app"}))
        await raw.until_ready()
        raw.writer.write(garbage)
        kind, body = await raw.message()
        assert kind == b"E"
        assert m.read_report(body).sqlstate == "08P01"
        assert await raw.reader.read() == b""
        await raw.close()
        assert await fetch(bystander, "select 1") == 1


async def refusal(cluster: Cluster, **more: Any) -> str:
    with pytest.raises(psycopg.OperationalError) as caught:
        await cluster.connect(**more)
    return str(caught.value)


async def test_wrong_password_and_unknown_user_look_the_same(served: Cluster) -> None:
    wrong = await refusal(served, password="wrong")
    unknown = await refusal(served, user="nobody")
    assert wrong.replace(USER, "nobody") == unknown
    assert "password authentication failed" in wrong


async def test_sqlstate_of_a_refused_login(served: Cluster) -> None:
    raw = await Raw.open(served.write_port)
    raw.writer.write(m.startup_message({"user": "nobody"}))
    assert (await raw.message())[0] == b"R"
    raw.writer.write(m.sasl_initial_response("SCRAM-SHA-256", b"n,,n=,r=abc"))
    _, body = await raw.message()
    nonce = body[4:].split(b",")[0]
    raw.writer.write(m.message(m.PASSWORD, b"c=biws," + nonce + b",p=" + b"A" * 43 + b"="))
    kind, body = await raw.message()
    assert (kind, m.read_report(body).sqlstate) == (b"E", "28P01")
    await raw.close()


async def test_trust_still_asks_the_users_file(cluster: Cluster, lasting: Server) -> None:
    await cluster.serve(lasting, 1)
    await cluster.start(auth="trust")
    async with await cluster.connect(password="anything") as connection:
        assert await fetch(connection, "select current_user") == USER
    assert "password authentication failed" in await refusal(cluster, user="other")


async def test_only_secrets_are_stored(cluster: Cluster, lasting: Server) -> None:
    """The users file holds what pg_authid holds; the key towards the server is learned when the client logs in."""
    await cluster.serve(lasting, 1)
    ((secret,),) = lasting.query(f"select rolpassword from pg_authid where rolname = '{USER}'")
    ((foreign,),) = lasting.query("select rolpassword from pg_authid where rolname = 'other'")
    await cluster.start(users=f"{USER} {secret}\ntrusted {foreign}\n")
    assert "password authentication failed" in await refusal(cluster, password="wrong")
    async with await cluster.connect() as connection:
        assert await fetch(connection, "select current_user") == USER


async def test_secret_that_the_server_does_not_have(cluster: Cluster, lasting: Server) -> None:
    await cluster.serve(lasting, 1)
    ((foreign,),) = lasting.query("select rolpassword from pg_authid where rolname = 'other'")
    await cluster.start(users=f"{USER} {foreign}\n")
    text = await refusal(cluster, password="other password")
    assert "pg_authid.rolpassword" in text


async def test_server_knows_another_password(cluster: Cluster, lasting: Server) -> None:
    await cluster.serve(lasting, 1)
    await cluster.start(users=f"{USER} another\n")
    with capture_logs() as logs:
        for _ in range(2):
            assert "password authentication failed" in await refusal(cluster, password="another")
    (told,) = [entry for entry in logs if entry["event"] == "server.login_refused"]  # once, not for each client
    assert (told["log_level"], told["user"], told["node"]) == ("warning", USER, "n1")
    assert "proxy.users_file" in told["fix"]
    assert "another" not in str(told)


async def test_unknown_database(served: Cluster) -> None:
    assert 'database "absent" does not exist' in await refusal(served, dbname="absent")


async def test_replication_goes_elsewhere(served: Cluster) -> None:
    assert "replication connections do not go through the proxy" in await refusal(served, replication="database")


async def test_too_many_clients(cluster: Cluster, lasting: Server) -> None:
    await cluster.serve(lasting, 1)
    proxy = await cluster.start(max_clients=1)
    async with await cluster.connect():
        assert "too many clients" in await refusal(cluster)
    await until(lambda: proxy.status()["clients"] == 0)
    async with await cluster.connect():
        pass


async def test_encryption_is_declined_without_a_certificate(served: Cluster) -> None:
    raw = await Raw.open(served.write_port)
    for code in (80877103, 80877104):
        raw.writer.write(struct.pack("!II", 8, code))
        assert await raw.reader.readexactly(1) == b"N"
    await raw.close()
    assert "server does not support SSL" in await refusal(served, sslmode="require")


async def test_tls(cluster: Cluster, lasting: Server, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    files = [tmp_path / name for name in ("cert.pem", "key.pem", "ca.pem")]
    certificate.cert_chain_pems[0].write_to_path(files[0])
    certificate.private_key_pem.write_to_path(files[1])
    authority.cert_pem.write_to_path(files[2])
    await cluster.serve(lasting, 1)
    await cluster.start(tls_cert_file=files[0], tls_key_file=files[1])
    tls: dict[str, Any] = {"sslmode": "verify-full", "sslrootcert": str(files[2])}
    async with await cluster.connect(**tls) as connection:
        assert connection.pgconn.ssl_in_use
        assert len(await fetch(connection, "select repeat('x', 3000000)")) == 3_000_000
        running = asyncio.create_task(connection.execute("select pg_sleep(60)"))
        await asyncio.to_thread(
            lasting.wait_for,
            "select exists (select from pg_stat_activity where query = 'select pg_sleep(60)' and state = 'active')",
        )
        await connection.cancel_safe()
        with pytest.raises(psycopg.errors.QueryCanceled):
            await running
    async with await cluster.connect(sslmode="disable") as connection:
        assert await fetch(connection, "select 1") == 1
    raw = await Raw.open(cluster.write_port)
    raw.writer.write(struct.pack("!II", 8, 80877103) + b"smuggled")
    assert b"08P01" in await raw.reader.read()
    await raw.close()
    for last_words in (b"no handshake at all, but long enough to be looked at", b""):
        raw = await Raw.open(cluster.write_port)
        raw.writer.write(struct.pack("!II", 8, 80877103))
        assert await raw.reader.readexactly(1) == b"S"
        raw.writer.write(last_words)
        raw.writer.write_eof()
        await raw.reader.read()
        await raw.close()
    await until(lambda: cluster.proxy is not None and cluster.proxy.status()["clients"] == 0)


async def test_tls_settings(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "cert").write_text("no certificate")
    one: dict[str, Any] = {"tls_cert_file": tmp_path / "cert"}
    for files in (one, one | {"tls_key_file": tmp_path / "cert"}):
        with pytest.raises(ConfigurationError, match=r"proxy\.tls_cert_file"):
            Proxy(cluster.settings(**files), cluster.store, Users.parse(""))


async def test_newer_minor_versions_are_negotiated(cluster: Cluster, lasting: Server) -> None:
    await cluster.serve(lasting, 1)
    await cluster.start(auth="trust")
    raw = await Raw.open(cluster.write_port)
    raw.writer.write(m.startup_message({"user": USER, "database": "app", "_pq_.new": "x"}, minor=9))
    kind, body = await raw.message()
    assert kind == b"v"
    assert body == struct.pack("!II", (3 << 16) | 2, 1) + b"_pq_.new\0"
    seen = dict(await raw.until_ready())
    assert len(seen[b"K"]) == 4 + 32  # a long cancel key, as in protocol 3.2
    await raw.close()
    raw = await Raw.open(cluster.write_port)
    raw.writer.write(m.startup_message({"user": USER, "database": "app"}))
    assert len(dict(await raw.until_ready())[b"K"]) == 4 + 4
    await raw.close()
    raw = await Raw.open(cluster.write_port)
    raw.writer.write(struct.pack("!II", 8, 2 << 16))
    assert b"0A000" in await raw.reader.read()
    await raw.close()


async def test_cancel_with_a_wrong_key_does_nothing(served: Cluster) -> None:
    async with await served.connect() as connection:
        running = asyncio.create_task(fetch(connection, "select 1 from pg_sleep(0.3)"))
        pid = connection.info.backend_pid
        for process_id in (pid, pid + 1):
            raw = await Raw.open(served.write_port)
            raw.writer.write(m.cancel_request(process_id, b"none"))
            assert await raw.reader.read() == b""
            await raw.close()
        assert await running == 1


async def test_messages_in_tiny_pieces(cluster: Cluster, lasting: Server) -> None:
    await cluster.serve(lasting, 1)
    await cluster.start(auth="trust")
    raw = await Raw.open(cluster.write_port)
    stream = m.startup_message({"user": USER, "database": "app"})
    stream += m.query("select 'a'") + m.message(m.PARSE, b"\0select 1\0\0\0") + m.SYNC_MESSAGE + m.query("select 'b'")
    for byte in stream:
        raw.writer.write(bytes((byte,)))
        await raw.writer.drain()
    replies = [await raw.until_ready() for _ in range(4)]
    kinds = [b"".join(kind for kind, _ in reply) for reply in replies]
    assert kinds[1:] == [b"TDCZ", b"1Z", b"TDCZ"]
    await raw.close()


@pytest.mark.parametrize("setting", ["write_port", "read_port", "api_port"])
async def test_port_in_use(cluster: Cluster, setting: str) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    taken = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    with pytest.raises(EnvironmentFault, match=rf"proxy\.{setting}.*{port}.*in use"):
        await cluster.start(**{setting: port})
    taken.close()
    if setting != "write_port":  # the ports that could be had were given back
        again = await asyncio.start_server(refuse, "127.0.0.1", cluster.write_port)
        again.close()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("app", "line 1: expected a user and a password"),
        ('# comment\n\napp ""', "line 3: the password is empty"),
        ("app a\napp b", "line 2: user 'app' is listed twice"),
        ("app md5" + "0" * 32, "line 1: md5 secrets are not supported"),
        ("app SCRAM-SHA-256$4096:x", "line 1: not a SCRAM secret"),
        ('"app x', "line 1: expected"),
    ],
)
def test_users_file(text: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem) as caught:
        Users.parse(text)
    assert "SCRAM-SHA-256$4096:x" not in str(caught.value)


def test_users_file_that_is_absent(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"proxy\.users_file.*No such file"):
        Users.load(tmp_path / "absent")


async def test_status_endpoint(cluster: Cluster, lasting: Server, unused_port: int) -> None:
    await cluster.start(api_port=unused_port)
    url = f"http://127.0.0.1:{unused_port}"
    with pytest.raises(urllib.error.HTTPError, match="503"):
        await asyncio.to_thread(urllib.request.urlopen, f"{url}/health")
    await cluster.serve(lasting, 1)
    async with await cluster.connect() as connection:
        await connection.execute("select 1")
        answer = await asyncio.to_thread(urllib.request.urlopen, f"{url}/status")
        text = answer.read().decode()
        assert '"servers": {"n1": 1}' in text
        assert '"phase": "serving"' in text
    assert (await asyncio.to_thread(urllib.request.urlopen, f"{url}/health")).status == 200


async def test_stop_tells_every_client(served: Cluster) -> None:
    connection = await served.connect()
    assert served.proxy is not None
    await served.proxy.stop()
    with pytest.raises(psycopg.errors.AdminShutdown, match="the proxy is shutting down"):
        await connection.execute("select 1")
    await connection.close()


def test_no_secret_is_shown() -> None:
    assert PASSWORD not in repr(Users.parse(f'{USER} "{PASSWORD}"').__dict__)
