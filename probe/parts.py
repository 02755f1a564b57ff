"""Files with the results of a part of a report, written by a task of a job array: OUT/parts/3-of-8.npz."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from probe.measure import Key, Measured, Unit
from probe.published_protocol import Peaks
from probe.settings import Settings, from_plain
from probe.statistics import Scores, Supports
from probe.study import Study
from shard.errors import InputError
from shard.files import write_bytes

FOLDER, FORMAT = "parts", "cxr-simclr-probe-part/4"


def units_of_part(units: Sequence[Unit], part: int, parts: int) -> list[Unit]:
    """Select the units of a part: consecutive ones, so that a task needs the features of few encoders."""
    return list(units[len(units) * part // parts : len(units) * (part + 1) // parts])


def write_part(
    study: Study, part: int, parts: int, units: Sequence[Unit], found: Sequence[Measured],
    keys: Mapping[str, Sequence[str]],
) -> Path:  # fmt: skip
    """Write a part's results, with its settings and units; return the path.

    keys: of its features in the cache, by encoder name. The merge finds the features by these keys even on a machine
    without a GPU, whose own features would have others.
    """
    arrays: dict[str, Any] = {}
    entries = []
    for number, measured in enumerate(found):
        for kind, items in (("scores", measured.scores), ("rocs", measured.rocs), ("peaks", measured.peaks)):
            for key, value in items.items():
                entries.append([number, kind, list(key)])
                for place, array in enumerate(value if isinstance(value, Peaks) else _arrays(value)):
                    arrays[f"{len(entries) - 1}.{place}"] = array
    head = {"format": FORMAT, "settings": study.settings.plain(), "fingerprint": study.fingerprint, "part": part,
            "parts": parts, "units": [list(unit) for unit in units], "entries": entries,
            "features": dict(keys)}  # fmt: skip
    content = io.BytesIO()
    np.savez(content, head=np.frombuffer(json.dumps(head, allow_nan=False).encode(), np.uint8), **arrays)
    path = study.settings.out / FOLDER / f"{part}-of-{parts}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content.getbuffer())
    return path


def _arrays(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, Scores):
        return (value,)
    return (value.both, value.patients, value.draws, value.rarer,
            *([value.supports.patients, value.supports.share] if value.supports is not None else []))  # fmt: skip


def read_settings(out: Path) -> Settings:
    """Read the settings of the parts in a folder. Raises InputError if there are none."""
    files = sorted((out / FOLDER).glob("*-of-*.npz"))
    if not files:
        raise InputError(f"{out}: no parts in {out / FOLDER}; measure them with --part=K --parts=N --out={out}")
    return from_plain(_read(files[0])[0]["settings"])


def read_parts(study: Study) -> tuple[list[Unit], list[Measured], dict[str, list[str]]]:
    """Read the units and results of all parts, and the keys of their features in the cache, by encoder name.

    Raises InputError if some are missing or belong to another report.
    """
    folder = study.settings.out / FOLDER
    files = {path: _read(path) for path in sorted(folder.glob("*-of-*.npz"))}
    parts = {head["parts"] for head, _ in files.values()}
    if len(parts) > 1:
        few, many = min(parts), max(parts)
        raise InputError(f"{folder}: some are parts of {few}, others of {many}; remove {folder}/*-of-{few}.npz or "
                         f"{folder}/*-of-{many}.npz")  # fmt: skip
    for path, (head, _) in files.items():
        if head["fingerprint"] != study.fingerprint:
            raise InputError(f"{path}: measured with other settings, draws, shards or weights; remove it and measure "
                             f"it again with --part={head['part']} --parts={head['parts']}")  # fmt: skip
    present = {head["part"] for head, _ in files.values()}
    missing = sorted(set(range(*parts)) - present)
    if missing:
        rest = f" and so on for {', '.join(map(str, missing[1:8]))}" if missing[1:] else ""
        raise InputError(f"{folder}: {len(missing)} of {max(parts)} parts missing; measure them with "
                         f"--part={missing[0]} --parts={max(parts)}{rest}")  # fmt: skip
    units: list[Unit] = []
    found: list[Measured] = []
    keys: dict[str, list[str]] = {}
    for _, (head, arrays) in sorted(files.items(), key=lambda item: int(item[1][0]["part"])):
        results = [Measured({}, {}, {}) for _ in head["units"]]
        for entry, (number, kind, key) in enumerate(head["entries"]):
            values = [arrays[name] for place in range(6) if (name := f"{entry}.{place}") in arrays]
            if kind == "scores":
                both, patients, draws, rarer, *supports = values
                results[number].scores[Key(*key)] = Scores(both, patients, draws, int(rarer),
                                                           _supports(*supports) if supports else None)  # fmt: skip
            elif kind == "rocs":
                results[number].rocs[key[0], key[1]] = values[0]
            else:
                results[number].peaks[key[0], key[1], key[2]] = Peaks(*values)
        units += [Unit(*unit) for unit in head["units"]]
        found += results
        keys |= head["features"]
    return units, found, keys


def _supports(patients: npt.NDArray[np.int64], share: npt.NDArray[np.float64]) -> Supports:
    return Supports(patients, share=float(share))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        with np.load(path) as file:
            arrays = dict(file)
        head = json.loads(arrays.pop("head").tobytes())
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{path}: not a readable part ({error}); remove it and measure it again") from None
    if head.get("format") != FORMAT:
        raise InputError(f"{path}: format {head.get('format')!r}, this version reads {FORMAT!r}; measure it again")
    return head, arrays
