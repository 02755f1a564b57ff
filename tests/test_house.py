"""The house keeps its order: who may import whom, and what importing may do."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

MAY_IMPORT = {
    "shard": {"shard"},
    "pipeline": {"shard", "pipeline"},
    "train": {"shard", "pipeline", "train"},
    "probe": {"shard", "pipeline", "train", "probe"},
    "bench": {"shard", "pipeline", "train", "probe", "bench"},
}


def imports_of(file: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module or "")
    return modules


def test_imports_run_one_way() -> None:
    files = {package: sorted((ROOT / package).glob("**/*.py")) for package in MAY_IMPORT}
    assert all(files.values())
    wrong = [
        f"{file.relative_to(ROOT)} imports {module}"
        for package, allowed in MAY_IMPORT.items()
        for file in files[package]
        for module in imports_of(file)
        if module.split(".")[0] in set(MAY_IMPORT) - allowed
    ]
    assert not wrong


def test_only_pipeline_dali_and_the_benchs_rival_import_dali() -> None:
    users = [file.relative_to(ROOT).as_posix() for package in MAY_IMPORT for file in (ROOT / package).glob("**/*.py")
             if any(module.startswith("nvidia") for module in imports_of(file))]  # fmt: skip
    assert users == ["pipeline/dali.py", "bench/rivals.py"]


@pytest.mark.parametrize("module", ["shard", "pipeline", "train", "probe", "bench.io"])
def test_a_python_without_our_libraries_is_told_of_its_environment(module: str) -> None:
    done = subprocess.run([sys.executable, "-S", "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1 and "source .venv/bin/activate" in done.stderr


def test_importing_everything_prints_nothing_and_loads_no_dali() -> None:
    modules = "shard.write, shard.verify, pipeline.loader, train.loop, probe.report, bench.io"
    code = f"import sys, {modules}; print('nvidia.dali' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_all_json_that_is_written_is_json_to_every_reader() -> None:
    files = [file for package in MAY_IMPORT for file in (ROOT / package).glob("**/*.py")]
    calls = [(file.name, node) for file in files for node in ast.walk(ast.parse(file.read_text()))
             if isinstance(node, ast.Call) and re.fullmatch(r"(json\.)?dumps?", ast.unparse(node.func))]  # fmt: skip
    assert len(calls) > 15
    assert [f"{name}:{node.lineno}" for name, node in calls if "allow_nan=False" not in ast.unparse(node)] == []
