"""De-identify shards: replace keys and patients by keyed hashes that cannot be resolved without a secret."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import hmac
import os
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import pandas as pd

from shard.errors import InputError
from shard.files import TEMPORARY, write_bytes
from shard.flags import Flag
from shard.source_flags import (
    GROUP,
    AllowOutside,
    DatasetFlag,
    FindingsFlag,
    PatientFrom,
    Source,
    TableFlag,
    VotesFlag,
)
from shard.table import Table, read_table
from shard.tabular.sheet import to_csv

DIGITS = 20  # 80 bits: the probability of a collision among a million names is below 10^-12
SHORTEST = 16  # bytes, the minimum length of a secret
OLDEST_SHOWN = 90  # years: a higher age can identify a person (HIPAA's Safe Harbor, 45 CFR 164.514)


class Pseudonyms:
    """Pseudonyms by HMAC-SHA256 (RFC 2104): without the secret, nobody can find a name by trying candidates."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def pseudonym(self, kind: str, name: str) -> str:
        """Return the pseudonym of a name, 20 hex digits. kind: "key" or "patient"."""
        return hmac.new(self._secret, f"{kind} {name}".encode(), hashlib.sha256).hexdigest()[:DIGITS]

    def fingerprint(self) -> str:
        """Return an identifier of the secret for a manifest, 8 hex digits, that does not reveal the secret."""
        return self.pseudonym("secret", "")[:8]

    def apply(self, table: Table) -> Table:
        """Return a de-identified copy of a table.

        Keys and patients become pseudonyms, ages over 90 become 90, and dates are dropped. Rows keep their paths, which
        the build needs; rejects lose theirs.
        """
        rows = table.rows.drop(columns="date", errors="ignore")
        for kind in ("key", "patient"):
            rows[kind] = rows[kind].map({name: self.pseudonym(kind, name) for name in rows[kind].unique()})
        years = {age: str(min(int(age), OLDEST_SHOWN)) if age else "" for age in rows["age"].unique()}
        rows["age"] = rows["age"].map(years).astype("category")
        rejects = ((self.pseudonym("key", key), "", reason) for key, _, reason in table.rejects)
        return replace(table, rows=rows, rejects=tuple(rejects))


def read_secret(path: Path, out: Path) -> bytes:
    """Read a secret. If neither the file nor shards in `out` exist, create a new secret that only its owner can read.

    Raises InputError if the secret is too short, if the file is inside `out`, or if it is missing but `out` is not
    empty.
    """
    if path.resolve().is_relative_to(out.resolve()):
        raise InputError(f"--deidentify={path}: is inside {out} and would be shared with the shards; keep it elsewhere")
    if not path.exists():
        if out.is_dir() and any(out.iterdir()) and not path.exists():  # another task may have just created it
            raise InputError(f"--deidentify={path}: no such file, and {out} is not empty; give the file that its build "
                             "was started with, or build into a new folder")  # fmt: skip
        _create_secret(path)
    secret = path.read_bytes().removeprefix(codecs.BOM_UTF8).strip()
    if len(secret) < SHORTEST:
        raise InputError(f"--deidentify={path}: has {len(secret)} bytes, but a secret needs at least {SHORTEST}; give "
                         "the name of a new file to create a secret")  # fmt: skip
    return secret


def _create_secret(path: Path) -> None:
    draft = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}")
    write_bytes(draft, f"{secrets.token_hex(32)}\n".encode(), private=True)
    try:
        with contextlib.suppress(FileExistsError):  # the tasks of a job array start together: the first to link wins
            os.link(draft, path)
            print(f"{path}: created a new secret, which links the shards to the patients; keep it, but away from them")
    finally:
        draft.unlink()


def names(
    src: Source,
    out: Annotated[Path, Flag("CSV file to write. Keep it as confidential as SRC.")], *,
    deidentify: Annotated[Path, Flag("File with the secret of the build.", GROUP, metavar="FILE")],
    dataset: DatasetFlag = "auto",
    table: TableFlag = None,
    findings: FindingsFlag = None,
    votes: VotesFlag = None,
    patient_from: PatientFrom = None,
    allow_outside: AllowOutside = False,
) -> None:  # fmt: skip
    """Write a CSV that maps the paths and patients of a source to the names in de-identified shards.

    Give the same flags as to the build.

        python -m shard names exports names.csv --dataset=folder --deidentify=secret.txt
    """
    if not deidentify.exists():
        raise InputError(f"--deidentify={deidentify}: no such file; give the one that the shards were built with")
    pseudonyms = Pseudonyms(read_secret(deidentify, out))
    content = read_table(src, dataset, table, allow_outside, patient_from, findings=findings, votes=votes)
    deidentified = pseudonyms.apply(content)
    rows = content.rows[["path", "patient"]].join(deidentified.rows[["key", "patient"]].add_suffix("_in_shards"))
    rejects = pd.DataFrame({"path": [path for _, path, _ in content.rejects],
                            "key_in_shards": [key for key, _, _ in deidentified.rejects]})  # fmt: skip
    rows = pd.concat([rows, rejects]).fillna("")
    write_bytes(out, to_csv(rows), private=True)
    print(f"{out}: {len(rows)} rows; as confidential as {src}")
