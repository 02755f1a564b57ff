"""python -m probe embed: the report's features in one Parquet file, whatever the source, and whenever it was killed."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import torchvision

from probe.__main__ import COMMANDS
from probe.embed.embed import compute_missing, decisive, embed
from probe.embed.parts import begin_parts
from probe.embed.settings import EmbedSettings
from probe.embed.work import open_work
from probe.encoders import open_encoders
from probe.feature_parts import list_parts
from probe.features import read_features
from shard.cli import BoundCommand, bind
from shard.errors import InputError
from shard.files import sha256_of
from shard.manifest import read_manifest
from shard.read import read_labels
from shard.write import build
from tests.conftest import ROOT, Shards
from tests.odd_files import write_dicom
from train.weights.preprocessing import Input

SIZE = 48
FLAGS: dict[str, Any] = {"size": SIZE, "input": "imagenet", "device": "cpu", "workers": 1, "batch_size": 32}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights under torchvision's names."""
    file = tmp_path_factory.mktemp("weights") / "resnet.pt"
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), file)
    return file


@pytest.fixture(scope="module")
def features(weights: Path, shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("features") / "features.parquet"
    embed(str(weights), shards.folder, EmbedSettings(out=out, **FLAGS))
    return out


def matrix_of(file: Path) -> np.ndarray[Any, Any]:
    return np.stack(list(pd.read_parquet(file)["features"]))


def about(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(pq.read_schema(file).metadata[b"cxr-simclr"])
    return content


def test_features_equal_those_of_a_report_bit_for_bit(
    features: Path, weights: Path, shards: Shards, tmp_path: Path
) -> None:
    manifest, splits = shards.manifest, tuple(shards.manifest.counts)
    encoders = open_encoders([f"A={weights}"], (), default=Input(SIZE, manifest.pixel_mean, manifest.pixel_std),
                             size=SIZE, imagenet_weights=None, seed=0, inputs="A:imagenet")  # fmt: skip
    expected = read_features(encoders, shards.folder, manifest, splits, cache=tmp_path, batch_size=32,
                             device=torch.device("cpu"), workers=2)["A"]  # fmt: skip
    found = matrix_of(features)
    assert found.dtype == np.float32 and np.array_equal(found, expected) and found.std() > 0
    labels, rows = read_labels(shards.folder, manifest, splits), pd.read_parquet(features)
    assert rows.columns.tolist() == [*labels.columns, "features"]
    for name in labels.columns:
        known = labels[name].replace("", np.nan) if name in ("view", "sex") else labels[name]
        one, other = (values.astype(object).fillna("blank").tolist() for values in (rows[name], known))
        assert one == other, name
    assert rows[list(manifest.findings)].isna().any(axis=None) and rows["sex"].isin(["F", "M"]).any()


def test_metadata_tell_weights_preprocessing_and_images(features: Path, weights: Path, shards: Shards) -> None:
    told = about(features)
    assert told["format"] == "cxr-simclr-features/1" and told["images"] == 121 and told["width"] == 512
    assert told["encoder"]["architecture"] == "resnet18" and told["encoder"]["file"] == str(weights)
    assert told["encoder"]["file_sha256"] == sha256_of(weights)
    assert "0.485/0.456/0.406" in told["encoder"]["notes"][-1]
    assert told["encoder"]["pooling"] == "mean over positions"
    assert told["input"] == {"size": SIZE, "interpolation": "bilinear", "mean": [0.485, 0.456, 0.406],
                             "std": [0.229, 0.224, 0.225], "stated": "from --input", "ignored": "",
                             "unstated": ["interpolation"]}  # fmt: skip
    assert told["shards"]["fingerprint"] == shards.manifest.fingerprint()
    assert told["shards"]["settings"] == shards.manifest.settings and told["shards"]["rejected"] == 0
    assert told["versions"]["torch"] == torch.__version__.split("+")[0]
    words = told["command"].split()
    assert words[:5] == ["python", "-m", "probe", "embed", str(weights)] and f"--out={features}" in words
    call = bind("python -m probe", COMMANDS, words[3:])
    assert isinstance(call, BoundCommand)
    assert call.arguments().arguments["settings"] == EmbedSettings(out=features, **FLAGS)


def test_same_command_again_does_nothing_and_another_is_refused(
    features: Path, weights: Path, shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = features.read_bytes(), features.stat().st_mtime_ns
    embed(str(weights), shards.folder, EmbedSettings(out=features, **FLAGS))
    assert "already written; nothing to do" in capsys.readouterr().out
    for changed, message in (({"dtype": "float16"}, "dtype 'float32' there, 'float16' now"),
                             ({"size": 40}, "weights '"),
                             ({"splits": ("valid",)}, r"splits \['train', 'valid'\] there")):  # fmt: skip
        with pytest.raises(InputError, match=rf"{features}: has other features \({message}.*; choose another --out"):
            embed(str(weights), shards.folder, EmbedSettings(out=features, **{**FLAGS, **changed}))
    assert (features.read_bytes(), features.stat().st_mtime_ns) == before
    other = tmp_path / "other.parquet"
    pd.DataFrame({"a": [1]}).to_parquet(other)
    with pytest.raises(InputError, match=r"is not a file of python -m probe embed .*remove it"):
        embed(str(weights), shards.folder, EmbedSettings(out=other, **FLAGS))


@pytest.mark.long
def test_run_killed_while_it_computes_ends_with_the_bytes_of_an_uninterrupted_one(
    weights: Path, shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = EmbedSettings(out=tmp_path / "features.parquet", **{**FLAGS, "size": 96})
    embed(str(weights), shards.folder, settings)
    expected = settings.out.read_bytes()
    for _ in range(5):  # a process may end before it is killed
        settings.out.unlink()
        command = [sys.executable, "-m", "probe", "embed", str(weights), str(shards.folder), f"--out={settings.out}",
                   "--size=96", "--input=imagenet", "--device=cpu", "--workers=1", "--batch-size=32"]  # fmt: skip
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and not list(settings.parts.glob("train-*.npy")):
            time.sleep(0.002)
        process.kill()
        _, error = process.communicate()
        if process.returncode == -signal.SIGKILL and settings.parts.exists():
            break
        assert process.returncode in (0, -signal.SIGKILL), error
    assert not settings.out.exists() and not list(settings.parts.glob("valid-*.npy"))
    (kept,) = settings.parts.glob("train-*.npy")
    moment = kept.stat().st_mtime_ns
    for changed, message in (({"batch_size": 16}, "batch_size 32 there, 16 now"), ({"size": 64}, "weights '")):
        with pytest.raises(InputError, match=rf"parts: has unfinished features of another command \({message}"):
            embed(str(weights), shards.folder, EmbedSettings(out=settings.out, **{**FLAGS, "size": 96, **changed}))
    assert kept.stat().st_mtime_ns == moment
    capsys.readouterr()
    embed(str(weights), shards.folder, settings)
    assert "97 of 121 images are already computed" in capsys.readouterr().out
    assert settings.out.read_bytes() == expected and not settings.parts.exists()


def test_missing_and_corrupt_parts_within_a_split_are_computed_again(
    features: Path, weights: Path, shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("probe.feature_parts.IMAGES", 32)  # four parts in train
    settings = EmbedSettings(out=tmp_path / "features.parquet", **FLAGS)
    work = open_work(str(weights), shards.folder, settings)
    begin_parts(settings.parts, decisive(work))
    compute_missing(work)
    for number in (32, 96):
        (part,) = settings.parts.glob(f"train-{number:09d}-*.npy")
        if number == 32:
            part.unlink()
        else:
            part.write_bytes(part.read_bytes()[:-1] + b"x")
    kept = {part: part.stat().st_mtime_ns for part in settings.parts.glob("*.npy") if "096" not in part.name}
    assert len(kept) == 3
    compute_missing(work)
    assert {part: part.stat().st_mtime_ns for part in kept} == kept
    embed(str(weights), shards.folder, settings)
    assert np.array_equal(matrix_of(settings.out), matrix_of(features))
    assert pq.ParquetFile(settings.out).num_row_groups == 5
    found, expected = (pd.read_parquet(file).drop(columns="features") for file in (settings.out, features))
    pd.testing.assert_frame_equal(found, expected)


def test_parts_are_whole_batches_and_cover_each_split_once() -> None:
    chosen = {"train": range(9700), "valid": [2 * number for number in range(1200)], "test": []}
    for batch in (7, 128, 1024, 5000):
        parts = list_parts(chosen, batch)
        numbers = [(part.split, number) for part in parts for number in part.numbers]
        assert numbers == [(split, number) for split, own in chosen.items() for number in own]
        assert all(part.images % batch == 0 or part.numbers[-1] == chosen[part.split][-1] for part in parts)
        assert all(0 < part.images <= max(batch, 1024) for part in parts) and len(parts) < 16


def test_full_disk_leaves_no_file_and_the_same_command_continues(
    features: Path, weights: Path, shards: Shards, small_disk: Path
) -> None:
    settings = EmbedSettings(out=small_disk / "features.parquet", **FLAGS)
    filler = small_disk / "filler"
    for free in (100_000, 330_000):  # no room for a part, then for the parts but not for the file
        filler.write_bytes(bytes(1_500_000 - free))
        with pytest.raises(OSError, match="No space left on device"):
            embed(str(weights), shards.folder, settings)
        assert not settings.out.exists() and not list(small_disk.glob(".*.tmp"))
    filler.unlink()
    embed(str(weights), shards.folder, settings)
    assert np.array_equal(matrix_of(settings.out), matrix_of(features))


def test_source_is_sharded_as_by_the_sharder_and_its_paths_are_a_column(
    radiographs: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "features.parquet"
    embed(str(weights), radiographs, EmbedSettings(out=out, splits=("valid",), **FLAGS))
    build(radiographs, tmp_path / "shards", workers=1)
    assert read_manifest(out.with_suffix(".shards")).fingerprint() == read_manifest(tmp_path / "shards").fingerprint()
    rows = pd.read_parquet(out)
    assert set(rows["split"]) == {"valid"} and len(rows) == 24
    assert all((radiographs / path).is_file() for path in rows["path"]) and rows["path"].is_unique
    assert [Path(path).parent.parent.name for path in rows["path"]] == rows["patient"].tolist()
    direct = tmp_path / "direct.parquet"
    embed(str(weights), tmp_path / "shards", EmbedSettings(out=direct, splits=("valid",), **FLAGS))
    assert np.array_equal(matrix_of(out), matrix_of(direct))
    assert direct.with_suffix(".shards").exists() is False and "path" not in pd.read_parquet(direct)


def test_folder_of_dicoms_needs_neither_table_nor_training_image(weights: Path, tmp_path: Path) -> None:
    src = tmp_path / "exports"
    for number in range(3):
        values = np.add.outer(np.arange(90), np.arange(80)).astype(np.uint16) * (number + 3)
        (src / "sub").mkdir(parents=True, exist_ok=True)
        write_dicom(src / "sub" / f"1.2.{number}.dcm", values, PatientID="P1", PatientAge="057Y", PatientSex="F",
                    ViewPosition="PA")  # fmt: skip
    (src / "broken.dcm").write_bytes((src / "sub" / "1.2.0.dcm").read_bytes()[:3000])
    settings = EmbedSettings(out=tmp_path / "features.parquet", **FLAGS)
    with pytest.raises(InputError, match=r"1 of 4 rows rejected.* run again with --max-rejects=0.25"):
        embed(str(weights), src, settings)
    embed(str(weights), src, EmbedSettings(out=settings.out, max_rejects=0.25, **FLAGS))
    rows = pd.read_parquet(settings.out)
    assert rows["split"].tolist() == ["test"] * 3  # by the hash of the only patient
    assert sorted(rows["path"]) == [f"sub/1.2.{number}.dcm" for number in range(3)]
    assert rows[["patient", "view", "sex", "age"]].drop_duplicates().to_numpy().tolist() == [["P1", "PA", "F", 57.0]]
    assert "broken.dcm" in (settings.shards / "rejects.csv").read_text()
    assert about(settings.out)["shards"]["rejected"] == 1
    manifest = read_manifest(settings.shards)
    assert set(manifest.counts) == {"test"} and 0 < manifest.pixel_mean < 1
    for file in settings.shards.iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"exists, but .*shards, with the images .*, does not; to compute it again"):
        embed(str(weights), src, EmbedSettings(out=settings.out, max_rejects=0.25, **FLAGS))


def test_run_is_embedded_from_its_newest_checkpoint(trained: Path, shards: Shards, tmp_path: Path) -> None:
    out = tmp_path / "features.parquet"
    embed(f"A={trained}", shards.folder, EmbedSettings(out=out, dtype="float16", splits=("valid",), device="cpu"))
    told, full = about(out), tmp_path / "full.parquet"
    newest = sorted((trained / "checkpoints").iterdir())[-1]
    assert told["encoder"]["file"] == str(newest.absolute()) and told["encoder"]["file_sha256"] == sha256_of(newest)
    assert told["encoder"]["name"] == "A" and told["input"]["size"] == 32 and len(told["input"]["mean"]) == 1
    embed(str(newest), shards.folder, EmbedSettings(out=full, splits=("valid",), device="cpu"))
    assert matrix_of(out).dtype == np.float16
    assert np.array_equal(matrix_of(out), matrix_of(full).astype(np.float16))


def test_features_beyond_float16_are_refused(weights: Path, shards: Shards, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)
    state["layer4.1.bn2.weight"] *= 1e7
    torch.save(state, tmp_path / "large.pt")
    flags = {**FLAGS, "splits": ("valid",), "dtype": "float16"}
    with pytest.raises(InputError, match=r"--dtype=float16: large has a feature of .*; use --dtype=float32"):
        embed(str(tmp_path / "large.pt"), shards.folder, EmbedSettings(out=tmp_path / "f.parquet", **flags))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"encoder": "missing.pt"}, "missing.pt: no such run or file of weights"),
        ({"src": "missing"}, "missing: no such folder"),
        ({"src": "empty"}, "empty: contains no images"),
        ({"splits": ("test",)}, "--splits=test: .* has no split 'test'; available: train, valid"),
        ({"src": "pictures", "splits": ("test",)}, "--splits=test: .*pictures has no split 'test'; available: train$"),
        ({"src": "pictures", "table": Path("table.csv")}, "table.csv: every row repeats or contradicts another"),
        ({"dataset": "nih"}, "--dataset=nih: only applies to a folder of images, but .* has shards"),
        ({"max_rejects": 0.5}, "--max-rejects=0.5: only applies to a folder of images"),
        ({"out": "features.csv"}, r"--out=features.csv: must end in .parquet.*; give --out=features.parquet"),
        ({"out": "folder.parquet"}, "is a folder; give a file in it"),
        ({"input": "imagenett"}, "--input=resnet:imagenett: not understood"),
    ],
)  # fmt: skip
def test_unusable_input_is_refused_in_one_line_and_nothing_is_written(
    weights: Path, shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any],
    message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "folder.parquet", "pictures"):
        Path(name).mkdir()
    Path("pictures", "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Path("table.csv").write_text("path,patient\na.png,p\na.png,q\n")
    before = sorted(tmp_path.rglob("*"))
    given = {"encoder": weights, "src": shards.folder, "out": "features.parquet", **FLAGS, **changed}
    encoder, src, out = (given.pop(name) for name in ("encoder", "src", "out"))
    with pytest.raises(InputError, match=message):
        embed(str(encoder), Path(src), EmbedSettings(out=Path(out), **given))
    assert sorted(tmp_path.rglob("*")) == before


def test_missing_package_is_named_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match=r"writing Parquet needs a package: pip install '.\[embed\]'"):
        embed("missing.pt", tmp_path, EmbedSettings(out=tmp_path / "features.parquet"))


def test_documented_python_reads_the_file(
    features: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"<!-- run -->\n```python\n(.*?)```", (ROOT / "docs" / "features.md").read_text(), re.S)
    monkeypatch.chdir(features.parent)
    names: dict[str, Any] = {}
    exec(compile(code, "features.md", "exec"), names)
    assert re.search(r"AUROC [01]\.\d{3} on \d+ images", capsys.readouterr().out)
    assert np.array_equal(names["matrix"], matrix_of(features)[-len(names["matrix"]) :])
