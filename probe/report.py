"""report and merge: settings → study → features → what is measured → tables, figures and one page."""

from __future__ import annotations

from pathlib import Path

import torch

from probe.collapse import mark_collapsed
from probe.draws_file import write_draws
from probe.features import read_features
from probe.measure import Measured, Unit, add_up, list_units, measure
from probe.names import split_key, split_spec
from probe.page.compose import compose
from probe.page.table import difference_table, score_table, to_markdown, with_mean
from probe.page.write import write_page
from probe.parts import read_parts, read_settings, units_of, write_part
from probe.settings import Settings, from_plain
from probe.study import Study, open_study
from shard.errors import InputError
from shard.files import locked, write_bytes
from shard.tabular.sheet import to_csv
from train.device import resolve_device
from train.frozen_features import Features
from train.moved import find_moved


def make_report(settings: Settings, part: int, parts: int) -> None:
    """Measure all of it and write the report, or measure one part and keep it for merge_report."""
    if not 0 <= part < parts:
        raise InputError(f"--part={part} --parts={parts}: parts are counted from 0 to {parts - 1}")
    study = open_study(settings)
    for encoder in study.encoders:
        for line in encoder.said:
            print(f"{encoder.name}: {line}")
    units = units_of(list_units(study), part, parts)
    settings.out.mkdir(parents=True, exist_ok=True)
    with locked(settings.out, "report", shared=parts > 1):
        _make(study, units, part, parts)


def _make(study: Study, units: list[Unit], part: int, parts: int) -> None:
    settings = study.settings
    needed = {unit.encoder for unit in units}
    features = _features(study, needed if parts > 1 else None)
    found = measure(study, units, features, torch.device(resolve_device(settings.device)))
    if parts > 1:
        path = write_part(study, part, parts, units, found)
        print(f"{path}: {len(units)} units; when all parts are there: python -m probe merge {settings.out}")
        return
    _write(study, add_up(units, found), features)


def merge_report(out: Path) -> None:
    """Write the report of the parts in `out`. Raises InputError where some are missing, or of another report."""
    study = open_study(_moved(read_settings(out), out))
    with locked(out, "report"):
        _write(study, add_up(*read_parts(study)), _features(study, None))


def _moved(settings: Settings, out: Path) -> Settings:
    """The settings of parts that lie in `out` now, which may have been moved, and with it what they were made of."""
    plain = settings.plain()

    def here(path: str, wanted: str = "") -> str:
        return str(find_moved(path, plain["out"], out, wanted) or path)

    encoders = []
    for name, path in map(split_spec, plain["encoders"]):
        file, key = split_key(path)
        there = here(str(file)) + (f"::{key}" if key else "")
        encoders.append(f"{name}={there}" if name else there)
    files = {name: here(plain[name]) for name in ("draws_file", "imagenet_weights") if plain[name] is not None}
    shards = here(plain["shards"], "manifest.json")
    return from_plain({**plain, **files, "out": str(out), "encoders": encoders, "shards": shards})


def _features(study: Study, needed: set[str] | None) -> dict[str, Features]:
    """The features of the encoders by these names, and of the last, of which pure noise is made; None for all."""
    settings = study.settings
    wanted = [one for one in study.encoders if needed is None or one.name in needed or one is study.encoders[-1]]
    return read_features(
        wanted, settings.shards, study.manifest, tuple(study.manifest.counts),
        cache=settings.cache or settings.out / "features", batch_size=settings.batch_size,
        device=torch.device(resolve_device(settings.device)), workers=settings.workers,
    )  # fmt: skip


def _write(study: Study, measured: Measured, features: dict[str, Features]) -> None:
    out, study = study.settings.out, mark_collapsed(study, features)
    scores = with_mean(measured.scores, study.drawn, study.mean)
    table = score_table(scores, study.withheld)
    differences = difference_table(study.encoders, scores, study.tasks, study.headline, study.mean,
                                   study.withheld)  # fmt: skip
    page = compose(study, measured, table, differences, features)
    write_bytes(out / "draws.csv", write_draws(study.drawn, study.labels))
    labels = {"uncertain": study.settings.uncertain, "blank": study.settings.blank}
    reasons = {one.name: one.collapsed for one in study.encoders}
    for name, found in (("table.csv", table), ("differences.csv", differences)):
        collapsed = [reasons.get(encoder, "") for encoder in found["encoder"]]  # pure noise is no encoder
        write_bytes(out / name, to_csv(found.assign(collapsed=collapsed, **labels)))
    write_page(out, page)
    print(to_markdown(page.sheets()[:2], [page.headline, *page.verdicts, page.labels_said]))
    print(f"{out / 'report.html'} written")
