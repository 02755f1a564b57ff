"""A page's content → report.html, one self-contained file, and its tables and figures as files beside it."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from probe.page.figures import INK, Picture, on_page
from probe.page.table import Sheet, to_latex, to_markdown
from shard.files import write_bytes

FIGURES = "figures"  # the folder they lie in


@dataclass(frozen=True)
class Section:
    """A part of the page: text, then pictures side by side where there is room, then tables."""

    title: str
    text: str = ""
    pictures: list[Picture] = field(default_factory=list)
    sheets: list[Sheet] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """What a report says. facts: titled lists of names and values; commands: how to make it again; labels_said: what
    became of uncertain and blank ones."""

    headline: str
    verdicts: list[str]
    sections: list[Section]
    notes: list[str]
    facts: list[tuple[str, dict[str, Any]]]
    commands: list[str]
    labels_said: str
    synthetic: bool

    def sheets(self) -> list[Sheet]:
        """The tables of all sections."""
        return [sheet for section in self.sections for sheet in section.sheets]


def write_page(out: Path, page: Page) -> None:
    """Write report.html, table.md, table.tex, and each figure by itself."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("probe.page", "."), autoescape=True, trim_blocks=True,
                                     lstrip_blocks=True)  # fmt: skip
    environment.filters["inline"] = _inline
    html = environment.get_template("report.html.j2").render(page=page)
    (out / FIGURES).mkdir(exist_ok=True)
    for section in page.sections:
        for picture in section.pictures:
            content = picture.content if picture.kind == "png" else _black(picture)
            write_bytes(out / FIGURES / f"{picture.name}.{picture.kind}", content)
    write_bytes(out / "table.md", to_markdown(page.sheets(), [page.headline, *page.verdicts, *page.notes]).encode())
    write_bytes(out / "table.tex", to_latex(page.sheets(), page.labels_said).encode())
    write_bytes(out / "report.html", html.encode())


def _inline(picture: Picture) -> markupsafe.Markup:
    """A picture as HTML that asks for nothing outside. What is in an SVG was escaped by who drew it."""
    if picture.kind == "png":
        source = "data:image/png;base64," + base64.b64encode(picture.content).decode()
        return markupsafe.Markup('<img src="{}" alt="{}">').format(source, picture.alt)
    return markupsafe.Markup('<div role="img" aria-label="{}">{}</div>').format(
        picture.alt, markupsafe.Markup(on_page(picture.content, picture.name))
    )


def _black(picture: Picture) -> bytes:
    """A figure by itself, on white paper."""
    return picture.content.replace(INK.encode(), b"#000000")
