"""Rules for the code base: which package may import which, private names, side effects of imports, and JSON."""

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
    """List the modules that a file imports."""
    modules = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module or "")
    return modules


def test_packages_import_lower_packages_only() -> None:
    files = {package: sorted((ROOT / package).glob("**/*.py")) for package in MAY_IMPORT}
    assert all(files.values())
    violations = [
        f"{file.relative_to(ROOT)} imports {module}"
        for package, allowed in MAY_IMPORT.items()
        for file in files[package]
        for module in imports_of(file)
        if module.split(".")[0] in set(MAY_IMPORT) - allowed
    ]
    assert not violations


def test_only_two_files_import_dali() -> None:
    files = [file.relative_to(ROOT).as_posix() for package in MAY_IMPORT for file in (ROOT / package).glob("**/*.py")
             if any(module.startswith("nvidia") for module in imports_of(file))]  # fmt: skip
    assert files == ["pipeline/dali.py", "bench/baselines.py"]


def private_uses(file: Path) -> list[str]:
    """List the private names of our packages that a file imports, accesses or, for a patch, names in a string."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    imports = {local: full for node in nodes for local, full in imported_names(node)}
    attributes = [ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)
                  and ast.unparse(node.value) in imports]  # fmt: skip
    strings = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)
               and re.fullmatch(rf"({'|'.join(MAY_IMPORT)})(\.\w+)+", node.value)]  # fmt: skip
    names = [*imports.values(), *attributes, *strings]
    return [f"{file.relative_to(ROOT)}: {name}" for name in names if is_private(name.split(".")[-1])]


def imported_names(node: ast.AST) -> list[tuple[str, str]]:
    """List (local name, full name) for each import from our packages."""
    if not isinstance(node, (ast.Import, ast.ImportFrom)):
        return []
    prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
    return [(name.asname or name.name, prefix + name.name) for name in node.names
            if (prefix + name.name).split(".")[0] in {*MAY_IMPORT, "tests"}]  # fmt: skip


def is_private(name: str) -> bool:
    """Return whether a name is private. The underscore methods of named tuples are public."""
    return bool(re.match("_[^_]", name)) and name not in ("_replace", "_asdict", "_make", "_fields")


@pytest.mark.parametrize("folder", [*MAY_IMPORT, "tests"])
def test_no_file_uses_private_names_of_another_file(folder: str) -> None:
    assert [use for file in (ROOT / folder).glob("**/*.py") for use in private_uses(file)] == []


@pytest.mark.parametrize("module", ["shard", "pipeline", "train", "probe", "bench.io"])
def test_python_without_the_libraries_gets_a_one_line_error(module: str) -> None:
    done = subprocess.run([sys.executable, "-S", "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1 and "source .venv/bin/activate" in done.stderr


def test_imports_print_nothing_and_do_not_load_dali() -> None:
    modules = "shard.write, shard.verify, pipeline.loader, train.loop, probe.report, bench.io"
    code = f"import sys, {modules}; print('nvidia.dali' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_all_json_is_written_without_nan() -> None:
    files = [file for package in MAY_IMPORT for file in (ROOT / package).glob("**/*.py")]
    calls = [(file.name, node) for file in files for node in ast.walk(ast.parse(file.read_text()))
             if isinstance(node, ast.Call) and re.fullmatch(r"(json\.)?dumps?", ast.unparse(node.func))]  # fmt: skip
    assert len(calls) > 15
    assert [f"{name}:{node.lineno}" for name, node in calls if "allow_nan=False" not in ast.unparse(node)] == []


@pytest.mark.parametrize("stack", ["", "-cuda12"])
def test_files_with_hashes_have_the_pinned_versions(stack: str) -> None:
    """requirements.txt is constraints.txt with hashes: what is tested is what is locked."""
    pinned, locked = (
        {name.replace("_", "-"): version for name, version in re.findall(
            r"^([\w.-]+)==([^\s;]+)", (ROOT / f"{file}{stack}.txt").read_text().lower(), re.M)}
        for file in ("constraints", "requirements")
    )  # fmt: skip
    others = {name: version for name, version in locked.items() if pinned.get(name) != version}
    assert set(others) <= {"setuptools", "wheel"} and len(locked) > 150, others
    text = (ROOT / f"requirements{stack}.txt").read_text()
    assert all("--hash=sha256:" in entry for entry in re.split(r"^(?=[\w.-]+==)", text, flags=re.M)[1:])


def test_the_two_files_of_constraints_differ_in_pytorch_and_cuda_alone() -> None:
    lines = [set((ROOT / name).read_text().splitlines()) for name in ("constraints.txt", "constraints-cuda12.txt")]
    differing = {line.split("==")[0] for line in lines[0] ^ lines[1] if not line.startswith("#")}
    others = {name for name in differing if not re.match(r"(torch|torchvision|triton)$|nvidia-|cuda-", name)}
    assert {"torch", "torchvision"} <= differing and not others


def test_make_tests_with_each_lower_bound_of_setup_cfg() -> None:
    makefile, bounds = (ROOT / "Makefile").read_text(), re.findall(r"^    ([\w-]+)(?:\[\w+\])? >= (\S+?);?(?: |$)",
                                                                  (ROOT / "setup.cfg").read_text(), re.M)  # fmt: skip
    command = re.search(r"^\tsed -n '(.*)' setup.cfg", makefile, re.M)
    assert command and len(bounds) > 30
    done = subprocess.run(["sed", "-n", command[1], ROOT / "setup.cfg"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{name}=={version}" for name, version in bounds]
