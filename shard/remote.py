"""Read and write files at an address through fsspec, with retries, and errors of one line."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from shard.address import Address, hide_secrets
from shard.errors import InputError
from shard.files import hash_rest

WAITS_S = (0.5, 1.0, 2.0, 4.0)  # between attempts
CONNECT_S, READ_S = 30, 60  # how long a connection may take, and how long a server may send nothing
RETRIED = {408, 425, 429}  # HTTP statuses below 500 that another attempt may not meet
Result = TypeVar("Result")
_jitter = random.Random()  # of its own: the global generator belongs to the training run


def read_file(address: Address, name: str) -> bytes:
    """Read a small file. Raises InputError as `download` does."""
    url = address.url_of(name)
    content: bytes = _retry(url, lambda: filesystem(address).cat_file(url))
    return content


def download(address: Address, name: str, path: Path) -> None:
    """Download a file to `path`, which may be left incomplete if this fails.

    Retries what may pass: lost connections, silent servers, errors of the server. Raises InputError, in one line, if
    the file does not exist, access is denied, `path` can't be written, or the last attempt fails.
    """
    url = address.url_of(name)
    _retry(url, lambda: filesystem(address).get_file(url, str(path)))


def upload_file(path: Path, address: Address, name: str) -> None:
    """Upload a file. Object stores show it only once it is complete. Raises InputError as `download` does."""
    url = address.url_of(name)
    _retry(url, lambda: filesystem(address).put_file(str(path), url))


def remote_sha256(address: Address, name: str) -> str:
    """Read a file back and return its sha256, in hex. Raises InputError as `download` does."""
    url = address.url_of(name)

    def read() -> str:
        with filesystem(address).open(url, "rb") as file:
            return hash_rest(file)

    return _retry(url, read)


def file_size(address: Address, name: str) -> int | None:
    """Return the size of a file in bytes; None if it does not exist. Raises InputError as `download` does."""
    url = address.url_of(name)

    def find() -> Any:
        try:
            return filesystem(address).info(url)
        except FileNotFoundError:
            return {"type": "missing"}

    found = _retry(url, find)
    if found["type"] != "file":
        return None
    if found["size"] is None:
        raise InputError(f"{hide_secrets(url)}: the server does not state the size of files (Content-Length); serve "
                         "the shards with one that does, or copy them to this machine")  # fmt: skip
    return int(found["size"])


def filesystem(address: Address) -> Any:
    """Return fsspec's file system for an address. Raises InputError if the library for it is not installed."""
    return _filesystem(address.scheme, os.getpid())


@lru_cache
def _filesystem(scheme: str, process: int) -> Any:  # of this process: connections do not survive a fork
    try:
        import fsspec

        options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
        if scheme == "s3":
            options["config_kwargs"] = {"connect_timeout": CONNECT_S, "read_timeout": READ_S}
        elif scheme in ("http", "https"):
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S)
            options["client_kwargs"] = {"timeout": timeout, "trust_env": True}  # proxies, and passwords in ~/.netrc
        return fsspec.filesystem(scheme, **options)
    except ImportError as error:
        raise InputError(f"{scheme}://: {error.name or error} is not installed; pip install 'cxr-simclr[remote]', or "
                         "in the root of the repository: pip install '.[remote]'") from None  # fmt: skip


def _retry(url: str, attempt: Callable[[], Result]) -> Result:
    """Return what `attempt` returns, after retries. Raises InputError if an error is final or the last one."""
    for wait in (*WAITS_S, None):
        try:
            return attempt()
        except InputError:
            raise
        except Exception as error:  # each protocol raises errors of its own libraries
            if reason := _final_reason(error):
                raise InputError(f"{hide_secrets(url)}: {reason}") from error
            if wait is None:
                text = hide_secrets(str(error)) or "no answer"
                raise InputError(f"{hide_secrets(url)}: {type(error).__name__}: {text} ({len(WAITS_S) + 1} attempts); "
                                 "check the network and the server, and run the same command again") from error
            time.sleep(wait * _jitter.uniform(0.5, 1.5))
    raise AssertionError("the last attempt returns or raises")


def _final_reason(error: Exception) -> str:
    """Return why another attempt would fail too, with the cure; "" if it may succeed."""
    status = _status_of(error)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return "no such file; check the address, and that the shards were uploaded completely"
    if isinstance(error, PermissionError) or status in (401, 403) or "Credentials" in type(error).__name__:
        return (f"access denied ({type(error).__name__}{f', status {status}' if status else ''}); set the credentials "
                "of the store, as docs/remote.md says")  # fmt: skip
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.strerror} on this machine; free space there, or choose another folder with --cache"
    if status and 400 <= status < 500 and status not in RETRIED:
        return f"the server refuses it with status {status}; check the address"
    return ""


def _status_of(error: Exception) -> int:
    """Return the HTTP status that an error of aiohttp, gcsfs or botocore reports; 0 if it reports none."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    if isinstance(response, dict):  # botocore's
        return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    status = getattr(error, "status", None) or getattr(error, "code", None)
    return int(str(status)) if str(status).isdigit() else 0
