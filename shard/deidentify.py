"""Pseudonyms: keys and patients under keyed hashes, so that shards do not say of whom they are without the secret."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import hmac
import os
import secrets
from dataclasses import replace
from pathlib import Path

import pandas as pd

from shard.errors import InputError
from shard.files import TEMPORARY, write_bytes
from shard.formats import Votes
from shard.table import Dataset, Table, read_table
from shard.tabular.sheet import to_csv

DIGITS = 20  # 80 bits: among a million names two are alike once in 10^12 archives
SHORTEST = 16  # bytes of a secret
OLDEST_SHOWN = 90  # years: older ones are so few that the age says who it is (HIPAA's Safe Harbor, 45 CFR 164.514)


class Pseudonyms:
    """The names that one secret gives: HMAC-SHA256 (RFC 2104), so that without it nobody can try names out."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def of(self, kind: str, name: str) -> str:
        """The pseudonym of a name, 20 hex digits; kind: "key" or "patient"."""
        return hmac.new(self._secret, f"{kind} {name}".encode(), hashlib.sha256).hexdigest()[:DIGITS]

    def fingerprint(self) -> str:
        """What tells this secret from others, for a manifest, and does not betray it."""
        return self.of("secret", "")[:8]

    def hide(self, table: Table) -> Table:
        """The table under pseudonyms, paths as they are, ages over 90 as 90, no dates; its rejects without paths."""
        rows = table.rows.drop(columns="date", errors="ignore")  # a copy
        for kind in ("key", "patient"):
            rows[kind] = rows[kind].map({name: self.of(kind, name) for name in rows[kind].unique()})
        years = {age: str(min(int(age), OLDEST_SHOWN)) if age else "" for age in rows["age"].unique()}
        rows["age"] = rows["age"].map(years).astype("category")
        rejects = ((self.of("key", key), "", reason) for key, _, reason in table.rejects)
        return replace(table, rows=rows, rejects=tuple(rejects))


def read_secret(path: Path, out: Path) -> bytes:
    """The secret in a file; a new one is made, for its owner alone to read, where neither it nor shards are there.

    Raises InputError where it is too short to be one, lies in the folder of the shards, or is missing beside shards.
    """
    if path.resolve().is_relative_to(out.resolve()):
        raise InputError(f"--deidentify={path}: lies in {out}, and would be handed on with it; keep it elsewhere")
    if not path.exists():
        if out.is_dir() and any(out.iterdir()) and not path.exists():  # which another task of an array may make now
            raise InputError(f"--deidentify={path}: no such file, and {out} has been begun; give the file that it was "
                             "begun with, or build into a new folder")  # fmt: skip
        _make_secret(path)
    secret = path.read_bytes().removeprefix(codecs.BOM_UTF8).strip()
    if len(secret) < SHORTEST:
        raise InputError(f"--deidentify={path}: holds {len(secret)} bytes, a secret wants {SHORTEST} or more; give "
                         "the name of a file that is not there, and one is made")  # fmt: skip
    return secret


def _make_secret(path: Path) -> None:
    draft = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}")
    write_bytes(draft, f"{secrets.token_hex(32)}\n".encode(), private=True)
    try:
        with contextlib.suppress(FileExistsError):  # of an array's tasks, which begin at once, the first one's counts
            os.link(draft, path)
            print(f"{path}: a new secret; who has it can tell which image is whose: keep it, apart from the shards")
    finally:
        draft.unlink()


def names(
    src: Path, out: Path, *, deidentify: Path, dataset: Dataset = "auto", table: Path | None = None,
    allow_outside: bool = False, patient_from: str | None = None, findings: str | None = None,
    votes: Votes | None = None,
) -> None:  # fmt: skip
    """Write OUT, a CSV that says which path and patient of SRC is which key and patient in de-identified shards.

    --deidentify: the file with the secret that they were built with. The other flags: as in that build. OUT is as
    confidential as the source.
    """
    if not deidentify.exists():
        raise InputError(f"--deidentify={deidentify}: no such file; give the one that the shards were built with")
    pseudonyms = Pseudonyms(read_secret(deidentify, out))
    content = read_table(src, dataset, table, allow_outside, patient_from, findings=findings, votes=votes)
    hidden = pseudonyms.hide(content)
    rows = content.rows[["path", "patient"]].join(hidden.rows[["key", "patient"]].add_suffix("_in_shards"))
    rejects = pd.DataFrame({"path": [path for _, path, _ in content.rejects],
                            "key_in_shards": [key for key, _, _ in hidden.rejects]})  # fmt: skip
    rows = pd.concat([rows, rejects]).fillna("")
    write_bytes(out, to_csv(rows), private=True)
    print(f"{out}: {len(rows)} rows; as confidential as {src}")
