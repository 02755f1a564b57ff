"""What the docs say can be done: marked commands are run, all others are at least understood, links lead somewhere."""

from __future__ import annotations

import errno
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.loader import has_dali
from shard.cli import bind
from shard.errors import InputError
from tests.conftest import ROOT, commands_of

DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "slurm").glob("*.s*"))]  # fmt: skip
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"<!-- run -->\n```sh\n(.*?)```", re.S)
RUNNABLE = [(file, block) for file in DOCS for block in BLOCK.findall(file.read_text())]


def commands_in(text: str) -> list[tuple[str, bool]]:
    """Each `python -m …` without a placeholder, and whether it is in a block of code, and so names all it wants."""
    joined = re.sub(r"\\\n\s*", "", text)
    blocks = re.findall(r"^(?:    )?(python -m .*)$", joined, re.M)
    inline = [" ".join(words.split()) for words in re.findall(r"`(python -m [^`]+)`", text)]
    lines = [(re.sub(r"\s+#.*$", "", line), True) for line in blocks] + [(line, False) for line in inline]
    return [(line, whole) for line, whole in lines if not re.search(r"[…|<>;$]", line)]


COMMANDS = sorted({(file.relative_to(ROOT).as_posix(), *found) for file in DOCS
                   for found in commands_in(file.read_text())})  # fmt: skip


@pytest.mark.parametrize(("file", "line", "whole"), COMMANDS)
def test_a_command_that_is_told_of_is_understood(
    file: str, line: str, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, *arguments = shlex.split(line)[2:]
    place = ROOT / module.replace(".", "/")
    if not place.with_suffix(".py").exists() and not place.is_dir():
        pytest.skip(f"{module} is not ours")
    name, commands = commands_of(module, monkeypatch)
    try:
        bind(name, commands, arguments)
    except InputError as error:
        lacking = re.search("received no value for the required argument|missing required flags|--out=DIR|no encoder",
                            str(error))  # fmt: skip
        assert lacking and not whole, f"{file}: {line}: {error}"


def test_many_commands_are_told_of() -> None:
    assert len(COMMANDS) > 40 and RUNNABLE


@pytest.mark.parametrize(("file", "block"), RUNNABLE, ids=[file.name for file, _ in RUNNABLE])
def test_a_block_that_is_marked_runs_as_it_stands(file: Path, block: str, tmp_path: Path) -> None:
    script = block if has_dali() else block.replace(" --dali", "")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
                   "PYTHONPATH": str(ROOT)}  # fmt: skip
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, env=environment, text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("file", [file for file in DOCS if file.suffix == ".md"], ids=lambda file: file.name)
def test_links_lead_somewhere(file: Path) -> None:
    text = file.read_text()
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (file.parent / target).exists() or target == "docs/faults.md", target
    headings = {re.sub(r"[^a-z0-9 -]", "", line.lower()).strip().replace(" ", "-")
                for line in re.findall(r"^#+ (.*)$", text, re.M)}  # fmt: skip
    for anchor in re.findall(r"\]\(#([^)]+)\)", text):
        assert anchor in headings, anchor
    for path in re.findall(r"`((?:tests|slurm|docs|shard|pipeline|train|probe|bench)/[\w./-]+\.\w+)`", text):
        assert (ROOT / path).exists() or path == "slurm/site.sh", path


def test_messages_told_of_are_messages_still() -> None:
    """What stands in the first column of troubleshooting.md is said by our code, or by the system."""
    rows = [line for line in (ROOT / "docs" / "troubleshooting.md").read_text().splitlines() if line.startswith("| `")]
    files = [file for folder in ("shard", "pipeline", "train", "probe", "bench", "slurm")
             for file in (ROOT / folder).rglob("*") if file.suffix in (".py", ".sh", ".sbatch")]  # fmt: skip
    code = re.sub(r'"\s*\n\s*r?f?"', "", "\n".join(file.read_text() for file in files))  # a text over several lines
    said = code + "".join(os.strerror(number) for number in (errno.ENOSPC, errno.EROFS, errno.EACCES))
    told = [message for line in rows for message in re.findall("`([^`]+)`", line.split(" | ")[0])]
    assert len(told) > 30
    for message in told:
        parts = re.split(r"…|\b[NM]\b|\d+(?:\.\d+)?%?|[()]|--dail|--dali\?|\bnan\b", message)
        assert max(parts, key=len).strip(" '") in said, message


@pytest.mark.parametrize("package", ["shard", "pipeline", "train", "probe", "bench"])
def test_readme_tree_lists_every_module(package: str) -> None:
    tree = README.partition("## The tree")[2]
    section = re.search(rf"^    {package}/ .*?(?=^    \w+/ )", tree, re.M | re.S)
    assert section
    modules = [path.relative_to(ROOT / package) for path in (ROOT / package).glob("**/*.py")
               if not path.stem.startswith("__")]  # fmt: skip
    named = set(re.findall(r"[\w/]+(?:\.py|/)", section[0]))
    missing = [str(path) for path in modules if path.name not in named and f"{path.parent.name}/" not in named]
    assert modules and not missing
    removed = [name for name in named if name.endswith(".py") and not list((ROOT / package).glob(f"**/{name}"))]
    assert not removed
