"""CSVFile: metrics.jsonl as a table for spreadsheets and pandas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from shard.files import write_bytes

HEADER = "step,metric,value\n"


class CSVFile:
    """Writes metrics.csv: a row for each step and metric, such as 50,step/loss,4.1.

    Rates are left out, so that the file of a resumed run equals that of an uninterrupted one.
    """

    def __init__(self, path: Path, lines: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Start with these lines, each the step and its scalars."""
        write_bytes(path, (HEADER + "".join(_rows(step, scalars) for step, scalars in lines)).encode())
        self._file = path.open("a")

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Append a row for each scalar."""
        self._file.write(_rows(step, scalars))
        self._file.flush()

    def close(self, status: str = "finished") -> None:
        """Close the file."""
        self._file.close()


def _rows(step: int, scalars: Mapping[str, float]) -> str:
    return "".join(f"{step},{tag},{value}\n" for tag, value in scalars.items() if not tag.startswith("speed/"))
