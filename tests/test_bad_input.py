"""Each mistake a user makes: one line with the thing, the value and the cure, no traceback, nothing begun."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.conftest import Shards, run_main


@pytest.fixture
def place(tmp_path: Path, shards: Shards, radiographs: Path) -> Path:
    (tmp_path / "empty").mkdir()
    for name, text in (("empty-csv", ""), ("no-rows", "Path,Cardiomegaly\n"), ("no-path", "File,Cardiomegaly\na,1\n"),
                       ("no-image", "Path,Edema\nx/train/patient00001/study1/view1_frontal.jpg,1\n")):  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.csv").write_text(text)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "manifest.json").write_text('{"format": "cxr-simclr-shards/1"}')
    shutil.copytree(shards.folder, tmp_path / "short")
    tar = tmp_path / "short" / shards.manifest.shards[0].tar
    tar.write_bytes(tar.read_bytes()[:-512])
    return tmp_path


@pytest.mark.parametrize(
    ("command", "status", "wanted"),
    [
        ("shard build {place}/absent OUT", 1, ["absent: no such folder"]),
        ("shard build {place}/empty OUT", 1, ["neither train.csv", "--table=PATH"]),
        ("shard build {place}/empty-csv OUT", 1, ["train.csv: not a readable CSV"]),
        ("shard build {place}/no-rows OUT", 1, ["train.csv: no rows below the header"]),
        ("shard build {place}/no-path OUT", 1, ["train.csv has File, Cardiomegaly", "--dataset=csv --table="]),
        ("shard build {place}/no-image OUT", 1, ["view1_frontal.jpg: no such image"]),
        ("shard build {radiographs} OUT --max-rejects=2", 1, ["--max-rejects=2.0", "from 0 to 1"]),
        ("shard build {radiographs} OUT --part=0", 1, ["--part=0 --parts=None", "give both"]),
        ("shard build {radiographs} OUT --seed=-1", 1, ["--seed=-1"]),
        ("shard build {radiographs} {place}/short/manifest.json", 1, ["manifest.json/build: Not a directory"]),
        ("shard build {radiographs} OUT --quality=200", 1, ["--quality=200", "from 1 to 100"]),
        ("shard build {radiographs} OUT --dataset=padchst", 2, ["--dataset=padchst: not one of", "padchest"]),
        ("shard build {radiographs} OUT --part=3 --parts=2", 1, ["--part=3"]),
        ("shard merge {place}/empty", 1, ["contains no part-*.json"]),
        ("shard verify {place}/short --quick --decode", 1, ["give only one of them"]),
        ("shard verify {place}/old", 1, ["format 'cxr-simclr-shards/1'", "build into a new folder"]),
        ("shard info {place}/short", 1, [".tar:", "bytes, the manifest says"]),
        ("shard verify {place}/short", 1, [".tar:", "bytes, the manifest says"]),
        ("train --shards={place}/absent --out=OUT", 1, ["absent: no such folder", "python -m shard build"]),
        ("train --shards={place}/empty --out=OUT", 1, ["manifest.json: no such file", "python -m shard build"]),
        ("train --dali --shards={place}/short --out=OUT", 1, [".tar:", "bytes, the manifest says"]),
        ("train --shards={shards} --out=OUT --epoch=3", 2, ["--epoch", "did you mean --epochs?"]),
        ("train --shards={shards} --out=OUT --epochs=three", 2, ["--epochs=three", "whole number"]),
        ("train --shards={shards} --out=OUT --dali=maybe", 2, ["--dali=maybe", "true or false"]),
        ("train --shards={shards} --out=OUT --epochs=0", 1, ["--epochs=0", "from 1"]),
        ("train --shards={shards} --out=OUT --batch-size=4000", 1, ["--batch-size=4000", "lower it"]),
        ("train --shards={shards} --out=OUT --precision=fp16 --device=cpu", 1, ["--precision=fp16", "bf16"]),
        ("train --out=OUT", 2, ["shards"]),
        ("train status {place}/empty", 1, ["no run.json", "the folder of a run"]),
        ("train export {place}/empty --out=OUT.pth", 1, ["no checkpoint", "train first"]),
        ("train export {place}/empty --format=tf", 2, ["--format=tf", "torchvision, timm, safetensors, onnx"]),
        ("bench.step {shards} --rows=our --json=OUT", 1, ["no row 'our'", "published, plain-amp, ours"]),
        ("shard verify {shards} --workers=-7", 1, ["--workers=-7", "from 0 to 4096"]),
        ("bench.memory --batches=1 --modes=plain --json=OUT", 1, ["--batches=1", "from 2"]),
        ("bench.probe --tasks=4 --width=2 --json=OUT", 1, ["--tasks=4", "from 1 to 2"]),
        ("bench.memory --micro-batch=0 --json=OUT", 1, ["--micro-batch=0", "from 1"]),
        ("probe report {place}/absent --shards={shards} --out=OUT", 1, ["no such run or file of weights"]),
        ("probe report {place}/absent --shards={shards}", 1, ["no such run or file of weights"]),
        ("probe report {place}/empty --shards={shards} --out=OUT", 1, ["not a run of python -m train", "empty"]),
        ("probe report --shards={shards} --out=OUT", 1, ["no encoder; give a run"]),
        ("probe compare {trained} b={trained} --shards={shards}", 1, ["--out=DIR"]),
        ("probe report {trained} --shards={shards} --out=OUT --shots=10,ten", 1, ["--shots=ten", "whole numbers"]),
        ("probe report {trained} --shards={shards} --out=OUT --shots=0", 1, ["--shots=0", "from 1"]),
        ("probe report {trained} --shards={shards} --out=OUT --shots=all --finetune=1", 1, ["--finetune", "add one"]),
        ("probe report {trained} --shards={shards} --out=OUT --baselines=imagnet", 1, ["--baselines=imagnet"]),
        ("probe report {trained} --shards={shards} --out=OUT --part=2 --parts=2", 1, ["--part=2", "from 0 to 1"]),
        ("probe report {trained} --shards={shards} --out=OUT --protocol=papr", 2, ["did you mean paper?"]),
        ("probe merge {place}/empty", 1, ["no parts in", "--part=K --parts=N"]),
        ("probe report {trained} --shards={place}/empty --out=OUT", 1, ["manifest.json: no such file"]),
        ("probe report {trained} --shards={shards} --out=OUT --tasks=Cardiomegly", 1, ["Cardiomegly", "available:"]),
        ("probe report {trained} --shards={shards} --out=OUT --draws=0", 1, ["--draws=0"]),
        ("probe report {trained} --shards={shards} --out=OUT --shots=90", 1, ["--shots=90", "give fewer shots"]),
        ("pipeline preview {shards} --out=OUT --seed=-1", 1, ["--seed=-1"]),
        ("pipeline preview {place}/empty --out=OUT", 1, ["manifest.json: no such file"]),
        ("bench.io {place}/empty --json=OUT", 1, ["manifest.json: no such file"]),
    ],
)
def test_one_line_non_zero_and_nothing_begun(
    command: str, status: int, wanted: list[str], place: Path, shards: Shards, radiographs: Path, trained: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = place / "out"
    filled = command.format(place=place, shards=shards.folder, radiographs=radiographs, trained=trained)
    module, *arguments = filled.replace("OUT", str(out)).split(" ")
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        run_main(module)
    error = capfd.readouterr().err
    assert stop.value.code == status, error
    assert all(word in error for word in wanted), error
    assert error.count("\n") == 1
    assert not out.exists() or not any(out.iterdir())
