"""Make a report (features, measurements, tables, page), all at once or merged from parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from probe.collapse import mark_collapsed
from probe.draws_file import write_draws
from probe.features import feature_keys, join_features, load_features, read_features
from probe.measure import Measured, Unit, combine, list_units, measure
from probe.names import split_spec
from probe.page.compose import compose
from probe.page.formats import to_markdown
from probe.page.inputs import describe_input
from probe.page.table import difference_table, score_table, with_mean
from probe.page.write import write_page
from probe.parts import read_parts, read_settings, units_of_part, write_part
from probe.published_protocol import NOISE
from probe.settings import Settings, from_plain
from probe.study import Study, open_study
from shard.errors import InputError
from shard.files import locked, write_bytes
from shard.settings_file import write_settings
from shard.tabular.sheet import to_csv
from train.device import resolve_device
from train.frozen_features import Features
from train.moved import locate_shards, resolve_moved_path
from train.weights.choose_network import split_key


def make_report(settings: Settings, part: int, parts: int) -> None:
    """Measure everything and write the report; with several parts, measure one and keep it for merge_report."""
    if not 0 <= part < parts:
        raise InputError(f"--part={part} --parts={parts}: parts are counted from 0 to {parts - 1}")
    device = torch.device(resolve_device(settings.device))
    study = open_study(settings)
    for encoder in study.encoders:
        for note in encoder.notes:
            print(f"{encoder.name}: {note}")
    units = units_of_part(list_units(study), part, parts)
    settings.out.mkdir(parents=True, exist_ok=True)
    with locked(settings.out, "report", shared=parts > 1):
        _measure_and_write(study, units, part, parts, device)


def _measure_and_write(study: Study, units: list[Unit], part: int, parts: int, device: torch.device) -> None:
    settings = study.settings
    needed = {unit.encoder for unit in units}
    features = _features(study, needed if parts > 1 else None, {})
    results = measure(study, units, features, device)
    if parts > 1:
        computed = [encoder for encoder in study.encoders if encoder.name in features]
        keys = feature_keys(computed, study.manifest, tuple(study.manifest.counts), device, settings.batch_size,
                            study.rows)  # fmt: skip
        path = write_part(study, part, parts, units, results, keys)
        print(f"{path}: {len(units)} units; once all parts exist: python -m probe merge {settings.out}")
        return
    _write_report(study, combine(units, results), features)


def merge_report(out: Path) -> None:
    """Write the report of the parts in `out`. Raises InputError if some are missing or belong to another report."""
    study = open_study(relocate(read_settings(out), out))
    with locked(out, "report"):
        units, results, keys = read_parts(study)
        _write_report(study, combine(units, results), _features(study, None, keys))


def relocate(settings: Settings, out: Path) -> Settings:
    """Adapt the settings of parts now in `out`: paths that moved with it are replaced."""
    plain = settings.plain()

    def here(path: str) -> str:
        return str(resolve_moved_path(path, plain["out"], out) or path)

    encoders = []
    for name, source in map(split_spec, plain["encoders"]):
        if source.path is not None:
            file, key = split_key(source.path)
            source = source._replace(path=Path(here(str(file)) + (f"::{key}" if key else "")))
        encoders.append(f"{name}={source}" if name else str(source))
    files = {name: here(plain[name]) for name in ("draws_file", "imagenet_weights") if plain[name] is not None}
    shards = locate_shards(plain["shards"], plain["out"], out) or plain["shards"]
    return from_plain({**plain, **files, "out": str(out), "encoders": encoders, "shards": shards})


def _features(study: Study, needed: set[str] | None, keys: Mapping[str, Sequence[str]]) -> dict[str, Features]:
    """Features of the study's images for the encoders with these names, or for all; NOISE needs those of the last one.

    keys: of features that parts of the report have cached. Only what the cache lacks is computed, and needs the device.
    """
    settings, cache = study.settings, study.settings.cache or study.settings.out / "features"
    encoders = [encoder for encoder in study.encoders
                if needed is None or encoder.name in needed
                or (NOISE in needed and encoder is study.encoders[-1])]  # fmt: skip
    cached = {name: [load_features(cache, key) for key in own] for name, own in keys.items()}
    cached = {name: parts for name, parts in cached.items() if all(part is not None for part in parts)}
    found = join_features(cached)
    if missing := [encoder for encoder in encoders if encoder.module is not None and encoder.name not in found]:
        found |= read_features(
            missing, settings.folder, study.manifest, tuple(study.manifest.counts), cache=cache,
            batch_size=settings.batch_size, device=torch.device(resolve_device(settings.device)),
            workers=settings.workers, rows=study.rows,
        )  # fmt: skip
    return {encoder.name: found[encoder.name] for encoder in encoders if encoder.name in found}


def _write_report(study: Study, measured: Measured, features: dict[str, Features]) -> None:
    out, study = study.settings.out, mark_collapsed(study, features)
    scores = with_mean(measured.scores, study.drawn, study.mean)
    table = score_table(scores, study.withheld)
    differences = difference_table(study.encoders, scores, study.tasks, study.headline, study.mean,
                                   study.withheld)  # fmt: skip
    page = compose(study, measured, table, differences, features)
    write_bytes(out / "draws.csv", write_draws(study.drawn, study.labels))
    labels = {"uncertain": study.settings.uncertain, "blank": study.settings.blank}
    reasons = {encoder.name: encoder.collapsed for encoder in study.encoders}
    inputs = {encoder.name: describe_input(encoder) for encoder in study.encoders}
    for name, frame in (("table.csv", table), ("differences.csv", differences)):
        notes = {"collapsed": reasons} | ({"input": inputs} if name == "table.csv" else {})
        columns = {title: [texts.get(encoder, "") for encoder in frame["encoder"]] for title, texts in notes.items()}
        write_bytes(out / name, to_csv(frame.assign(**columns, **labels)))
    write_page(out, page)
    write_settings(out / "report.toml", study.settings.chosen(), "python -m probe report")
    print(to_markdown(page.sheets()[:3], [page.headline, *page.verdicts, page.label_policy]))
    print(f"{out / 'report.html'} written")
