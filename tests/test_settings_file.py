"""--settings=FILE: the flags of a run or a report in a file, which repeats it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from probe.__main__ import COMMANDS as PROBE
from probe.settings import Settings
from shard.cli import BoundCommand, bind
from shard.errors import InputError
from shard.settings_file import write_settings
from tests.conftest import Shards, newest, train_here
from train.__main__ import COMMANDS as TRAIN
from train.config import Config
from train.recipe import chosen_settings


def config_of(*flags: str) -> Config:
    """Return the Config of a command line of python -m train."""
    bound = bind("python -m train", TRAIN, list(flags))
    assert isinstance(bound, BoundCommand)
    config: Config = bound.arguments().arguments["config"]
    return config


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return f"--settings={path}"


def test_flags_of_a_file_count_and_the_command_line_overrides_them(tmp_path: Path) -> None:
    file = write(tmp_path / "my.toml", 'shards = "s"\nout = "runs/a"\ndali = true\nepochs = 7\nlr = 1\n'
                                       'batch-size = 32\npreset = "patient"\nlog = ["csv", "mlflow"]\n')  # fmt: skip
    config = config_of(file, "--epochs=9", "--flip=0.25")
    assert (config.shards, config.out, config.dali) == (Path("s"), Path("runs/a"), True)
    assert (config.epochs, config.lr, config.batch_size, config.log) == (9, 1.0, 32, ("csv", "mlflow"))
    assert (config.flip, config.temperature) == (0.25, 0.2)  # the preset's, but for the flag


@pytest.mark.parametrize(("text", "message"), [
    ("epoch = 3", r"my.toml: unknown setting epoch \(did you mean epochs\?\)"),
    ("settings = 'a'", "my.toml: unknown setting settings"),
    ("epochs = 'three'", "my.toml: --epochs=three: must be a whole number"),
    ("epochs = 2.5", "my.toml: --epochs=2.5: must be a whole number"),
    ("dali = 'yes'", "my.toml: --dali=yes: must be true or false"),
    ("preset = 'patent'", r"my.toml: --preset=patent: not one of .* \(did you mean patient\?\)"),
    ("[train]\nepochs = 3", "my.toml: train = .*: must be a text, a number, true, false or a list"),
    ("batch-size = 3\nbatch_size = 4", "my.toml: batch_size is given twice; keep one"),
    ("epochs 3", r"my.toml: not TOML \(.* line 1.*\); settings are lines such as lr = 5e-4"),
    ("lr = 1000", "--lr=1000.0: must be a number from"),
    ("epochs = 3", "missing required flags: --shards, --out; give them or add them to .*my.toml"),
])  # fmt: skip
def test_mistakes_in_a_file_are_named(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path / "my.toml", text)
    required = () if "missing" in message else ("--shards=s", "--out=o")
    with pytest.raises(InputError, match=message):
        config_of(file, *required)


@pytest.mark.parametrize(("name", "message"), [("none.toml", "No such file or directory"), (".", "Is a directory")])
def test_file_that_can_not_be_read_is_named(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"--settings=.*: {message}; give a file such as run.toml in a run's folder"):
        config_of(f"--settings={tmp_path / name}")


@pytest.mark.parametrize(("flags", "message"), [
    (("--nosettings",), "unknown flag --nosettings"), (("--", "--settings=x"), "-- --settings=x: unknown flags"),
    (("--settings=a", "--settings=b"), "--settings is given twice"), (("--settings",), "--settings: needs a value"),
])  # fmt: skip
def test_other_uses_of_the_flag_are_refused(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config_of("--shards=s", "--out=o", *flags)


def test_chosen_nothing_is_repeated(tmp_path: Path) -> None:
    """A report without baselines, and a run that is logged nowhere."""
    settings = Settings(encoders=("a.pth",), shards=tmp_path, out=tmp_path, baselines=(), target_auroc=())
    write_settings(tmp_path / "report.toml", settings.chosen(), "python -m probe report")
    bound = bind("python -m probe", PROBE, ["report", f"--settings={tmp_path / 'report.toml'}"])
    assert isinstance(bound, BoundCommand) and (bound.given["baselines"], bound.given["target_auroc"]) == ((), ())
    chosen = chosen_settings(Config(shards=tmp_path, out=tmp_path, log=()).plain())
    write_settings(tmp_path / "run.toml", chosen, "python -m train")
    assert config_of(f"--settings={tmp_path / 'run.toml'}").log == ()


def test_path_that_is_not_unicode_is_left_out(tmp_path: Path) -> None:
    write_settings(tmp_path / "run.toml", {"out": "x\udce9", "lr": 0.1}, "python -m train")
    text = (tmp_path / "run.toml").read_text()
    assert tomllib.loads(text) == {"lr": 0.1} and "# out is left out: it is not Unicode" in text


def test_encoders_and_names_with_commas(tmp_path: Path) -> None:
    file = write(tmp_path / "my.toml", 'encoders = ["A=runs/a", "b.pth"]\nshards = "s"\nout = "o"\n'
                                       'shots = [1, "all"]\ntasks = ["A, left", "B"]\n')  # fmt: skip
    bound = bind("python -m probe", PROBE, ["report", file])
    assert isinstance(bound, BoundCommand)
    assert bound.given["encoders"] == ("A=runs/a", "b.pth") and bound.given["shots"] == ("1", "all")
    assert bound.given["tasks"] == '"A, left",B'
    bound = bind("python -m probe", PROBE, ["report", "c.pth", file])
    assert isinstance(bound, BoundCommand) and bound.given["encoders"] == ("c.pth",)


def test_run_is_repeated_by_the_file_that_it_left(shards: Shards, tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    train_here(shards, first, epochs=1, temperature=0.3)
    content = tomllib.loads((first / "run.toml").read_text())
    assert content["temperature"] == 0.3 and "flip" not in content  # defaults are left out
    bind("python -m train", TRAIN, [f"--settings={first / 'run.toml'}", f"--out={second}"])()
    states = [newest(run)["model"] for run in (first, second)]
    assert all((states[0][name] == value).all() for name, value in states[1].items())


def test_values_survive_the_file(tmp_path: Path) -> None:
    values: dict[str, Any] = {"shards": 'a "b"\\c é', "out": "o\x7f\n", "lr": 1e-05, "epochs": 3, "dali": True,
                              "accept": "code,torch", "resume": None, "init": ""}  # fmt: skip
    write_settings(tmp_path / "run.toml", values, "python -m train")
    assert tomllib.loads((tmp_path / "run.toml").read_text()) == {
        name: value for name, value in values.items() if name != "resume"}  # fmt: skip
