"""Random command lines: each is bound to a call with typed arguments, or refused in a line; nothing is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from shard.cli import BoundCommand, bind
from shard.flags import options_of
from tests.conftest import commands_of
from tests.fuzz import SEED, attempt, inputs, report_counts

WORDS = ("", " ", "-", "--", "---", "=", "--=", "1", "-1", "0", "1e9", "1e999", "nan", "inf", "true", "False", "None",
         "[]", "{}", "(1,2)", "a,b", "'", '"', "\\", "$(id)", "`id`", "../x", "/etc/passwd", "~", "é", "\n", "\x00",
         "--help", "-h", "help", "--no", "--nodali", "--dali=maybe", "auto", "10" * 30, "x" * 5000, "lambda: 1",
         "__import__('os')", "--size", "--size=", "--size=[1]", "--seed=1e3", "--workers=0x10", "--out=a", "--out=b",
         "--separator", "-- --trace", "--interactive", "--completion")  # fmt: skip


MODULES = ("shard", "train", "probe", "pipeline", "bench.io", "bench.plan", "bench.step", "bench.recipe",
           "bench.memory", "bench.shard", "bench.probe", "bench.gpu_check")  # fmt: skip


def one_line(commands: Any, rng: np.random.Generator) -> list[str]:
    """Some of a command's own flags with values of any kind, some words of any kind."""
    arguments = list[str]()
    command: Callable[..., Any] = commands
    if isinstance(commands, Mapping):
        chosen = list(commands)[rng.integers(0, len(commands))]
        command = commands[chosen]
        if chosen or rng.random() < 0.5:
            arguments.append(chosen)
    flags = [option.name.replace("_", "-" if rng.random() < 0.9 else "_") for option in options_of(command)]
    for _ in range(rng.integers(0, 6)):
        word = WORDS[rng.integers(0, len(WORDS))]
        match rng.integers(0, 4):
            case 0:
                arguments.append(word)
            case 1:
                arguments.append(f"--{flags[rng.integers(0, len(flags))]}")
            case _:
                arguments.append(f"--{flags[rng.integers(0, len(flags))]}={word}")
    return arguments


@pytest.mark.parametrize("module", MODULES)
def test_a_command_line_is_bound_or_refused(
    module: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng([SEED, 11, *module.encode()])
    name, commands = commands_of(module, monkeypatch)
    number, no = inputs(150), 0
    for _ in range(number):
        arguments = one_line(commands, rng)
        said, call = attempt(bind, name, commands, list(arguments))
        if said:
            no += 1
        elif isinstance(call, BoundCommand):
            attempt(call.arguments)
        else:
            call()  # help
    assert no > number / 4
    with capsys.disabled():
        report_counts(f"command lines, {module}", number, no)
