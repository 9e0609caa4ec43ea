from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.model.errors import ProtocolViolation
from holdfast.wire.saslprep import prepare_password
from holdfast.wire.scram import (
    AuthenticationFailed,
    Keys,
    ScramClient,
    ScramServer,
    Secret,
    derive_keys,
)

SALT = b"0123456789abcdef"


def log_in(server: ScramServer, client: ScramClient, keys: Keys) -> None:
    salt, iterations = client.challenge(server.first(client.first()))
    assert (salt, iterations) == (keys.salt, keys.iterations)
    client.verify(server.final(client.prove(keys)))


@given(st.text(min_size=1, max_size=20))
def test_both_sides_agree(password: str) -> None:
    keys = derive_keys(password, SALT, 2)
    server = ScramServer(keys.secret(), "server")
    log_in(server, ScramClient("client"), keys)
    assert server.keys() == keys


def test_rfc_7677_example() -> None:
    import base64

    client = ScramClient("rOprNGfwEbeRWgbNEkqO")
    challenge = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    salt, iterations = client.challenge(challenge)
    assert (salt, iterations) == (base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="), 4096)
    client._first = "n=user,r=rOprNGfwEbeRWgbNEkqO"  # the example names a user; PostgreSQL's clients do not
    proof = client.prove(derive_keys("pencil", salt, iterations))
    assert proof.endswith(b",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
    client.verify(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")


def test_wrong_password() -> None:
    server = ScramServer(derive_keys("right", SALT, 2).secret(), "server")
    with pytest.raises(AuthenticationFailed):
        log_in(server, ScramClient("client"), derive_keys("wrong", SALT, 2))


def test_stranger_is_refused_even_with_the_right_proof() -> None:
    keys = derive_keys("right", SALT, 2)
    with pytest.raises(AuthenticationFailed):
        log_in(ScramServer(keys.secret(), "server", known=False), ScramClient("client"), keys)


def test_client_refuses_a_server_without_the_secret() -> None:
    keys = derive_keys("right", SALT, 2)
    client = ScramClient("client")
    client.challenge(ScramServer(keys.secret(), "server").first(client.first()))
    client.prove(keys)
    with pytest.raises(AuthenticationFailed):
        client.verify(b"v=" + b"A" * 43 + b"=")


@given(st.binary(max_size=80))
def test_garbage(data: bytes) -> None:
    secret = derive_keys("x", SALT, 1).secret()
    with pytest.raises(ProtocolViolation):
        ScramServer(secret, "server").first(b"p=" + data)
    server = ScramServer(secret, "server")
    server.first(b"n,,n=,r=client")
    with pytest.raises((ProtocolViolation, AuthenticationFailed)):
        server.final(data)


@pytest.mark.parametrize(
    "challenge",
    [b"", b"r=other,s=QUJD,i=1", b"r=client,s=QUJD,i=1", b"r=clientx,s=?,i=1", b"r=clientx,s=QUJD,i=0",
     b"r=clientx,s=QUJD,i=9999999", b"r=clientx,s=QUJD", b"s=QUJD,r=clientx,i=1", b"r=clientx,s=QUJD,i=-1"],
)  # fmt: skip
def test_bad_challenges(challenge: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        ScramClient("client").challenge(challenge)


@pytest.mark.parametrize(
    "text",
    ["", "md5abc", "SCRAM-SHA-256$4096:QUJD$QUJD:QUJD", "SCRAM-SHA-256$x:QUJD$QUJD:QUJD", "SCRAM-SHA-256$1:!$A:A"],
)
def test_broken_secrets(text: str) -> None:
    with pytest.raises(ValueError, match="SCRAM secret"):
        Secret.parse(text)


def test_secrets_are_not_shown() -> None:
    keys = derive_keys("x", SALT, 1)
    assert "client_key" not in repr(keys)
    assert "stored_key" not in repr(keys.secret())


@pytest.mark.parametrize(
    ("password", "prepared"),
    [
        ("pencil", b"pencil"),
        ("I\u00adX", b"IX"),  # RFC 4013, section 3
        ("\u00aa", b"a"),
        ("\u2168", b"IX"),
        ("a\u00a0b", b"a b"),
        ("\u0627\u0031", "\u0627\u0031".encode()),  # prohibited: as it is
        ("x\u0007\u00aa", "x\u0007\u00aa".encode()),
    ],
)
def test_saslprep(password: str, prepared: bytes) -> None:
    assert prepare_password(password) == prepared
