"""info: describe shards as text, as an HTML page or as a contact sheet."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Annotated

import jinja2
import numpy as np
from PIL import Image, ImageDraw

from shard.address import Place
from shard.cache import AS_SET, CacheFlags, open_shards
from shard.duplicates import Summary
from shard.errors import PARSE_ERRORS, InputError
from shard.files import write_bytes
from shard.flags import SHARDS, Flag
from shard.manifest import Manifest, Shard, read_manifest
from shard.note import counted
from shard.read import CURE, Sample, read_index, read_members
from shard.tar import ENDINGS

SHEET = 64  # images on a contact sheet
COLUMNS = 8
TILE = 160  # pixels


def info(
    out: Annotated[Place, SHARDS], *,
    png: Annotated[Path | None, Flag("Write a contact sheet of 64 images to this file.", metavar="FILE")] = None,
    html: Annotated[Path | None, Flag("Write a web page with 64 images and what is known about them to this file.",
                                      metavar="FILE")] = None,
    cache: CacheFlags = AS_SET,
) -> None:  # fmt: skip
    """Print what shards contain: images, patients and labels by split, sizes, settings and pixel statistics.

    python -m shard info shards --html=shards.html
    """
    folder = open_shards(out, cache)
    manifest = read_manifest(folder)
    text = describe(folder, manifest, str(out))
    print(text)
    samples = choose_samples(folder, manifest) if png or html else []
    tiles = [_make_tile(folder, manifest, shard, sample) for shard, sample in samples]
    if png:
        png.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(png, _make_sheet([(key, image) for key, _, image in tiles]))
        print(f"{png} written")
    if html:
        html.parent.mkdir(parents=True, exist_ok=True)
        page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
            (Path(__file__).parent / "info.html.j2").read_text()
        )
        encoded = [(key, facts, base64.b64encode(_png(image)).decode()) for key, facts, image in tiles]
        write_bytes(html, page.render(out=out, text=text, tiles=encoded).encode())
        print(f"{html} written")


def describe(out: Path, manifest: Manifest, name: str = "") -> str:
    """Format the manifest for people: settings, statistics, and a table of labels for each split.

    name: what to call the shards, by default the folder.
    """
    size = sum(shard.tar_bytes for shard in manifest.shards)
    images = sum(shard.samples for shard in manifest.shards)
    keys = [sample.key for sample in read_index(out / manifest.shards[0].index)[:3]]
    lines = [
        f"{name or out}: {images} images in {counted(len(manifest.shards), 'shard', 'shards')}, {size / 1e6:.1f} MB "
        f"({size / images / 1e3:.1f} kB per image), {manifest.rejected} of {manifest.settings['rows']} rows rejected",
        "settings: " + ", ".join(f"{name}={value}" for name, value in manifest.settings.items()),
        "written by: " + ", ".join(f"{name} {version}" for name, version in manifest.software.items()),
        f"pixels (train): mean {manifest.pixel_mean:.4f}, standard deviation {manifest.pixel_std:.4f} of full scale",
        f"fingerprint: {manifest.fingerprint()}",
        f"keys such as {', '.join(keys)}",
        *_describe_encoding(manifest),
        *(f"table: {table['name']}, {table['rows']} rows, sha256 {table['sha256'][:12]}…" for table in manifest.tables),
        *([f"duplicates: {Summary(**manifest.duplicates)}"] if manifest.duplicates else []),
        *(f"note: {note}" for note in manifest.notes),
    ]
    for split, counts in manifest.counts.items():
        lines += ["", f"{split}: {counts['images']} images of {counts['patients']} patients",
                  *(f"  {name}: " + ", ".join(f"{value} {count}" for value, count in values.items())
                    for name, values in manifest.demographics.get(split, {}).items()),
                  f"  {'finding':28}{'1':>8}{'0':>8}{'-1':>8}{'blank':>8}"]  # fmt: skip
        for finding, labels in manifest.labels[split].items():
            lines.append(f"  {finding:28}{labels['1']:8}{labels['0']:8}{labels['-1']:8}{labels['blank']:8}")
    return "\n".join(lines)


def _describe_encoding(manifest: Manifest) -> list[str]:
    """Describe how many JPEGs are their source's own, and how many the build encoded."""
    if manifest.settings["encoding"] != "jpeg":
        return []
    images = sum(shard.samples for shard in manifest.shards)
    kept = sum(shard.not_encoded for shard in manifest.shards)
    return [f"JPEGs: {kept} copied from their sources, without metadata; {images - kept} encoded"]


def choose_samples(out: Path, manifest: Manifest) -> list[tuple[Shard, Sample]]:
    """Choose up to 64 samples, evenly spaced over all shards, which are already in random order."""
    total = sum(shard.samples for shard in manifest.shards)
    numbers = np.unique(np.linspace(0, total - 1, SHEET).round().astype(int))
    chosen, start = [], 0
    for shard in manifest.shards:
        own = numbers[(numbers >= start) & (numbers < start + shard.samples)] - start
        if len(own):
            samples = read_index(out / shard.index)
            chosen += [(shard, samples[number]) for number in own]
        start += shard.samples
    return chosen


def _make_tile(out: Path, manifest: Manifest, shard: Shard, sample: Sample) -> tuple[str, str, Image.Image]:
    """Return the key, a one-line description and a square thumbnail of one sample."""
    size, encoding = manifest.settings["size"], manifest.settings["encoding"]
    suffixes = {1: "", -1: " (uncertain)"}
    square = Image.new("L", (TILE, TILE))
    try:
        content, text = (next(read_members(out, shard, [sample], ending))
                         for ending in (ENDINGS[encoding], "json"))  # fmt: skip
        image = Image.frombytes("L", (size, size), content) if encoding == "raw" else Image.open(io.BytesIO(content))
        image.thumbnail((TILE, TILE))
        described = json.loads(text)
        found = [name + suffixes[label] for name, label in described["labels"].items() if label in suffixes]
        facts = f"{shard.split}, {described['view'] or 'unknown view'}: {', '.join(found) or 'no finding marked'}"
    except (OSError, *PARSE_ERRORS) as error:
        raise InputError(f"{out / shard.tar}, image {sample.key}: can't be shown ({type(error).__name__}: {error}); "
                         f"{CURE}") from None  # fmt: skip
    square.paste(image, ((TILE - image.width) // 2, (TILE - image.height) // 2))
    return sample.key, facts, square


def _make_sheet(tiles: list[tuple[str, Image.Image]]) -> bytes:
    """Render (key, thumbnail) pairs as a PNG, eight in a row."""
    rows, row_height = -(-len(tiles) // COLUMNS), TILE + 14
    sheet = Image.new("L", (COLUMNS * TILE, rows * row_height))
    draw = ImageDraw.Draw(sheet)
    for number, (key, image) in enumerate(tiles):
        left, top = number % COLUMNS * TILE, number // COLUMNS * row_height
        sheet.paste(image, (left, top))
        draw.text((left + 2, top + TILE + 1), key if len(key) <= 25 else f"{key[:12]}…{key[-12:]}", fill=200)
    return _png(sheet)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
