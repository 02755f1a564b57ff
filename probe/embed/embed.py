"""The embed command: write the features of all images of shards, or of a source, to a Parquet file."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from probe.collapse import describe_collapse
from probe.embed.description import describe, stated_identity, versions
from probe.embed.parquet_file import check_pyarrow, make_schema, make_table, read_description, write_features_file
from probe.embed.parts import begin_parts, key_of
from probe.embed.settings import EmbedSettings
from probe.embed.work import Work, open_work
from probe.encoder import Encoder
from probe.feature_parts import Part, compute_parts
from probe.features import CODE, load_features, save_features
from probe.full_precision import device_name
from shard.address import Place
from shard.errors import InputError
from shard.files import locked
from shard.progress import Progress
from shard.read import as_label_frame, iter_label_rows
from shard.record import first_difference
from train.fingerprint import hash_code
from train.frozen_features import Features

if TYPE_CHECKING:  # an optional package
    import pyarrow as pa

FEWEST, MOST = 100, 1000  # images, evenly spaced, whose features show whether the encoder has collapsed
LARGEST_HALF = float(np.finfo(np.float16).max)


def embed(given: str, src: Place, settings: EmbedSettings) -> None:
    """Write the features of an encoder; resume if an earlier process was stopped. Raises InputError."""
    check_pyarrow()
    work = open_work(given, src, settings)
    out = settings.out
    if out.exists():
        if difference := first_difference(stated_identity(read_description(out)), work.identity()):
            raise InputError(f"{out}: has other features ({difference}); choose another --out or remove it")
        shutil.rmtree(settings.parts, ignore_errors=True)
        print(f"{out}: these features are already written; nothing to do")
        return
    for note in work.encoder.notes:
        print(f"{work.encoder.name}: {note}")
    begin_parts(settings.parts, decisive(work))
    with locked(settings.parts, "embed"):
        compute_missing(work)
        write_parts(work)
    shutil.rmtree(settings.parts, ignore_errors=True)  # a network file system may keep the lock for a while


def decisive(work: Work) -> dict[str, Any]:
    """Return all that decides the bits of the features, by name."""
    return {**work.identity(), "batch_size": work.settings.batch_size, "backend": work.backend,
            "device": device_name(work.device), "code": hash_code(CODE), **versions()}  # fmt: skip


def compute_missing(work: Work) -> None:
    """Compute the features of the parts that are missing in the folder of parts, and keep each as it is finished."""
    settings, encoder = work.settings, work.encoder
    missing = [part for part in work.list_parts() if load_features(settings.parts, key_of(part)) is None]
    done = work.images - sum(part.images for part in missing)
    if done > 0:
        print(f"{settings.parts}: {done} of {work.images} images are already computed")
    if not missing:
        return
    with Progress("features", work.images, before=done) as progress:
        computed = compute_parts(
            [(part, [encoder]) for part in missing], work.shards, work.manifest, backend=work.backend,
            batch_size=settings.batch_size, device=work.device, workers=settings.workers, progress=progress,
        )  # fmt: skip
        for part, (features,) in zip(missing, computed, strict=True):
            _check_fits(encoder, features, settings)
            save_features(settings.parts, key_of(part), features.astype(settings.dtype))


def _check_fits(encoder: Encoder, features: Features, settings: EmbedSettings) -> None:
    if settings.dtype == "float16" and (largest := np.abs(features).max()) > LARGEST_HALF:
        raise InputError(f"--dtype=float16: {encoder.name} has a feature of {largest:g}, and float16 ends at "
                         f"{LARGEST_HALF:g}; use --dtype=float32")  # fmt: skip


def write_parts(work: Work) -> None:
    """Write the file from the parts, in the order of the shards, a part at a time."""
    settings, parts = work.settings, work.list_parts()
    width = _load(work, parts[0]).shape[1]
    schema = make_schema(work.manifest.findings, width, settings.dtype, paths=bool(work.paths),
                         description=describe(work, width))  # fmt: skip
    sample: list[Features] = []
    with Progress("writing", work.images) as progress:
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        write_features_file(settings.out, schema, _tables(work, schema, parts, sample, progress))
    print(f"{settings.out}: {work.images} images × {width} features, {settings.out.stat().st_size / 1e6:.1f} MB")
    if work.images >= FEWEST and (evidence := describe_collapse(np.concatenate(sample))):
        print(f"warning: {work.encoder.name} has collapsed: {evidence}")


def _tables(
    work: Work, schema: pa.Schema, parts: Sequence[Part], sample: list[Features], progress: Progress
) -> Iterator[pa.Table]:
    """Yield the rows of each part, and add the features of some images to `sample`."""
    findings, done, step = work.manifest.findings, 0, math.ceil(work.images / MOST)
    for split in work.splits:
        rows = iter_label_rows(work.shards, work.manifest.of_split(split), findings)
        for part in parts:
            if part.split != split:
                continue
            features, labels = _load(work, part), as_label_frame(islice(rows, part.images), findings)
            sample.append(features[-done % step :: step].astype(np.float32))
            paths = [work.paths[key] for key in labels["key"]] if work.paths else None
            yield make_table(schema, labels, findings, features, paths)
            done += part.images
            progress.show(done)


def _load(work: Work, part: Part) -> Features:
    features = load_features(work.settings.parts, key_of(part))
    if features is None or len(features) != part.images:
        raise InputError(f"{work.settings.parts}: the features of {key_of(part)} are missing; run the same command "
                         "again")  # fmt: skip
    return features
