"""Who may use etcd: TLS, client certificates, users and passwords; every wrong setting is named."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from holdfast.model.errors import ConfigurationError, StoreUnavailable
from holdfast.model.keys import Keys
from holdfast.model.settings import StoreSettings
from holdfast.model.timeouts import Timeouts
from holdfast.store.contract import Change, Resync
from holdfast.store.etcd import EtcdStore
from holdfast.store.etcd_server import EtcdInstallation

from .running import PATIENCE_S, EtcdProcess, Watcher

Watching = Callable[[AsyncIterator[Change]], Watcher]
MakeStore = Callable[..., EtcdStore]

NOWHERE = ("http://127.0.0.1:1",)
SECURE_NOWHERE = ("https://127.0.0.1:1",)


@pytest.fixture
def keys(cluster: str) -> Keys:
    return Keys(cluster)


@dataclass(frozen=True)
class Certificates:
    ca: Path
    client: Path
    client_key: Path
    stranger: Path
    stranger_key: Path
    etcd_arguments: tuple[str, ...]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    directory = tmp_path_factory.mktemp("tls")
    ca, other_ca = trustme.CA(), trustme.CA()
    ca.cert_pem.write_to_path(str(directory / "ca.pem"))
    for name, leaf in (
        ("server", ca.issue_cert("127.0.0.1")),
        ("client", ca.issue_cert("holdfast", common_name="holdfast")),
        ("stranger", other_ca.issue_cert("holdfast")),
    ):
        leaf.private_key_pem.write_to_path(str(directory / f"{name}.key"))
        leaf.cert_chain_pems[0].write_to_path(str(directory / f"{name}.pem"))
    arguments = (
        f"--cert-file={directory / 'server.pem'}",
        f"--key-file={directory / 'server.key'}",
        f"--trusted-ca-file={directory / 'ca.pem'}",
        "--client-cert-auth",
    )
    return Certificates(
        directory / "ca.pem",
        directory / "client.pem",
        directory / "client.key",
        directory / "stranger.pem",
        directory / "stranger.key",
        arguments,
    )


@pytest.fixture(scope="module")
def secure_etcd(
    installation: EtcdInstallation, certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EtcdProcess]:
    process = EtcdProcess(
        installation, tmp_path_factory.mktemp("secure"), extra=certificates.etcd_arguments, scheme="https"
    )
    try:
        process.start()
        yield process
    finally:
        process.stop()


async def until_it_answers(store: EtcdStore) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await store.server_version()
            except StoreUnavailable:
                await asyncio.sleep(0.02)
            else:
                return


@pytest.mark.live
async def test_tls_with_a_client_certificate(
    secure_etcd: EtcdProcess, certificates: Certificates, keys: Keys, etcd_store: MakeStore, watching: Watching
) -> None:
    settings = StoreSettings(
        endpoints=(secure_etcd.url,),
        ca_file=certificates.ca,
        cert_file=certificates.client,
        key_file=certificates.client_key,
    )
    store = etcd_store(settings)
    await until_it_answers(store)
    watcher = watching(store.watch(keys.prefix))
    await watcher.until_live()
    assert await store.compare_and_swap(keys.register, b"1", 0) is not None
    lease = await store.grant_lease(60)
    assert await store.keep_alive(lease)
    await watcher.until(lambda w: w.now == {keys.register: b"1"})

    def changed(**differences: Path | None) -> EtcdStore:
        return etcd_store(settings.model_copy(update=differences))

    with pytest.raises(ConfigurationError, match=r"set store\.ca_file"):
        await changed(ca_file=None).get(keys.register)
    with pytest.raises(ConfigurationError, match=r"set store\.cert_file and store\.key_file"):
        await changed(cert_file=None, key_file=None).get(keys.register)
    with pytest.raises(ConfigurationError, match=r"set store\.cert_file and store\.key_file"):
        await changed(cert_file=certificates.stranger, key_file=certificates.stranger_key).get(keys.register)
    plain = etcd_store(StoreSettings(endpoints=(secure_etcd.url.replace("https", "http"),)))
    with pytest.raises(StoreUnavailable, match=r"store\.endpoints.*is it http:// or https://"):
        await plain.get(keys.register)


@pytest.mark.live
async def test_https_to_an_etcd_without_tls(shared_etcd: EtcdProcess, keys: Keys, etcd_store: MakeStore) -> None:
    store = etcd_store(StoreSettings(endpoints=(shared_etcd.url.replace("http", "https"),)))
    with pytest.raises(StoreUnavailable, match=r"store\.endpoints.*is it http:// or https://"):
        await store.get(keys.register)


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


async def protect(process: EtcdProcess) -> str:
    """Switch authentication on; user `agent` may use /holdfast/, `nobody` nothing. Returns the root user's token."""
    for name, password in (("root", "secret of root"), ("agent", "right"), ("nobody", "right")):
        await process.post("/v3/auth/user/add", {"name": name, "password": password})
    await process.post("/v3/auth/role/add", {"name": "holdfast"})
    permission = {"permType": "READWRITE", "key": encoded("/holdfast/"), "range_end": encoded("/holdfast0")}
    await process.post("/v3/auth/role/grant", {"name": "holdfast", "perm": permission})
    await process.post("/v3/auth/user/grant", {"user": "agent", "role": "holdfast"})
    await process.post("/v3/auth/user/grant", {"user": "root", "role": "root"})
    await process.post("/v3/auth/enable", {})
    return str((await process.post("/v3/auth/authenticate", {"name": "root", "password": "secret of root"}))["token"])


@dataclass
class Protected:
    process: EtcdProcess
    root_token: str
    password_file: Path

    def settings(self, user: str | None = "agent") -> StoreSettings:
        return StoreSettings(
            endpoints=(self.process.url,), user=user, password_file=self.password_file if user is not None else None
        )


@pytest.fixture
async def protected(installation: EtcdInstallation, tmp_path: Path) -> AsyncIterator[Protected]:
    process = EtcdProcess(installation, tmp_path, extra=("--bcrypt-cost=4",))
    try:
        process.start()
        password_file = tmp_path / "password"
        password_file.write_text("right\n")
        yield Protected(process, await protect(process), password_file)
    finally:
        process.stop()


@pytest.mark.live
async def test_user_and_password(protected: Protected, keys: Keys, etcd_store: MakeStore, watching: Watching) -> None:
    store = etcd_store(protected.settings())
    watcher = watching(store.watch(keys.prefix))
    await watcher.until_live()
    await asyncio.gather(*(store.put(keys.node(f"n{i}"), b"") for i in range(10)))
    lease = await store.grant_lease(60)
    await store.put(keys.register, b"1", lease)
    assert await store.keep_alive(lease)
    await store.revoke_lease(lease)
    await store.delete_prefix(keys.nodes)
    await watcher.until(lambda w: w.now == {} and len(w.puts) == 11)


@pytest.mark.live
async def test_a_token_that_etcd_forgot_is_renewed(
    protected: Protected, keys: Keys, etcd_store: MakeStore, watching: Watching
) -> None:
    store = etcd_store(protected.settings())
    watcher = watching(store.watch(keys.prefix))
    await watcher.until_live()
    first = await store.compare_and_swap(keys.register, b"1", 0)
    assert first is not None
    protected.process.stop()  # its simple tokens live in memory
    await watcher.until(lambda w: not w.live)
    protected.process.start()
    second = await store.compare_and_swap(keys.register, b"2", first)
    assert second is not None
    await watcher.until(lambda w: w.puts == [b"1", b"2"] and w.live)
    assert watcher.count(Resync) == 1


@pytest.mark.live
async def test_a_changed_password_is_read_anew(
    protected: Protected, keys: Keys, etcd_store: MakeStore, watching: Watching
) -> None:
    store = etcd_store(protected.settings())
    await store.put(keys.register, b"1")
    await protected.process.post(
        "/v3/auth/user/changepw", {"name": "agent", "password": "changed"}, protected.root_token
    )
    with pytest.raises(StoreUnavailable, match=r"store\.password_file|invalid user ID or password"):
        await store.put(keys.register, b"2")  # it has worked: the world has changed, not the setting
    watcher = watching(store.watch(keys.prefix))
    await watcher.until(lambda w: bool(w.seen))
    assert not watcher.live
    protected.password_file.write_text("changed")
    await watcher.until_live()
    await store.put(keys.register, b"3")
    await watcher.until(lambda w: w.now == {keys.register: b"3"})


@pytest.mark.live
async def test_an_expired_token_is_renewed(
    installation: EtcdInstallation, tmp_path: Path, keys: Keys, etcd_store: MakeStore
) -> None:
    process = EtcdProcess(installation, tmp_path, extra=("--bcrypt-cost=4", "--auth-token-ttl=1"))
    try:
        process.start()
        password_file = tmp_path / "password"
        password_file.write_text("right")
        await protect(process)
        store = etcd_store(Protected(process, "", password_file).settings())
        first = await store.compare_and_swap(keys.register, b"1", 0)
        token = store._gateway._token
        assert token is not None
        last: int | None = first
        async with asyncio.timeout(PATIENCE_S):
            while store._gateway._token == token:  # etcd looks once a second which have expired
                # asking with the token prolongs its life, so that there is nothing to ask for but the clock
                await asyncio.sleep(2.5)
                last = await store.compare_and_swap(keys.register, b"2", last or 0)
                assert last is not None
    finally:
        process.stop()


@pytest.mark.live
async def test_wrong_access_is_named(protected: Protected, keys: Keys, etcd_store: MakeStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"set store\.user and store\.password_file"):
        await etcd_store(protected.settings(None)).get(keys.register)
    with pytest.raises(ConfigurationError, match=r"'nobody' \(store\.user\).*/holdfast/"):
        await etcd_store(protected.settings("nobody")).get(keys.register)
    protected.password_file.write_text("wrong")
    for user in ("agent", "unknown"):
        store = etcd_store(protected.settings(user))
        with pytest.raises(ConfigurationError, match=r"store\.password_file") as caught:
            await store.get(keys.register)
        assert str(protected.password_file) in str(caught.value)
        with pytest.raises(ConfigurationError, match=r"store\.password_file"):
            await anext(store.watch(keys.prefix))


@pytest.mark.live
async def test_a_user_for_an_etcd_without_users(
    shared_etcd: EtcdProcess, keys: Keys, etcd_store: MakeStore, tmp_path: Path
) -> None:
    password_file = tmp_path / "password"
    password_file.write_text("right")
    settings = StoreSettings(endpoints=(shared_etcd.url,), user="agent", password_file=password_file)
    with pytest.raises(ConfigurationError, match=r"remove store\.user"):
        await etcd_store(settings).get(keys.register)


def settings_of(endpoints: tuple[str, ...], **values: object) -> StoreSettings:
    return StoreSettings.model_validate({"endpoints": endpoints, **values})


def test_wrong_files_are_named_before_anything_is_sent(tmp_path: Path, certificates: Certificates) -> None:
    absent, empty, garbage = tmp_path / "absent", tmp_path / "empty", tmp_path / "garbage"
    empty.write_text("\n")
    garbage.write_bytes(b"\xff\xfe no certificate")
    pair = {"cert_file": certificates.client, "key_file": certificates.client_key}
    cases = [
        (settings_of(NOWHERE, user="u"), r"store\.user is set but store\.password_file is not"),
        (settings_of(NOWHERE, password_file=empty), r"store\.password_file is set but store\.user is not"),
        (settings_of(NOWHERE, user="u", password_file=absent), r"store\.password_file cannot be read.*absent"),
        (settings_of(NOWHERE, user="u", password_file=tmp_path), r"store\.password_file cannot be read"),
        (settings_of(NOWHERE, user="u", password_file=garbage), r"store\.password_file cannot be read"),
        (settings_of(NOWHERE, user="u", password_file=empty), r"store\.password_file .*empty.* is empty"),
        (settings_of(NOWHERE, ca_file=certificates.ca), r"store\.ca_file is set but no URL .* https"),
        (settings_of(NOWHERE, **pair), r"store\.cert_file is set but no URL .* https"),
        (settings_of(SECURE_NOWHERE, ca_file=absent), r"store\.ca_file .*absent.* cannot be used"),
        (settings_of(SECURE_NOWHERE, ca_file=garbage), r"store\.ca_file .*garbage.* cannot be used"),
        (settings_of(SECURE_NOWHERE, cert_file=certificates.client), r"store\.key_file is missing"),
        (settings_of(SECURE_NOWHERE, key_file=certificates.client_key), r"store\.cert_file is missing"),
        (
            settings_of(SECURE_NOWHERE, cert_file=certificates.client, key_file=certificates.stranger_key),
            r"store\.cert_file .*client\.pem.* with store\.key_file .*stranger\.key.* cannot be used",
        ),
    ]
    for settings, message in cases:
        with pytest.raises(ConfigurationError, match=message):
            EtcdStore(settings, "main", Timeouts())


async def test_nobody_there(etcd_store: MakeStore) -> None:
    store = etcd_store(StoreSettings(endpoints=("http://127.0.0.1:1", "http://no-such-host.invalid:2379")))
    with pytest.raises(StoreUnavailable, match=r"store\.endpoints.*127\.0\.0\.1:1.*no-such-host\.invalid"):
        await store.get("/holdfast/x")
