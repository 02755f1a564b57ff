"""Checkpoints are written atomically, hashed, loaded without code, and deleted except for some."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
import torch

from shard.errors import InputError
from shard.manifest import parse_manifest_text
from tests.conftest import Shards, newest, same_run, train_here
from train.checkpoint import (
    CorruptCheckpoint,
    list_checkpoints,
    load_checkpoint,
    load_newest_intact,
    save_checkpoint,
    step_of,
)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_newest_two_and_named_steps_are_kept(tmp_path: Path) -> None:
    for step in (1, 5, 9, 12):
        save_checkpoint(tmp_path, step, {"step": step}, keep=[1])
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [12, 9, 1]
    assert load_checkpoint(list_checkpoints(tmp_path)[0])["step"] == 12


def test_failed_save_keeps_previous_checkpoints(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"step": 1})
    before = names(tmp_path)
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, 2, {"step": (line for line in ())})  # generators cannot be pickled
    assert names(tmp_path) == before


def test_partial_file_of_a_killed_save_is_deleted(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"step": 1})
    (tmp_path / "checkpoints" / ".step-000000002-0123456789abcdef.pt.tmp").write_bytes(b"half")
    save_checkpoint(tmp_path, 3, {"step": 3})
    assert all(name.startswith("step-") for name in names(tmp_path))


def test_checkpoint_with_another_name_is_loaded(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, {"step": 1})
    assert load_checkpoint(path.rename(tmp_path / "resnet-50.pt"))["step"] == 1


def test_one_checkpoint_is_kept_per_step(tmp_path: Path) -> None:
    """A run interrupted at the end of an epoch saves the same step before and after that end."""
    save_checkpoint(tmp_path, 7, {"done": 7})
    save_checkpoint(tmp_path, 7, {"done": 0})
    assert [load_checkpoint(path)["done"] for path in list_checkpoints(tmp_path)] == [0]


@pytest.mark.parametrize("harm", ["cut", "flip", "empty"])
def test_truncated_or_corrupt_checkpoint_is_detected_by_its_hash(tmp_path: Path, harm: str) -> None:
    path = save_checkpoint(tmp_path, 1, {"step": 1, "weights": torch.zeros(1000)})
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    path.write_bytes({"cut": content[:-100], "flip": flipped, "empty": b""}[harm])
    with pytest.raises(CorruptCheckpoint,
                       match=r"step-000000001-\w+\.pt: truncated or corrupt .*remove it to resume from the previous"):
        load_checkpoint(path)


def test_other_formats_and_pickled_code_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save({"format": "cxr-simclr-checkpoint/1"}, path)
    with pytest.raises(InputError, match="format 'cxr-simclr-checkpoint/1', this version reads"):
        load_checkpoint(path)
    torch.save({"format": "cxr-simclr-checkpoint/4", "code": Path("x")}, path)
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_checkpoint(path)


def test_name_contains_the_hash_that_torch_hub_checks(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 3, {"weights": torch.arange(4)})
    said = torch.hub.HASH_REGEX.search(path.name)  # torch.hub checks downloads by it
    assert said is not None and len(said.group(1)) == 16
    assert torch.equal(torch.load(io.BytesIO(path.read_bytes()), weights_only=True)["weights"], torch.arange(4))


def test_load_newest_intact_without_intact_checkpoints(tmp_path: Path) -> None:
    assert load_newest_intact(tmp_path) is None
    path = save_checkpoint(tmp_path, 1, {"step": 1})
    path.write_bytes(b"")
    with pytest.raises(InputError, match=rf"{path.name}: truncated or corrupt, and there is no other; remove them"):
        load_newest_intact(tmp_path)


def test_run_resumes_from_the_checkpoint_before_a_corrupt_one(
    shards: Shards, trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train_here(shards, tmp_path, limit_steps=9)
    corrupt, good = list_checkpoints(tmp_path)
    corrupt.write_bytes(corrupt.read_bytes()[:-1])
    train_here(shards, tmp_path)
    said = capfd.readouterr().out
    assert re.search(rf"warning: {corrupt} is truncated or corrupt.* resumes from {good}", said)
    assert (corrupt.parent / f"corrupt-{corrupt.name}").exists() and not corrupt.exists()
    assert same_run(trained, tmp_path)


def test_milestones_and_the_best_checkpoint_are_kept(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a milestone every third epoch and scores whose best is in the middle."""
    monkeypatch.setattr("train.checkpointer.MILESTONE", 3)
    scores = iter([0.5, 0.9, 0.6, 0.7, 0.8, 0.9])  # a tie: the first stays

    def score(*_: object) -> dict[str, float]:
        return {"knn_auroc": 0.5, "linear_auroc": next(scores)}

    monkeypatch.setattr("train.online.OnlineProbe.score", score)
    train_here(shards, tmp_path, epochs=4, online_every=1, batch_size=48)  # two steps per epoch
    train_here(shards, tmp_path, epochs=6, online_every=1, batch_size=48)
    assert [step_of(path) // 2 for path in list_checkpoints(tmp_path)] == [6, 5, 3, 2]
    assert newest(tmp_path)["best"] == {"step": 4, "epoch": 2, "score": 0.9}


def test_checkpoints_and_shards_of_before_0_1_0_are_read(trained: Path, shards: Shards, tmp_path: Path) -> None:
    state = {**load_checkpoint(list_checkpoints(trained)[0]), "format": "cxr-simclr-checkpoint/3"}
    torch.save(state, tmp_path / "old.pt")
    assert load_checkpoint(tmp_path / "old.pt")["step"] == state["step"]
    content = (shards.folder / "manifest.json").read_text()
    assert '"format": "cxr-simclr-shards/3"' in content
    old = parse_manifest_text(content.replace("-shards/3", "-shards/2").encode(), "old")
    assert old.shards == shards.manifest.shards and old.fingerprint() == shards.manifest.fingerprint()
