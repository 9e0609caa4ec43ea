"""Captures that are sent away: over ssh to a real server, and to storage that checks signatures and digests."""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from holdfast.local.machine import server_user
from holdfast.model.capture import Capture, CapturedFile, Kind, Occasion, State
from holdfast.model.errors import ConfigurationError, EnvironmentFault
from holdfast.model.settings import CaptureSettings
from holdfast.node.s3 import Credentials, authorization
from holdfast.node.sending import Sender, sender_for
from holdfast.postgres.capture.keep import FILES, MANIFEST, read_capture, verify
from tests.node.storage import KEY, FakeStorage, storage
from tests.ports import free_port

CONTENTS = {
    "data/global/pg_control": b"control",
    "data/pg_wal/000000010000000000000001": b"log" * 700_000,
    "moments/what is [odd] in *a* \"name\"?.json": b"{}",
    "empty": b"",
}  # fmt: skip


def capture_in(base: Path) -> Capture:
    """A small one, ended, as it lies on the disk."""
    directory = base / "epoch-3-n1-abcd"
    files = []
    for path, content in CONTENTS.items():
        (directory / FILES / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / FILES / path).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        files.append(CapturedFile(path, Kind.CONTROL, path, len(content), len(content), digest, "copied"))
    capture = Capture(
        "n1", "00000001", 3, "abcd", Occasion.REWIND, State.COMPLETE, 1, str(directory), 2, files=tuple(files)
    )
    (directory / MANIFEST).write_bytes(capture.to_json())
    return capture


def nothing(step: str, share: float | None) -> None:
    """For whom progress does not matter."""


def to_storage(place: FakeStorage, base: Path, **more: object) -> Sender:
    key_file = base / "key"
    key_file.write_text(f"{KEY.access_key_id}\n{KEY.secret}\n")
    where = {"directory": base, "send_to": "s3://evidence/clusters/main/"}
    who = {"s3_endpoint": place.endpoint, "s3_key_file": key_file}
    found = sender_for(CaptureSettings.model_validate({**where, **who, **more}), base, "n1")
    assert found is not None
    return found


# -- signatures ------------------------------------------------------------------------------------------------------

AMAZON = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
AT = datetime(2013, 5, 24, tzinfo=UTC)


@pytest.mark.parametrize(
    ("method", "path", "headers", "signature"),
    [
        (
            "GET", "/test.txt",
            {"range": "bytes=0-9", "x-amz-content-sha256": hashlib.sha256().hexdigest()},
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
        (
            "PUT", "/test%24file.text",
            {
                "date": "Fri, 24 May 2013 00:00:00 GMT",
                "x-amz-content-sha256": "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
                "x-amz-storage-class": "REDUCED_REDUNDANCY",
            },
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        ),
    ],
)  # fmt: skip
def test_signatures_are_those_of_amazons_examples(
    method: str, path: str, headers: dict[str, str], signature: str
) -> None:
    signed = {**headers, "host": "examplebucket.s3.amazonaws.com", "x-amz-date": "20130524T000000Z"}
    assert authorization(AMAZON, "us-east-1", method, path, signed, AT).endswith(f"Signature={signature}")


# -- storage ---------------------------------------------------------------------------------------------------------


async def test_a_capture_arrives_whole_and_its_manifest_last(tmp_path: Path) -> None:
    capture, shares = capture_in(tmp_path), list[float | None]()
    async with storage() as place:
        sender = to_storage(place, tmp_path)
        assert await sender.unsent() == [capture]
        assert await sender.send(capture, lambda step, share: shares.append(share)) == len(CONTENTS) + 1
        assert await sender.unsent() == []
        assert await sender.send(capture, nothing) == 0
    prefix = "/evidence/clusters/main/epoch-3-n1-abcd/"
    assert place.objects == {
        **{f"{prefix}files/{path}": content for path, content in CONTENTS.items()},
        f"{prefix}manifest.json": (Path(capture.directory) / MANIFEST).read_bytes(),
    }
    assert list(place.objects)[-1] == f"{prefix}manifest.json"
    assert shares[-1] == 1.0
    found = read_capture(Path(capture.directory))
    assert found == replace(capture, sent_to="s3://evidence/clusters/main")
    assert verify(Path(capture.directory)) == (found, [])


async def test_what_broke_off_goes_on_where_it_was(tmp_path: Path) -> None:
    capture = capture_in(tmp_path)
    async with storage() as place:
        place.refuses_after = 2
        with pytest.raises(EnvironmentFault, match="503 <Code>SlowDown"):
            await to_storage(place, tmp_path).send(capture, nothing)
        assert len(place.objects) == 2
        assert read_capture(Path(capture.directory)).sent_to is None
        place.refuses_after = None
        place.objects.clear()
        assert await to_storage(place, tmp_path).send(capture, nothing) == len(CONTENTS) - 1
        assert len(place.objects) == len(CONTENTS) - 1, "what had arrived was sent again"


async def test_another_place_gets_all_of_it(tmp_path: Path) -> None:
    capture = capture_in(tmp_path)
    async with storage() as place:
        await to_storage(place, tmp_path).send(capture, nothing)
        other = to_storage(place, tmp_path, send_to="s3://elsewhere")
        assert [c.directory for c in await other.unsent()] == [capture.directory]
        assert await other.send(capture, nothing) == len(CONTENTS) + 1
    assert "/elsewhere/epoch-3-n1-abcd/manifest.json" in place.objects


async def test_a_file_that_was_changed_since_is_not_taken(tmp_path: Path) -> None:
    capture = capture_in(tmp_path)
    (Path(capture.directory) / FILES / "data/global/pg_control").write_bytes(b"forged!")
    async with storage() as place:
        with pytest.raises(EnvironmentFault, match="XAmzContentSHA256Mismatch"):
            await to_storage(place, tmp_path).send(capture, nothing)


async def test_storage_that_is_not_there_is_named(tmp_path: Path) -> None:
    place = FakeStorage(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(EnvironmentFault, match=r"127.0.0.1:\d+ cannot be reached"):
        await to_storage(place, tmp_path).send(capture_in(tmp_path), nothing)


def test_settings_that_lack_something_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"capture\.s3_endpoint and capture\.s3_key_file"):
        sender_for(CaptureSettings(send_to="s3://bucket"), tmp_path, "n1")
    key_file = tmp_path / "key"
    key_file.write_text("one-word-that-is-secret")
    settings = CaptureSettings(send_to="s3://bucket", s3_endpoint="http://127.0.0.1:1", s3_key_file=key_file)
    with pytest.raises(ConfigurationError, match="must hold two words") as told:
        sender_for(settings, tmp_path, "n1")
    assert "secret" not in str(told.value).replace("its secret", "")
    assert sender_for(CaptureSettings(), tmp_path, "n1") is None
    with pytest.raises(ValueError, match="send_to"):
        CaptureSettings(send_to="ftp://somewhere/else")


# -- ssh -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ssh(tmp_path: Path) -> Iterator[CaptureSettings]:
    """A real server on loopback, which lets one key in; settings that send to a directory there."""
    sshd = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if sshd is None or shutil.which("sftp") is None:
        pytest.skip("needs the server and the client of OpenSSH")
    user = server_user() or pwd.getpwuid(os.geteuid()).pw_name
    owner = pwd.getpwnam(user)
    place, target, port = tmp_path / "sshd", tmp_path / "target", free_port()
    for directory in (place, target):
        directory.mkdir()
    for name in ("host", "client"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / name], check=True)
    (place / "known").write_text(f"[127.0.0.1]:{port} {(place / 'host.pub').read_text()}")
    (place / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {place}/host\nAuthorizedKeysFile {place}/client.pub\n"
        "StrictModes no\nUsePAM no\nPidFile none\nPasswordAuthentication no\nSubsystem sftp internal-sftp\n"
    )
    if os.geteuid() == 0:
        for path in (tmp_path, place, target, *place.iterdir()):
            if path.name != "client":
                os.chown(path, owner.pw_uid, owner.pw_gid)
        for parent in tmp_path.parents[:3]:
            parent.chmod(parent.stat().st_mode | 0o011)
    identity: dict[str, Any] = {}
    if os.geteuid() == 0:
        identity = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    server = subprocess.Popen([sshd, "-D", "-e", "-f", place / "config"], stderr=subprocess.DEVNULL, **identity)
    try:
        until_it_listens(port, server)
        yield CaptureSettings(
            directory=tmp_path / "captures",
            send_to=f"ssh://{user}@127.0.0.1:{port}{target}/of/n1",
            ssh_key_file=place / "client",
            ssh_options=(f"UserKnownHostsFile={place}/known", "StrictHostKeyChecking=yes", "IdentitiesOnly=yes"),
        )
    finally:
        server.kill()
        server.wait()


def until_it_listens(port: int, server: subprocess.Popen[bytes]) -> None:
    while True:
        assert server.poll() is None, "sshd has ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return


async def test_a_capture_arrives_over_ssh(ssh: CaptureSettings, tmp_path: Path) -> None:
    assert ssh.directory is not None
    capture = capture_in(ssh.directory)
    sender = sender_for(ssh, tmp_path, "n1")
    assert sender is not None
    assert await sender.send(capture, nothing) == len(CONTENTS) + 1
    there = tmp_path / "target/of/n1" / Path(capture.directory).name
    files = [path for path in (there / FILES).rglob("*") if path.is_file()]
    assert {str(path.relative_to(there / FILES)): path.read_bytes() for path in files} == CONTENTS
    found, problems = verify(there)
    assert (found.files, problems) == (capture.files, [])
    assert read_capture(Path(capture.directory)).sent_to == ssh.send_to
    assert await sender.unsent() == []


async def test_what_broke_off_over_ssh_goes_on_where_it_was(ssh: CaptureSettings, tmp_path: Path) -> None:
    assert ssh.directory is not None
    capture = capture_in(ssh.directory)
    sender = sender_for(ssh, tmp_path, "n1")
    assert sender is not None
    name = Path(capture.directory).name
    in_the_way = tmp_path / "target/of/n1" / name / FILES / "empty"  # where the last file should go
    in_the_way.parent.mkdir(parents=True)
    in_the_way.touch(mode=0o400)
    if os.geteuid() == 0:
        owner = (tmp_path / "target").stat()
        for path in (in_the_way, *in_the_way.parents[:4]):
            os.chown(path, owner.st_uid, owner.st_gid)
    with pytest.raises(EnvironmentFault, match="does not take the capture"):
        await sender.send(capture, nothing)
    assert read_capture(Path(capture.directory)).sent_to is None
    in_the_way.chmod(0o600)
    assert await sender.send(capture, nothing) == 2
    assert verify(in_the_way.parents[1])[1] == []


async def test_a_host_that_is_not_there_is_named(ssh: CaptureSettings, tmp_path: Path) -> None:
    assert ssh.directory is not None
    elsewhere = ssh.model_copy(update={"send_to": f"ssh://nobody@127.0.0.1:{free_port()}/captures"})
    sender = sender_for(elsewhere, tmp_path, "n1")
    assert sender is not None
    with pytest.raises(EnvironmentFault, match=r"ssh://nobody@127.0.0.1.*Connection refused"):
        await sender.send(capture_in(ssh.directory), nothing)
