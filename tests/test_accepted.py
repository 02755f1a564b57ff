"""What --accept let through is remembered: by the checkpoint, run.json, status, the model card and every report."""

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
from train.accepted import UNRECORDED, changes_of, check_changes, list_changes, say_changes, still_to_accept
from train.checkpoint import list_checkpoints, save_checkpoint
from train.export.export import export
from train.export.model_card import make_card, model_card_page
from train.journal import CARD, read_card
from train.reproduce import reproduce_commands
from train.status import status

CHANGED = "lr 0.01 until step 6, 0.001 until step 9, then 0.002; temperature 0.05 until step 6, then 0.5; seed 0 until step 9, then 5"  # fmt: skip # noqa: E501


@pytest.fixture(scope="module")
def changed(shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run changed twice: after its first epoch, and within its second one."""
    out = tmp_path_factory.mktemp("changed") / "run"
    train_here(shards, out, epochs=1, lr=1e-2, temperature=0.05)
    train_here(shards, out, limit_steps=9, accept=("lr", "temperature"))
    train_here(shards, out, lr=2e-3, seed=5, accept=("lr", "seed"))
    return out


def run_here(command: str) -> None:
    """What a shell would do with a command of ours, in this process."""
    words = shlex.split(command, comments=True)
    assert words[:3] == ["python", "-m", "train"]
    bind("python -m train", COMMANDS, words[3:])()


def test_checkpoint_run_json_status_and_card_say_it(changed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wanted = [*list_changes(6, {"lr": (1e-2, 1e-3), "temperature": (0.05, 0.5)}),
              *list_changes(9, {"lr": (1e-3, 2e-3), "seed": (0, 5)})]  # fmt: skip
    assert newest(changed)["accepted"] == wanted and json.loads((changed / CARD).read_text())["accepted"] == wanted
    assert say_changes(wanted) == CHANGED
    capfd.readouterr()
    status(changed)
    assert f"; preset published, changed on the way by --accept: {CHANGED}\n" in capfd.readouterr().out
    export(changed, out=changed / "e.pth")
    page = (changed / "e.md").read_text()
    assert f"by SimCLR (preset published, changed on the way by --accept: {CHANGED})" in page
    assert "\n- lr: 0.002 (0.01 until step 6, 0.001 until step 9)\n" in page
    assert "\n- seed: 5 (0 until step 9)\n" in page
    assert "## Accepted" in page and "- accept:" not in page


def test_a_run_without_changes_says_nothing_of_it(trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert newest(trained)["accepted"] == [] and read_card(trained)["accepted"] == []
    capfd.readouterr()
    status(trained)
    page = model_card_page("torchvision", "x.pth", make_card(newest(trained), 512, []) | {"note": ""})
    assert "accept" not in capfd.readouterr().out + page.lower()


def test_a_report_says_it_and_its_commands_make_the_run_again(
    changed: Path, shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(changed.parent)
    study = open_study(Settings(encoders=("run",), shards=shards.folder, out=tmp_path / "report", shots=("2",), draws=1,
                                baselines=("thumbnail",), tasks=("Lung Opacity",)))  # fmt: skip
    assert any(f"by --accept: {CHANGED}" in note for note in list_notes(study))
    (facts,) = (facts for title, facts in list_facts(study) if "settings of its pre-training" in title)
    assert facts["changed on the way by --accept"] == CHANGED
    *commands, report = list_commands(study)
    assert len(commands) == 3 and f"report {changed} --shards={shards.folder}" in report  # from any folder
    for number, command in enumerate(commands):
        assert f"--out={changed}" in command and f"--shards={shards.folder}" in command
        assert ("--limit-steps=6", "--limit-steps=9", "")[number] in command
        run_here(command.replace(f"--out={changed}", f"--out={tmp_path / 'again'}"))
    assert same_run(changed, tmp_path / "again")
    run_here(commands[-1])  # where the run is, it leaves it alone
    export(changed, out=tmp_path / "e.pth")
    moved = tmp_path / "moved"
    shutil.copytree(changed, moved)
    both = open_study(Settings(encoders=(str(tmp_path / "e.pth"), str(list_checkpoints(moved)[0])), shots=("2",),
                               shards=shards.folder, out=tmp_path, draws=1, baselines=(),
                               tasks=("Lung Opacity",)))  # fmt: skip
    assert CHANGED in both.encoders[0].source
    assert f"--out={moved} " in list_commands(both)[2]  # of a checkpoint by itself: the run that it lies in


def test_a_run_that_was_cut_off_or_branched_off_is_made_again_too(shards: Shards, tmp_path: Path) -> None:
    train_here(shards, tmp_path / "a", limit_steps=4)
    train_here(shards, tmp_path / "b", limit_steps=5, resume=str(tmp_path / "a"), lr=2e-3, accept=("lr",))
    train_here(shards, tmp_path / "b", limit_steps=7, lr=2e-3)  # of where it began it is not told again
    for name, count in (("a", 1), ("b", 1)):
        commands = reproduce_commands(newest(tmp_path / name), tmp_path / f"{name}-again", shards.folder)
        assert len(commands) == count, commands
        for command in commands:
            run_here(command)
        assert same_run(tmp_path / name, tmp_path / f"{name}-again")
    (origin,) = list_checkpoints(tmp_path / "a")
    origin.unlink()
    said = reproduce_commands(newest(tmp_path / "b"), tmp_path / "c", shards.folder)
    assert said[0] == f"# it began from {origin}, which is not there now"


@pytest.mark.parametrize("name", ["code", "torch", "pillow"])
def test_what_no_flag_can_change_back_has_no_command(trained: Path, tmp_path: Path, name: str) -> None:
    state = newest(trained)
    state["accepted"] = list_changes(6, {name: ("a", "b"), "lr": (0.1, 0.01)})
    (said,) = reproduce_commands(state, tmp_path, tmp_path)
    assert said.startswith("# no command makes ") and f"{name} a until step 6, then b" in said and "lr" not in said


def test_other_code_is_said_beside_the_command(trained: Path, tmp_path: Path) -> None:
    state = newest(trained)
    state["fingerprint"]["code"] = "other"
    remark, _ = reproduce_commands({**state, "commit": "abc"}, tmp_path, tmp_path)
    assert remark == "# with the code of then, commit abc; this is other code"
    state["fingerprint"] |= {"ranks": 2, "threads": 3}
    state["accepted"] = list_changes(6, {"ranks": (1, 2), "threads": (4, 3)})
    _, first, second = reproduce_commands(state, tmp_path, tmp_path)
    assert first.startswith("OMP_NUM_THREADS=4 python -m train ") and first.endswith(" --limit-steps=6")
    assert second.startswith("OMP_NUM_THREADS=3 ") and second.endswith("--accept=ranks,threads  # on 2 ranks, started "
                                                                       "by srun or torchrun")  # fmt: skip


def test_a_checkpoint_of_a_version_that_forgot_says_so(trained: Path, tmp_path: Path) -> None:
    state = newest(trained)
    del state["accepted"]
    assert changes_of(state) == []
    state["config"]["accept"] = "lr,code"
    said = say_changes(changes_of(state))
    assert said.startswith(f"lr {UNRECORDED} until step 12, then 0.001; code {UNRECORDED} until step 12, then ")
    (line,) = reproduce_commands(state, tmp_path, tmp_path)
    assert line.startswith("# no command makes ")


def test_ranks_that_may_differ_between_epochs_are_remembered_as_well(shards: Shards, tmp_path: Path) -> None:
    """They change a weight's last bits without having been asked for."""
    train_here(shards, tmp_path, epochs=1)
    path = list_checkpoints(tmp_path)[0]
    state: dict[str, Any] = newest(tmp_path)
    del state["format"]
    path.unlink()
    state["fingerprint"]["ranks"] = 2
    save_checkpoint(tmp_path, state["step"], state)
    train_here(shards, tmp_path, limit_steps=7)
    assert newest(tmp_path)["accepted"] == list_changes(6, {"ranks": (2, 1)})


def test_what_can_never_be_accepted_says_why(shards: Shards, changed: Path, tmp_path: Path) -> None:
    shutil.copytree(changed, tmp_path / "run")
    for name, settings in (("batch_size", {"batch_size": 8}), ("shards", {}), ("arch", {"arch": "resnet34"})):
        with pytest.raises(InputError, match=f"--accept={name}: {name} can't be another in a run that goes on"):
            train_here(shards, tmp_path / "run", lr=2e-3, seed=5, epochs=3, accept=(name,), **settings)
    with pytest.raises(InputError, match=r"lr, seed \(since --accept: lr 0.01 until step 6, 0.001 until step 9, then "
                                         r"0.002; seed 0 until step 9, then 5\); go back to that"):  # fmt: skip
        train_here(shards, tmp_path / "run", epochs=3)  # as it began
    assert len(newest(tmp_path / "run")["accepted"]) == 4


def test_status_goes_on_accepting_only_until_a_checkpoint_holds_the_change(
    shards: Shards, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train_here(shards, tmp_path, limit_steps=3, resume="never")
    train_here(shards, tmp_path, limit_steps=5, lr=1e-2, accept=("lr",))
    held = list_checkpoints(tmp_path)[0]

    def next_command() -> str:
        capfd.readouterr()
        status(tmp_path)
        return capfd.readouterr().out.splitlines()[-1].split("next: ")[1]

    assert "--accept" not in next_command() and "--resume" not in next_command()
    held.rename(tmp_path / "held")  # as after a kill before it was written
    assert "--accept=lr" in next_command()
    run_here(next_command())
    assert newest(tmp_path)["accepted"] == list_changes(3, {"lr": (1e-3, 1e-2)})
    assert still_to_accept(["lr", "code"], list_changes(3, {"lr": (1, 2)}), 3) == ["lr"]


@pytest.mark.parametrize("content", [3, [3], [{}], [{"step": "3", "name": "lr", "then": 1, "now": 2}],
                                     [{"step": 3, "name": "lr", "then": [], "now": 2}]])  # fmt: skip
def test_changes_that_are_none_are_refused(content: object, trained: Path, tmp_path: Path) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        check_changes(content)
    card = json.loads((trained / CARD).read_text())
    (tmp_path / CARD).write_text(json.dumps({**card, "accepted": content}))
    with pytest.raises(InputError, match="not a run's card"):
        read_card(tmp_path)
