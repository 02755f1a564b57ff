"""The command line: a command runs only after every word is understood, and --help lists every flag."""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from shard.cli import bind, run
from shard.errors import InputError
from shard.flags import Commands, Flag, check_ranges, validate_call
from shard.version import VERSION
from tests.conftest import ROOT

calls: list[dict[str, object]] = []


def command(
    src: Annotated[Path, Flag("Folder to read.")], *,
    epochs: Annotated[int, Flag("Passes over the data.", "training", 1, 100)] = 3,
    lr: Annotated[float, Flag("Learning rate.", "training")] = 0.1,
    dali: Annotated[bool, Flag("Load with DALI.", "data")] = False,
    sync: Annotated[bool, Flag("Synchronize.", "data")] = True,
    mode: Annotated[Literal["a", "b"], Flag("Mode.", "training")] = "a",
    tasks: Annotated[tuple[str, ...], Flag("Findings to predict.", "data")] = (),
    table: Annotated[Path | None, Flag("Table to read.", "data", default="SRC/table.csv")] = None,
) -> None:  # fmt: skip
    """Do something.

    Raises InputError if it can't be done.

        python -m x folder
    """
    calls.append({"src": src, "epochs": epochs, "lr": lr, "dali": dali, "mode": mode, "tasks": tasks, "table": table})


def call(*argv: str) -> dict[str, object]:
    calls.clear()
    run("python -m x", command, argv)
    (made,) = calls
    return made


def test_values_have_the_types_of_their_hints() -> None:
    made = call("folder", "--epochs=5", "--lr", "1e-3", "--dali", "--mode=b", "--tasks=Lung Opacity,Edema",
                "--table=1e3")  # fmt: skip
    assert made == {
        "src": Path("folder"), "epochs": 5, "lr": 0.001, "dali": True, "mode": "b",
        "tasks": ("Lung Opacity", "Edema"), "table": Path("1e3"),
    }  # fmt: skip


@pytest.mark.parametrize(("word", "value"), [("--dali=false", False), ("--nodali", False), ("--dali=True", True)])
def test_booleans_are_read_from_words(word: str, value: bool) -> None:
    assert call("folder", word)["dali"] is value


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["folder", "--epoch", "3"], "unknown flag --epoch (did you mean --epochs?)"),
        (["folder", "-e", "3"], "unknown flag -e"),
        (["folder", "--epochs=three"], "--epochs=three: must be a whole number"),
        (["folder", "--epochs=2.5"], "--epochs=2.5: must be a whole number"),
        (["folder", "--lr=fast"], "--lr=fast: must be a number"),
        (["folder", "--dali=maybe"], "--dali=maybe: must be true or false"),
        (["folder", "--mode=c"], "--mode=c: not one of a, b"),
        (["folder", "--table"], "--table: needs a value"),
        (["folder", "--lr=1", "--lr=2"], "--lr is given twice"),
        (["folder", "another"], "could not consume arg: another"),
        (["folder", "call"], "could not consume arg: call"),
        (["folder", "values"], "could not consume arg: values"),
        ([], "required argument: src"),
    ],
)
def test_invalid_arguments_print_one_line_and_run_nothing(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    calls.clear()
    with pytest.raises(SystemExit) as stop:
        run("python -m x", command, argv)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error and error.count("\n") == 1
    assert not calls


def test_operating_system_error_prints_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def touch(out: Path) -> None:
        """Make a folder."""
        out.mkdir()

    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        run("python -m x", touch, [str(tmp_path / "file")])
    error = capsys.readouterr().err
    assert stop.value.code == 1 and str(tmp_path / "file") in error and error.count("\n") == 1


def test_control_characters_in_an_error_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> None:
        raise InputError("runs/a\x1b[1m\x9b: no such é run")

    with pytest.raises(SystemExit):
        run("python -m x", refuse, ())
    assert capsys.readouterr().err == "python -m x: error: runs/a\\x1b[1m\\x9b: no such é run\n"


def test_tilde_is_expanded_in_a_flag() -> None:
    assert call("~/folder", "--table=~/t.csv")["src"] == Path.home() / "folder"


def test_unknown_command_suggests_the_closest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run("python -m x", {"build": command, "merge": command}, ["biuld"])
    assert stop.value.code == 2
    assert "unknown command 'biuld' (did you mean build?)" in capsys.readouterr().err


def test_help_lists_every_flag_by_group_and_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    calls.clear()
    run("python -m x", command, ["--help"])
    assert not calls
    assert capsys.readouterr().out == """\
usage: python -m x SRC [FLAGS]

Do something.

  python -m x folder

arguments:
  SRC                       Folder to read.

training:
  --epochs=N                Passes over the data. (default: 3)
  --lr=X                    Learning rate. (default: 0.1)
  --mode=a|b                Mode. (default: a)

data:
  --dali                    Load with DALI.
  --sync=true|false         Synchronize. (default: true)
  --tasks=A,B,…             Findings to predict.
  --table=PATH              Table to read. (default: SRC/table.csv)
"""


@pytest.mark.parametrize("epochs", [0, 101])
def test_command_checks_the_ranges_of_its_flags(epochs: int) -> None:
    calls.clear()
    with pytest.raises(InputError, match=f"^--epochs={epochs}: must be a number from 1 to 100$"):
        validate_call(command)(Path("folder"), epochs=epochs)
    assert not calls
    validate_call(command)(Path("folder"), epochs=100)
    assert calls


def test_ranges_hold_for_each_number_of_a_tuple_and_exclude_nan() -> None:
    def measure(*, sizes: Annotated[tuple[float, ...], Flag("Sizes.", low=1, high=9)] = ()) -> None:
        """Measure."""

    check_ranges(measure, {"sizes": (1, 9)})
    for wrong in (10, float("nan")):
        with pytest.raises(InputError, match=f"--sizes={wrong}: must be a number from 1 to 9"):
            check_ranges(measure, {"sizes": (1, wrong)})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A dataclass whose fields are flags."""

    words: Annotated[tuple[str, ...], Flag("Words.", positional=True)] = ()
    kind: Annotated[Literal["old", "new"], Flag("Kind.", presets={"old": {}, "new": {"flip": 0.0}})] = "old"
    flip: Annotated[float, Flag("Flip.", low=0, high=1)] = 0.5

    def __post_init__(self) -> None:
        check_ranges(Recipe, vars(self))


def train(recipe: Recipe, *, part: Annotated[int | None, Flag("Part.")] = None) -> None:
    """Train."""


def arguments_of(*argv: str) -> dict[str, Any]:
    call: Any = bind("python -m x", train, [*argv])
    arguments: dict[str, Any] = call.arguments().arguments
    return arguments


@pytest.mark.parametrize(
    ("argv", "recipe"),
    [
        ([], Recipe()),
        (["--flip=0.1"], Recipe(flip=0.1)),
        (["--kind=new"], Recipe(kind="new", flip=0.0)),
        (["--flip=0.5", "--kind=new"], Recipe(kind="new", flip=0.5)),
        (["a", "--kind=old", "b"], Recipe(words=("a", "b"))),
    ],
)
def test_the_fields_of_a_dataclass_are_flags_and_presets_change_their_defaults(argv: list[str], recipe: Recipe) -> None:
    assert arguments_of(*argv) == {"recipe": recipe}
    assert arguments_of(*argv, "--part=2") == {"recipe": recipe, "part": 2}


def test_value_that_the_dataclass_refuses_ends_with_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run("python -m x", train, ["--flip=2"])
    assert stop.value.code == 1
    assert capsys.readouterr().err == "python -m x: error: --flip=2.0: must be a number from 0 to 1\n"


def test_help_shows_the_defaults_of_presets(capsys: pytest.CaptureFixture[str]) -> None:
    run("python -m x", train, ["--help"])
    assert "--flip=X                  Flip. (default: 0.5; preset new: 0)\n" in capsys.readouterr().out


@pytest.mark.parametrize("commands", [command, {"": command, "other": command}, {"one": command}])
def test_version_is_printed_by_every_kind_of_program(commands: Commands, capsys: pytest.CaptureFixture[str]) -> None:
    run("python -m x", commands, ["--version"])
    assert re.match(rf"cxr-simclr {re.escape(VERSION)} \(commit .*, Python 3\.\d+", capsys.readouterr().out)


def test_version_is_written_in_one_place_and_cited() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {VERSION}\n" in citation
    assert importlib.metadata.version("cxr-simclr") == VERSION
