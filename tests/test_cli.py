"""The strict command line: nothing runs before every word is understood."""

from pathlib import Path
from typing import Literal

import pytest

from shard.cli import run
from shard.errors import InputError

calls: list[dict[str, object]] = []


def command(
    src: Path, *, epochs: int = 3, lr: float = 0.1, dali: bool = False, mode: Literal["a", "b"] = "a",
    tasks: tuple[str, ...] = (), table: Path | None = None,
) -> None:  # fmt: skip
    """Do something."""
    calls.append({"src": src, "epochs": epochs, "lr": lr, "dali": dali, "mode": mode, "tasks": tasks, "table": table})


def call(*argv: str) -> dict[str, object]:
    calls.clear()
    run("python -m x", command, argv)
    (made,) = calls
    return made


def test_values_take_the_type_of_their_hint() -> None:
    made = call("folder", "--epochs=5", "--lr", "1e-3", "--dali", "--mode=b", "--tasks=Lung Opacity,Edema",
                "--table=1e3")  # fmt: skip
    assert made == {
        "src": Path("folder"), "epochs": 5, "lr": 0.001, "dali": True, "mode": "b",
        "tasks": ("Lung Opacity", "Edema"), "table": Path("1e3"),
    }  # fmt: skip


@pytest.mark.parametrize(("word", "value"), [("--dali=false", False), ("--nodali", False), ("--dali=True", True)])
def test_booleans_mean_what_they_say(word: str, value: bool) -> None:
    assert call("folder", word)["dali"] is value


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["folder", "--epoch", "3"], "unknown flag --epoch (did you mean --epochs?)"),
        (["folder", "-e", "3"], "unknown flag -e"),
        (["folder", "--epochs=three"], "--epochs=three: wants a whole number"),
        (["folder", "--epochs=2.5"], "--epochs=2.5: wants a whole number"),
        (["folder", "--lr=fast"], "--lr=fast: wants a number"),
        (["folder", "--dali=maybe"], "--dali=maybe: wants true or false"),
        (["folder", "--mode=c"], "--mode=c: not one of a, b"),
        (["folder", "--table"], "--table: wants a value"),
        (["folder", "--lr=1", "--lr=2"], "--lr is given twice"),
        (["folder", "another"], "could not consume arg: another"),
        (["folder", "call"], "could not consume arg: call"),
        ([], "required argument: src"),
    ],
)
def test_a_word_that_cannot_be_used_ends_in_one_line_before_any_work(
    argv: list[str], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    calls.clear()
    with pytest.raises(SystemExit) as stop:
        run("python -m x", command, argv)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert wanted in error and error.count("\n") == 1
    assert not calls


def test_what_the_system_refuses_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def touch(out: Path) -> None:
        """Make a folder."""
        out.mkdir()

    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        run("python -m x", touch, [str(tmp_path / "file")])
    error = capsys.readouterr().err
    assert stop.value.code == 1 and str(tmp_path / "file") in error and error.count("\n") == 1


def test_a_path_in_an_error_gives_a_terminal_no_orders(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> None:
        raise InputError("runs/a\x1b[1m\x9b: no such é run")

    with pytest.raises(SystemExit):
        run("python -m x", refuse, ())
    assert capsys.readouterr().err == "python -m x: error: runs/a\\x1b[1m\\x9b: no such é run\n"


def test_home_is_found_where_the_shell_leaves_the_tilde() -> None:
    assert call("~/folder", "--table=~/t.csv")["src"] == Path.home() / "folder"


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run("python -m x", {"build": command, "merge": command}, ["biuld"])
    assert stop.value.code == 2
    assert "unknown command 'biuld' (did you mean build?)" in capsys.readouterr().err


def test_help_shows_every_flag_and_does_no_work(capsys: pytest.CaptureFixture[str]) -> None:
    calls.clear()
    run("python -m x", command, ["--help"])
    page = capsys.readouterr().out
    assert all(flag in page for flag in ("--epochs=N (default 3)", "--mode=a|b", "--dali=true|false", "SRC"))
    assert not calls
