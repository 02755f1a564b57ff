"""Write a page as report.html, a self-contained file, and its tables and figures as separate files."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from probe.page.figures import Picture
from probe.page.formats import Sheet, to_latex, to_markdown
from probe.page.svg import black_svg, inline_svg
from shard.files import write_bytes

FIGURES = "figures"  # the folder of the figures


@dataclass(frozen=True)
class Section:
    """A section of the page: text, then pictures, side by side if there is room, then tables."""

    title: str
    text: str = ""
    pictures: list[Picture] = field(default_factory=list)
    sheets: list[Sheet] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """The content of a report.

    facts: titled lists of names and values. commands: those that reproduce it. label_policy: how uncertain and blank
    labels are treated.
    """

    headline: str
    verdicts: list[str]
    sections: list[Section]
    notes: list[str]
    facts: list[tuple[str, dict[str, Any]]]
    commands: list[str]
    label_policy: str
    synthetic: bool

    def sheets(self) -> list[Sheet]:
        """The tables of all sections."""
        return [sheet for section in self.sections for sheet in section.sheets]


def with_unique_names(sections: list[Section]) -> list[Section]:
    """Rename pictures until no two share a file name, as those of the findings "Mass" and "mass!" would."""
    taken = set[str]()
    renamed = []
    for section in sections:
        pictures = []
        for picture in section.pictures:
            names = (picture.name, *(f"{picture.name}-{number}" for number in range(2, len(taken) + 3)))
            name = next(name for name in names if name not in taken)
            taken.add(name)
            pictures.append(picture._replace(name=name))
        renamed.append(replace(section, pictures=pictures))
    return renamed


def write_page(out: Path, page: Page) -> None:
    """Write report.html, table.md, table.tex, and each figure as a file."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("probe.page", "."), autoescape=True, trim_blocks=True,
                                     lstrip_blocks=True)  # fmt: skip
    environment.filters["inline"] = _inline
    html = environment.get_template("report.html.j2").render(page=page)
    (out / FIGURES).mkdir(exist_ok=True)
    for section in page.sections:
        for picture in section.pictures:
            content = picture.content if picture.kind == "png" else black_svg(picture.content)
            write_bytes(out / FIGURES / f"{picture.name}.{picture.kind}", content)
    write_bytes(out / "table.md", to_markdown(page.sheets(), [page.headline, *page.verdicts, *page.notes]).encode())
    write_bytes(out / "table.tex", to_latex(page.sheets(), page.label_policy).encode())
    write_bytes(out / "report.html", html.encode())


def _inline(picture: Picture) -> markupsafe.Markup:
    """Inline a picture as HTML without external resources. Matplotlib has escaped the text in an SVG."""
    if picture.kind == "png":
        source = "data:image/png;base64," + base64.b64encode(picture.content).decode()
        return markupsafe.Markup('<img src="{}" alt="{}">').format(source, picture.alt)
    return markupsafe.Markup('<div role="img" aria-label="{}">{}</div>').format(
        picture.alt, markupsafe.Markup(inline_svg(picture.content, picture.name))
    )
