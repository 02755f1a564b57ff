"""The table of bench.archive, for the terminal and for the docs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.recipe.page import table
from shard.errors import InputError
from shard.files import write_bytes

BEGIN, END = "<!-- bench.archive -->", "<!-- end of bench.archive -->"
COLUMNS = ("step", "seconds", "images/s", "CPU s", "peak MB", "open files", "read MB", "written MB")


def format_table(rows: list[dict[str, Any]], header: bool = True) -> str:
    """Format the steps as aligned columns for the terminal, each with what was checked in a line below."""
    lines = [f"{COLUMNS[0]:36}" + "".join(f"{name:>11}" for name in COLUMNS[1:])] if header else []
    for row in rows:
        lines += [f"{row['name']:36}" + "".join(f"{cell:>11}" for cell in _cells(row)), f"    {row['checked']}"]
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> list[str]:
    rate = f"{row['images_per_s']:,.0f}" if row["images_per_s"] else ""
    return [f"{row['seconds']:,.1f}", rate, *(f"{row[name]:,.0f}" for name in
                                             ("cpu_s", "peak_mb", "files", "read_mb", "written_mb"))]  # fmt: skip


def write_section(path: Path, content: dict[str, Any]) -> None:
    """Write the section between the marks of a Markdown file anew, at its end if it has none.

    Raises InputError if only one of the marks is there.
    """
    text = path.read_text() if path.exists() else "# The whole archive\n"
    if (BEGIN in text) != (END in text) or text.count(BEGIN) > 1:
        raise InputError(f"{path}: needs both lines {BEGIN} and {END} once, or neither; restore or remove them")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2] if rest else "\n"
    if not rest:
        before = before.rstrip() + "\n\n"
    write_bytes(path, f"{before}{BEGIN}\n{render_section(content)}\n{END}{after}".encode())


def render_section(content: dict[str, Any]) -> str:
    """Render the tables of the steps and of the ranks in Markdown, with the machine and the command."""
    settings, rows = content["settings"], content["steps"]
    machine = ", ".join(f"{name} {value}" for name, value in content["machine"].items())
    command = "python -m bench.archive" + "".join(f" --{name}={value}" for name, value in settings.items())
    lines = [[row["name"], *_cells(row), row["checked"]] for row in rows]
    parts = [f"`{command}`: {settings['images']:,} images, on {machine}.", table([*COLUMNS, "checked"], lines)]
    ranks = next((row["figures"] for row in rows if row["name"] == "ranks"), None)
    if ranks:
        parts.append(_render_ranks(ranks))
    return "\n\n".join(parts)


def _render_ranks(figures: dict[str, Any]) -> str:
    """Render the table of the ranks: median, least and most of each figure."""
    first, second = figures["epochs"]
    lines = [["first batch, s after the process began", _spread(first["first_batch_since_start_s"], 1), ""],
             ["first batch, s after the loader began", _spread(first["first_batch_s"], 1), ""],
             *([label, _spread(first[name], digits), _spread(second[name], digits)] for label, name, digits in
               (("MB read", "read_mb", 0), ("MB of images among them", "images_mb", 0), ("tars read from", "tars", 0),
                ("CPU s", "cpu_s", 1), ("seconds", "seconds", 1))),
             ["open files at the end", "", _spread(figures["open_files"], 0)],
             ["peak MB", "", _spread(figures["peak_mb"], 0)]]  # fmt: skip
    head = (f"{figures['ranks']} ranks of {figures['batch_size']} images a batch, in processes of their own, "
            f"{figures['at_once']} at a time; median [least, most] of a rank:")  # fmt: skip
    return f"{head}\n\n{table(['a rank', 'first epoch', 'second epoch'], lines)}"


def _spread(values: dict[str, float], digits: int) -> str:
    return f"{values['median']:,.{digits}f} [{values['low']:,.{digits}f}, {values['high']:,.{digits}f}]"
