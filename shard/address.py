"""Address: where shards lie that are not on this machine, such as s3://bucket/prefix."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from shard.errors import InputError

SCHEMES = ("s3", "gs", "https", "http")
ORIGIN = "origin.txt"  # in a folder of the cache: the address that its shards are fetched from
_URL = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*)://(?:[^\s/]*@)?([^\s?#'\"]*)(?:\?[^\s'\"]*)?")


@dataclass(frozen=True)
class Address:
    """The address of a folder of shards. str() omits the user, the password and the query, which may be secret.

    Raises InputError if it is not an address that shards can be fetched from.
    """

    text: str = field(repr=False)

    def __post_init__(self) -> None:
        if not _is_valid(self.text):  # nothing says where a password ends, so none of it is shown
            raise InputError(f"{self.text.partition('://')[0]}://…: not a valid address; write blanks, quotes and any "
                             "of /?#@[] in a user or password as % and two hex digits, such as %2F for /")  # fmt: skip
        parts = urlsplit(self.text)
        if parts.scheme not in SCHEMES:
            raise InputError(f"{self}: shards can be fetched from {', '.join(f'{name}://' for name in SCHEMES)}; copy "
                             "them to one of these, or to this machine")  # fmt: skip
        if not parts.hostname or parts.fragment:
            raise InputError(f"{self}: not an address of a folder, such as s3://bucket/prefix or https://host/folder")
        if not self.scheme.startswith("http") and ("@" in parts.netloc or parts.query):
            raise InputError(f"{self}: must not contain a user, a password or a query; credentials come from the "
                             "environment variables and files of the store's own tools (docs/remote.md)")  # fmt: skip

    def __str__(self) -> str:
        return hide_secrets(self.text).rstrip("/")

    @property
    def scheme(self) -> str:
        """s3, gs, https or http."""
        return urlsplit(self.text).scheme

    def url_of(self, name: str) -> str:
        """Return the address of a file in the folder, with what is secret."""
        parts = urlsplit(self.text)
        return parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl()


def _is_valid(text: str) -> bool:
    """Whether an address has a valid host and port and, on a web server, is all percent-encoded."""
    try:
        parts = urlsplit(text)
        return parts.port != 0 and not (parts.scheme.startswith("http") and re.search(r"[\s'\"]", text))
    except ValueError:  # of a port that is no number, or of brackets
        return False


Place = Path | Address  # where a command reads shards: a folder on this machine, or an address


def is_address(text: str) -> bool:
    """Whether a text is an address and not a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None


def parse_place(text: str) -> Place:
    """Read a path or an address. Raises InputError if it is an address that shards can't be fetched from."""
    return Address(text) if is_address(text) else Path(text).expanduser()


def absolute_place(place: Place) -> str:
    """Return a place as text that means the same in any folder, without secrets."""
    return str(place.absolute() if isinstance(place, Path) else place)


def hide_secrets(text: str) -> str:
    """Remove users, passwords and queries from the addresses in a text."""
    return _URL.sub(r"\1://\2", text)


def is_copy(folder: Path) -> bool:
    """Whether a folder is part of the cache: its tars are fetched when they are needed, and may be removed again."""
    return (folder / ORIGIN).exists()
