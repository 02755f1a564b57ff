"""A run resumes only under the settings it started with: others are listed in a table, harmless ones allowed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pipeline.loader import has_dali
from shard.errors import InputError
from shard.write import build
from tests.conftest import SETTINGS, Shards, newest, run_module, train_here
from train import fingerprint
from train.config import MAY_CHANGE_ON_RESUME, Config


@pytest.fixture(scope="module")
def started(shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run three steps into its first epoch."""
    run = tmp_path_factory.mktemp("started")
    train_here(shards, run, limit_steps=3)
    return run


@pytest.mark.parametrize(
    ("settings", "row"),
    [({"lr": 2e-3}, "lr 0.001 0.002"), ({"temperature": 0.1}, "temperature 0.5 0.1"), ({"seed": 1}, "seed 0 1"),
     ({"batch_size": 8}, "batch_size 16 8"), ({"micro_batch": 4}, "micro_batch 0 4"), ({"clip": 1.0}, "clip 0.0 1.0"),
     ({"arch": "resnet34"}, "arch timm/test_resnet resnet34"),
     ({"optimizer": "adamw"}, "optimizer adam adamw"), ({"weight_decay": 0.1}, "weight_decay 0.0 0.1")],
)  # fmt: skip
def test_other_settings_are_refused_with_a_table(
    shards: Shards, started: Path, settings: dict[str, Any], row: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (name,) = settings
    with pytest.raises(InputError, match=rf"saved under other settings, code or data: {name}") as error:
        train_here(shards, started, **settings)
    assert [line.split() for line in capfd.readouterr().err.splitlines()][:2] == [["there", "now"], row.split()]
    assert (f"--accept={name}" in str(error.value)) == (name not in fingerprint.NEVER_ACCEPTED)
    assert newest(started)["step"] == 3


def test_other_schedule_is_refused_and_shows_epochs(
    shards: Shards, started: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="saved under other settings, code or data: epochs, schedule; "):
        train_here(shards, started, schedule="cosine")
    assert [line.split() for line in capfd.readouterr().err.splitlines()] == [
        ["there", "now"], ["epochs", "any", "2"], ["schedule", "constant", "cosine"]]  # fmt: skip


def test_other_shards_are_refused(shards: Shards, started: Path, radiographs: Path, tmp_path: Path) -> None:
    build(radiographs, tmp_path / "others", size=64, shard_size=40, workers=1)
    with pytest.raises(InputError, match="saved under other settings, code or data: shards"):
        train_here(dataclasses.replace(shards, folder=tmp_path / "others"), started)


@pytest.mark.skipif(not has_dali(), reason="NVIDIA DALI is not installed")
def test_another_backend_is_refused(shards: Shards, started: Path) -> None:
    with pytest.raises(InputError, match="saved under other settings, code or data: dali, backend;"):
        train_here(shards, started, dali=False)


@pytest.mark.parametrize("name", ["code", "torch"])
def test_other_code_and_versions_are_refused_and_can_be_accepted(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with monkeypatch.context() as patch:
        if name == "code":
            patch.setattr(fingerprint, "hash_code", lambda: "0123")
        else:
            real = fingerprint.version_of
            patch.setattr(fingerprint, "version_of", lambda package: "1.0" if package == name else real(package))
        train_here(shards, tmp_path, limit_steps=2)
    with pytest.raises(InputError, match=rf"saved under other settings, code or data: {name}; .*--accept={name}$"):
        train_here(shards, tmp_path, limit_steps=3)
    train_here(shards, tmp_path, limit_steps=3, accept=(name,))
    assert newest(tmp_path)["step"] == 3
    with pytest.raises(InputError, match="--accept=cod: cod is not one of the differences; nothing differs"):
        train_here(shards, tmp_path, accept=("cod",))


def test_accepted_weight_decay_is_applied(shards: Shards, started: Path) -> None:
    train_here(shards, started, limit_steps=4, weight_decay=0.5, accept=("weight_decay",))
    assert [group["weight_decay"] for group in newest(started)["optimizer"]["param_groups"]] == [0.5, 0.0]
    train_here(shards, started, limit_steps=5, accept=("weight_decay",))  # for the following tests


def test_harmless_changes_are_allowed(shards: Shards, started: Path) -> None:
    train_here(shards, started, limit_steps=6, workers=1, log_every=7, checkpoint_minutes=3.0, online_every=0, epochs=9,
               recompute=True)  # fmt: skip
    assert newest(started)["step"] == 6


def test_end_of_a_cosine_schedule_is_decisive(tmp_path: Path) -> None:
    config = Config(shards=tmp_path, out=tmp_path, **SETTINGS)
    assert config.decisive()["epochs"] == "any"
    assert dataclasses.replace(config, schedule="cosine").decisive()["epochs"] == 2


def test_every_setting_is_decisive_or_harmless(tmp_path: Path) -> None:
    names = {field.name for field in dataclasses.fields(Config)}
    assert names >= MAY_CHANGE_ON_RESUME
    assert set(Config(shards=tmp_path, out=tmp_path).decisive()) == names - MAY_CHANGE_ON_RESUME | {"epochs"}


def test_code_hash_ignores_comments_and_docstrings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "ROOT", tmp_path)

    def hash_of(text: str) -> str:
        (tmp_path / "one.py").write_text(text)
        return fingerprint.hash_code(("one.py",))

    plain = hash_of('"""A module."""\n\ndef f(x):\n    """Promise."""\n    return x + 1\n')
    assert plain == hash_of('"""Other words."""\n# why\ndef f(x):\n    return x + 1  # because\n')
    assert plain != hash_of("def f(x):\n    return x + 2\n")


def test_hashed_files_exist() -> None:
    assert all((fingerprint.ROOT / name).is_file() for name in fingerprint.CODE)


def test_all_modules_that_make_views_are_hashed() -> None:
    files = {path.relative_to(fingerprint.ROOT).as_posix() for path in (fingerprint.ROOT / "pipeline").rglob("*.py")}
    # workers only transports batches, fetch_ahead only delays them
    others = ("__init__", "fused/__init__", "__main__", "preview", "workers", "fetch_ahead")
    assert files - {*fingerprint.CODE} == {f"pipeline/{name}.py" for name in others}


def test_all_modules_that_compute_over_ranks_are_hashed() -> None:
    files = {path.name for path in (fingerprint.ROOT / "train/distributed").glob("*.py")}
    hashed = {name.removeprefix("train/distributed/") for name in fingerprint.CODE}
    assert files - hashed == {"__init__.py", "gpu.py", "process_group.py", "ranks.py", "watcher.py"}


def test_ranks_may_differ_only_between_epochs(tmp_path: Path) -> None:
    def check(between_epochs: bool) -> None:
        fingerprint.check_fingerprint(tmp_path, {"ranks": 1}, {"ranks": 2}, between_epochs=between_epochs, accept=())

    check(between_epochs=True)
    with pytest.raises(InputError, match="the number of ranks can change only between epochs"):
        check(between_epochs=False)


def test_command_refuses_without_a_traceback(shards: Shards, started: Path) -> None:
    done = run_module("train", f"--shards={shards.folder}", f"--out={started}", "--batch-size=16", "--size=32",
                      "--device=cpu")  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    table, complaint = [line.split() for line in done.stderr.splitlines()[:-1]], done.stderr.splitlines()[-1]
    assert ["arch", "timm/test_resnet", "resnet50"] in table
    assert "restore them, or train from scratch with another --out" in complaint and "--accept" not in complaint
