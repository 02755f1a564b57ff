"""merge: combine the records of all parts of a build into one manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from shard.duplicates import Policy
from shard.errors import PARSE_ERRORS, InputError
from shard.finish import clear_away, finish, part_name, union_software
from shard.flags import Flag, validate_call
from shard.manifest import MANIFEST, read_manifest
from shard.record import first_difference, parse_record, parse_rejects


@validate_call
def merge(
    out: Annotated[Path, Flag("Folder that the parts of the build were written to.")], *,
    max_rejects: Annotated[float, Flag("Largest fraction of rows without a usable image.", low=0, high=1)] = 0.01,
    duplicates: Annotated[Policy | None, Flag("What to do with equal images in two splits or of two patients.",
                                              default="as the parts were built")] = None,
) -> None:  # fmt: skip
    """Join the parts of a build, which a job array wrote, under one manifest.

    Raises InputError if a part is missing or comes from a build with other settings or another table, or if more than
    --max-rejects of the rows were rejected.

        python -m shard merge shards
    """
    if (out / MANIFEST).exists():
        read_manifest(out)
        clear_away(out)
        print(f"{out}: already merged; nothing to do")
        return
    parts = [_read_part(file) for file in sorted(out.glob("part-*.json"))]
    if not parts:
        raise InputError(f"{out}: contains no part-*.json; run: python -m shard build SRC {out} --part=I --parts=N")
    first = parts[0]
    software = union_software(parts)  # a part without DICOM files lists no DICOM readers
    for part in parts:
        difference = first_difference(_identity(first, software), _identity(part, software))
        if difference:
            raise InputError(f"{out}: {part_name(part['part'], part['parts'])} is from a different build than "
                             f"{part_name(first['part'], first['parts'])} ({difference}); "
                             "remove the wrong one and build that part again")
    missing = sorted(set(range(first["parts"])) - {part["part"] for part in parts})
    if missing:
        raise InputError(f"{out}: part {missing[0]} of {first['parts']} is missing ({len(missing)} in all); "
                         f"run: python -m shard build SRC {out} --part={missing[0]} --parts={first['parts']}")
    finish(out, parts, max_rejects, duplicates or first["duplicates"])


def _identity(part: dict[str, Any], software: dict[str, str]) -> dict[str, Any]:
    """Collect what must be equal in all parts of a build. software: the library versions of all parts."""
    return {**part["settings"], **software, **part["software"], "parts": part["parts"]}


def _read_part(file: Path) -> dict[str, Any]:
    """Read a part's record. Raises InputError if the file is not one."""
    try:
        content: dict[str, Any] = json.loads(file.read_text())
        records = [parse_record(record) for record in content["shards"]]
        notes = tuple(map(str, content.get("notes", ())))  # older versions wrote no notes
        return {**content, "shards": records, "rejects": parse_rejects(content["rejects"]), "notes": notes}
    except PARSE_ERRORS as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{file}: not the record of a part ({reason}); remove it and build that part again") from None
