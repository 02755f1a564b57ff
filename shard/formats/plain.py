"""A table of one's own: a CSV with path, patient and findings."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from shard.errors import InputError
from shard.formats.csv_file import read_csv
from shard.formats.rows import ENDING, Rows, column, hashed_splits

NOT_FINDINGS = ("path", "key", "patient", "split", "view", "sex", "age")


def read_plain(csv: Path) -> Rows:
    """A plain CSV: path, patient, findings; key, else made of path; split, else by patient hash."""
    raw = read_csv(csv, ("path", "patient"), any_case=NOT_FINDINGS)
    findings = tuple(name for name in raw.columns if name not in NOT_FINDINGS)
    for name in findings:
        if not str(name).isprintable() or not str(name).strip():
            raise InputError(f"{csv}: column {name!r}: a finding's name wants letters, no line breaks and the like; "
                             "rename it")  # fmt: skip
    key = raw["key"] if "key" in raw.columns else raw["path"].str.replace(ENDING, "", regex=True)
    split = column(raw, "split").str.strip() if "split" in raw.columns else hashed_splits(raw["patient"])
    frame = pd.DataFrame({"path": raw["path"], "key": key, "patient": raw["patient"], "split": split,
                          "view": column(raw, "view"), "sex": column(raw, "sex"),
                          "age": column(raw, "age")})  # fmt: skip
    return Rows(findings, frame.join(raw[list(findings)]))
