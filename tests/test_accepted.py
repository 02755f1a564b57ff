"""Changes allowed by --accept appear in the checkpoint, run.json, status, the model card and every report."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from probe.page.notes import list_commands, list_facts, list_notes
from probe.settings import Settings
from probe.study import open_study
from shard.cli import bind
from shard.errors import InputError
from tests.conftest import Shards, newest, same_run, train_here
from train.__main__ import COMMANDS
from train.accepted import UNRECORDED, accepted_changes, format_changes, parse_changes, record_changes, required_accepts
from train.checkpoint import list_checkpoints, save_checkpoint
from train.export.card_page import model_card_page
from train.export.export import export
from train.export.model_card import make_card
from train.journal import CARD, read_card
from train.reproduce import reproduction_commands
from train.status import status

CHANGED = ("lr 0.01 until step 6, 0.001 until step 9, then 0.002; temperature 0.05 until step 6, then 0.5; "
           "seed 0 until step 9, then 5")  # fmt: skip


@pytest.fixture(scope="module")
def changed(shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose settings changed after its first epoch and again within its second."""
    out = tmp_path_factory.mktemp("changed") / "run"
    train_here(shards, out, epochs=1, lr=1e-2, temperature=0.05)
    train_here(shards, out, limit_steps=9, accept=("lr", "temperature"))
    train_here(shards, out, lr=2e-3, seed=5, accept=("lr", "seed"))
    return out


def run_command(command: str) -> None:
    """Run one of our commands in this process, as a shell would."""
    words = shlex.split(command, comments=True)
    assert words[:3] == ["python", "-m", "train"]
    bind("python -m train", COMMANDS, words[3:])()


def test_all_records_of_a_run_report_changes(changed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wanted = [*record_changes(6, {"lr": (1e-2, 1e-3), "temperature": (0.05, 0.5)}),
              *record_changes(9, {"lr": (1e-3, 2e-3), "seed": (0, 5)})]  # fmt: skip
    assert newest(changed)["accepted"] == wanted and json.loads((changed / CARD).read_text())["accepted"] == wanted
    assert format_changes(wanted) == CHANGED
    capfd.readouterr()
    status(changed)
    assert f"; preset published, changed by --accept: {CHANGED}\n" in capfd.readouterr().out
    export(changed, format="safetensors", out=changed / "e.safetensors")
    page = (changed / "e.md").read_text()
    assert f"by SimCLR (preset published, changed by --accept: {CHANGED})" in page
    assert "\n- lr: 0.002 (0.01 until step 6, 0.001 until step 9)\n" in page
    assert "\n- seed: 5 (0 until step 9)\n" in page
    assert "## Accepted" in page and "- accept:" not in page


def test_run_without_changes_reports_none(trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert newest(trained)["accepted"] == [] and read_card(trained)["accepted"] == []
    capfd.readouterr()
    status(trained)
    page = model_card_page("torchvision", "x.pth", make_card(newest(trained), 512, []) | {"note": "", "channels": 3})
    assert "accept" not in capfd.readouterr().out + page.lower()


def test_report_shows_changes_and_its_commands_reproduce_the_run(
    changed: Path, shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(changed.parent)
    study = open_study(Settings(encoders=("run",), shards=shards.folder, out=tmp_path / "report", shots=("2",), draws=1,
                                baselines=("thumbnail",), tasks=("Lung Opacity",)))  # fmt: skip
    assert any(f"by --accept: {CHANGED}" in note for note in list_notes(study))
    (facts,) = (facts for title, facts in list_facts(study) if "settings of its pre-training" in title)
    assert facts["changed by --accept"] == CHANGED
    *commands, report = list_commands(study)
    assert len(commands) == 3 and f"report {changed} --shards={shards.folder}" in report  # absolute paths
    for number, command in enumerate(commands):
        assert f"--out={changed}" in command and f"--shards={shards.folder}" in command
        assert ("--limit-steps=6", "--limit-steps=9", "")[number] in command
        run_command(command.replace(f"--out={changed}", f"--out={tmp_path / 'again'}"))
    assert same_run(changed, tmp_path / "again")
    run_command(commands[-1])  # the finished run is not changed
    export(changed, out=tmp_path / "e.pth")
    moved = tmp_path / "moved"
    shutil.copytree(changed, moved)
    both = open_study(Settings(encoders=(str(tmp_path / "e.pth"), str(list_checkpoints(moved)[0])), shots=("2",),
                               shards=shards.folder, out=tmp_path, draws=1, baselines=(),
                               tasks=("Lung Opacity",)))  # fmt: skip
    assert CHANGED in both.encoders[0].source
    assert f"--out={moved} " in list_commands(both)[2]  # the run that contains the checkpoint


@pytest.mark.long
def test_commands_reproduce_stopped_and_branched_runs(shards: Shards, tmp_path: Path) -> None:
    train_here(shards, tmp_path / "a", limit_steps=4)
    train_here(shards, tmp_path / "b", limit_steps=5, resume=str(tmp_path / "a"), lr=2e-3, accept=("lr",))
    train_here(shards, tmp_path / "b", limit_steps=7, lr=2e-3)  # the change at its start is not repeated
    for name, count in (("a", 1), ("b", 1)):
        commands = reproduction_commands(newest(tmp_path / name), tmp_path / f"{name}-again", shards.folder)
        assert len(commands) == count, commands
        for command in commands:
            run_command(command)
        assert same_run(tmp_path / name, tmp_path / f"{name}-again")
    (origin,) = list_checkpoints(tmp_path / "a")
    origin.unlink()
    text = reproduction_commands(newest(tmp_path / "b"), tmp_path / "c", shards.folder)
    assert text[0] == f"# the run started from {origin}, which no longer exists"


@pytest.mark.parametrize("name", ["code", "torch", "pillow"])
def test_changes_without_a_flag_have_no_command(trained: Path, tmp_path: Path, name: str) -> None:
    state = newest(trained)
    state["accepted"] = record_changes(6, {name: ("a", "b"), "lr": (0.1, 0.01)})
    (text,) = reproduction_commands(state, tmp_path, tmp_path)
    assert text.startswith("# no command reproduces ") and f"{name} a until step 6, then b" in text and "lr" not in text


def test_commands_mention_other_code(trained: Path, tmp_path: Path) -> None:
    state = newest(trained)
    state["fingerprint"]["code"] = "other"
    remark, _ = reproduction_commands({**state, "commit": "abc"}, tmp_path, tmp_path)
    assert remark == "# requires the code of commit abc, which differs from this code"
    state["fingerprint"] |= {"ranks": 2, "threads": 3}
    state["accepted"] = record_changes(6, {"ranks": (1, 2), "threads": (4, 3)})
    _, first, second = reproduction_commands(state, tmp_path, tmp_path)
    assert first.startswith("OMP_NUM_THREADS=4 python -m train ") and first.endswith(" --limit-steps=6")
    assert second.startswith("OMP_NUM_THREADS=3 ") and second.endswith("--accept=ranks,threads  # on 2 ranks, started "
                                                                       "by srun or torchrun")  # fmt: skip


def test_checkpoint_without_recorded_changes_is_reported(trained: Path, tmp_path: Path) -> None:
    state = newest(trained)
    del state["accepted"]
    assert accepted_changes(state) == []
    state["config"]["accept"] = "lr,code"
    text = format_changes(accepted_changes(state))
    assert text.startswith(f"lr {UNRECORDED} until step 12, then 0.001; code {UNRECORDED} until step 12, then ")
    (line,) = reproduction_commands(state, tmp_path, tmp_path)
    assert line.startswith("# no command reproduces ")


def test_rank_changes_between_epochs_are_recorded(shards: Shards, tmp_path: Path) -> None:
    """They change the last bits of the weights without --accept."""
    train_here(shards, tmp_path, epochs=1)
    path = list_checkpoints(tmp_path)[0]
    state: dict[str, Any] = newest(tmp_path)
    del state["format"]
    path.unlink()
    state["fingerprint"]["ranks"] = 2
    save_checkpoint(tmp_path, state["step"], state)
    train_here(shards, tmp_path, limit_steps=7)
    assert newest(tmp_path)["accepted"] == record_changes(6, {"ranks": (2, 1)})


def test_settings_that_cannot_be_accepted_are_refused(shards: Shards, changed: Path, tmp_path: Path) -> None:
    shutil.copytree(changed, tmp_path / "run")
    for name, settings in (("batch_size", {"batch_size": 8}), ("shards", {}), ("arch", {"arch": "resnet34"})):
        with pytest.raises(InputError, match=f"--accept={name}: {name} cannot change in a resumed run"):
            train_here(shards, tmp_path / "run", lr=2e-3, seed=5, epochs=3, accept=(name,), **settings)
    with pytest.raises(InputError, match=r"lr, seed \(since --accept: lr 0.01 until step 6, 0.001 until step 9, then "
                                         r"0.002; seed 0 until step 9, then 5\); restore them"):  # fmt: skip
        train_here(shards, tmp_path / "run", epochs=3)  # the original settings
    assert len(newest(tmp_path / "run")["accepted"]) == 4


def test_status_repeats_accept_only_until_a_checkpoint_contains_the_change(
    shards: Shards, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train_here(shards, tmp_path, limit_steps=3, resume="never")
    train_here(shards, tmp_path, limit_steps=5, lr=1e-2, accept=("lr",))
    saved = list_checkpoints(tmp_path)[0]

    def next_command() -> str:
        capfd.readouterr()
        status(tmp_path)
        return capfd.readouterr().out.splitlines()[-1].split("next: ")[1]

    assert "--accept" not in next_command() and "--resume" not in next_command()
    saved.rename(tmp_path / "saved")  # as if the run was killed before the checkpoint was written
    assert "--accept=lr" in next_command()
    run_command(next_command())
    assert newest(tmp_path)["accepted"] == record_changes(3, {"lr": (1e-3, 1e-2)})
    assert required_accepts(["lr", "code"], record_changes(3, {"lr": (1, 2)}), 3) == ["lr"]


@pytest.mark.parametrize("content", [3, [3], [{}], [{"step": "3", "name": "lr", "then": 1, "now": 2}],
                                     [{"step": 3, "name": "lr", "then": [], "now": 2}]])  # fmt: skip
def test_malformed_changes_are_refused(content: object, trained: Path, tmp_path: Path) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        parse_changes(content)
    card = json.loads((trained / CARD).read_text())
    (tmp_path / CARD).write_text(json.dumps({**card, "accepted": content}))
    with pytest.raises(InputError, match="not written by a training run"):
        read_card(tmp_path)
