"""Puts files into S3-compatible storage, each in one signed request whose body the storage checks by its digest.

Signature Version 4 as Amazon describes it ("Authenticating Requests: Using the Authorization Header"). One request is
enough for up to 5 GB, and no file of a capture is larger than one of PostgreSQL's own, 1 GiB.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, urlsplit

import aiohttp
from yarl import URL

from holdfast.model.errors import ConfigurationError, EnvironmentFault

_CHUNK_BYTES = 1024 * 1024
_SAID_CHARACTERS = 300
_CONNECT_S = 10.0
_SILENT_S = 60.0
"""Storage that takes nothing for so long does not answer."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """The two halves of a key."""

    access_key_id: str
    secret: str

    @classmethod
    def read(cls, path: Path) -> Credentials:
        """Two words, the id and the secret; raises ConfigurationError."""
        try:
            words = path.read_text().split()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise ConfigurationError(f"capture.s3_key_file {path}: {reason}") from error
        if len(words) != 2:
            raise ConfigurationError(f"capture.s3_key_file {path} must hold two words: the access key's id, its secret")
        return cls(words[0], words[1])


def authorization(
    credentials: Credentials, region: str, method: str, path: str, headers: Mapping[str, str], at: datetime
) -> str:
    """The value of the header that signs a request.

    ``path`` is as it is sent, quoted. ``headers`` are all that are signed, with lower-case names, among them ``host``
    and ``x-amz-content-sha256``.
    """
    day, stamp = f"{at:%Y%m%d}", f"{at:%Y%m%dT%H%M%SZ}"
    names = sorted(headers)
    lines = [f"{name}:{headers[name].strip()}\n" for name in names]
    canonical = "\n".join((method, path, "", "".join(lines), ";".join(names), headers["x-amz-content-sha256"]))
    scope = f"{day}/{region}/s3/aws4_request"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    key = f"AWS4{credentials.secret}".encode()
    for part in (day, region, "s3", "aws4_request", f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}"):
        key = hmac.digest(key, part.encode(), "sha256")
    signed = ";".join(names)
    return (
        f"AWS4-HMAC-SHA256 Credential={credentials.access_key_id}/{scope},SignedHeaders={signed},Signature={key.hex()}"
    )


class Bucket:
    """A bucket behind an endpoint, addressed by its path, which every storage understands."""

    def __init__(self, endpoint: str, bucket: str, region: str, credentials: Credentials, ca_file: Path | None) -> None:
        """Raises ConfigurationError for a file of certificates that cannot be read."""
        self._endpoint = endpoint.rstrip("/")
        self._bucket = bucket
        self._region = region
        self._credentials = credentials
        try:
            self._ssl = ssl.create_default_context(cafile=ca_file) if ca_file is not None else True
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"capture.s3_ca_file {ca_file}: {error}") from error

    async def put(self, session: aiohttp.ClientSession, key: str, path: Path, sha256: str) -> None:
        """Put a file there; what is there under its name is replaced. Raises EnvironmentFault, OSError."""
        size_bytes = (await asyncio.to_thread(path.stat)).st_size
        parts = urlsplit(self._endpoint)
        where = quote(f"{parts.path}/{self._bucket}/{key}", safe="/-_.~")
        now = datetime.now(UTC)
        signed = {"host": parts.netloc, "x-amz-content-sha256": sha256, "x-amz-date": f"{now:%Y%m%dT%H%M%SZ}"}
        headers = {
            "x-amz-content-sha256": sha256,
            "x-amz-date": signed["x-amz-date"],
            "authorization": authorization(self._credentials, self._region, "PUT", where, signed, now),
            "content-length": str(size_bytes),
        }
        url = URL(f"{parts.scheme}://{parts.netloc}{where}", encoded=True)
        try:
            async with session.put(url, data=_chunks(path), headers=headers, ssl=self._ssl) as answer:
                if answer.status // 100 != 2:
                    said = " ".join((await answer.text(errors="replace")).split())[:_SAID_CHARACTERS]
                    raise EnvironmentFault(f"{parts.netloc} does not take {key}: {answer.status} {said}")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EnvironmentFault(f"{parts.netloc} cannot be reached: {str(error) or type(error).__name__}") from error


def new_session() -> aiohttp.ClientSession:
    """For any number of files, one after the other."""
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENT_S)
    )


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    """A file, bit by bit: memory is for other things."""
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
            yield chunk
