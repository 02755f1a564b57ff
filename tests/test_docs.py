"""The docs: marked commands run, all other commands parse, links resolve, and quoted messages exist."""

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

DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "slurm").glob("*.s*"))]  # fmt: skip
BLOCK = re.compile(r"<!-- run -->\n```sh\n(.*?)```", re.S)
RUNNABLE = [(file, block) for file in DOCS for block in BLOCK.findall(file.read_text())]


def commands_in(text: str) -> list[tuple[str, bool]]:
    """Each `python -m …` without a placeholder, and whether it is in a block of code, and so has all required flags."""
    joined = re.sub(r"\\\n\s*", "", text)
    blocks = re.findall(r"^(?:    )?(python -m .*)$", joined, re.M)
    inline = [" ".join(words.split()) for words in re.findall(r"`(python -m [^`]+)`", text)]
    lines = [(re.sub(r"\s+#.*$", "", line), True) for line in blocks] + [(line, False) for line in inline]
    return [(line, complete) for line, complete in lines if not re.search(r"[…|<>;$]", line)]


COMMANDS = sorted({(file.relative_to(ROOT).as_posix(), *found) for file in DOCS
                   for found in commands_in(file.read_text())})  # fmt: skip


@pytest.mark.parametrize(("file", "line", "complete"), COMMANDS)
def test_documented_commands_parse(
    file: str, line: str, complete: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, *arguments = shlex.split(line)[2:]
    place = ROOT / module.replace(".", "/")
    if not place.with_suffix(".py").exists() and not place.is_dir():
        pytest.skip(f"{module} is not a module of this project")
    name, commands = commands_of(module, monkeypatch)
    in_file = {"shards": "shards", "out": "out", **({"encoders": "run"} if module == "probe" else {})}
    monkeypatch.setattr("shard.cli_values.read_settings", lambda path: in_file)
    try:
        bind(name, commands, arguments)
    except InputError as error:
        lacking = re.search("received no value for the required argument|missing required flags|--out=DIR|no encoder",
                            str(error))  # fmt: skip
        assert lacking and not complete, f"{file}: {line}: {error}"


def test_tests_named_in_docs_exist() -> None:
    text = "".join(file.read_text() for file in DOCS)
    code = "".join(file.read_text() for file in (ROOT / "tests").glob("*.py"))
    named = set(re.findall(r"`(test_\w+)`", text))
    assert len(named) > 30 and named <= set(re.findall(r"^def (test_\w+)", code, re.M))
    assert all((ROOT / file).exists() for file in re.findall(r"tests/\w+\.py", text))


def test_docs_contain_many_commands() -> None:
    assert len(COMMANDS) > 40 and RUNNABLE


@pytest.mark.parametrize(("file", "block"), [
    pytest.param(file, block, id=file.name, marks=[pytest.mark.long] * (file.name == "chexpert.md"))
    for file, block in RUNNABLE
])  # fmt: skip
def test_marked_blocks_run(file: Path, block: str, tmp_path: Path) -> None:
    script = block if has_dali() else block.replace(" --dali", "")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
                   "PYTHONPATH": str(ROOT)}  # fmt: skip
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, env=environment, text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("file", [file for file in DOCS if file.suffix == ".md"], ids=lambda file: file.name)
def test_links_resolve(file: Path) -> None:
    text = file.read_text()
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (file.parent / target).exists() or target == "docs/faults.md", target
    headings = {re.sub(r"[^a-z0-9 -]", "", line.lower()).strip().replace(" ", "-")
                for line in re.findall(r"^#+ (.*)$", text, re.M)}  # fmt: skip
    for anchor in re.findall(r"\]\(#([^)]+)\)", text):
        assert anchor in headings, anchor
    for path in re.findall(r"`((?:tests|slurm|docs|shard|pipeline|train|probe|bench)/[\w./-]+\.\w+)`", text):
        assert (ROOT / path).exists() or path == "slurm/site.sh", path


def test_documented_messages_exist() -> None:
    """The code or the system prints each message in the first column of troubleshooting.md."""
    rows = [line for line in (ROOT / "docs" / "troubleshooting.md").read_text().splitlines() if line.startswith("| `")]
    files = [file for folder in ("shard", "pipeline", "train", "probe", "bench", "slurm")
             for file in (ROOT / folder).rglob("*") if file.suffix in (".py", ".sh", ".sbatch")]  # fmt: skip
    code = re.sub(r'"\s*\n\s*r?f?"', "", "\n".join(file.read_text() for file in files))  # joins split literals
    printed = code + "".join(os.strerror(number) for number in (errno.ENOSPC, errno.EROFS, errno.EACCES))
    documented = [message for line in rows for message in re.findall("`([^`]+)`", line.split(" | ")[0])]
    assert len(documented) > 30
    for message in documented:
        parts = re.split(r"…|\b[NM]\b|\d+(?:\.\d+)?%?|[()]|--dail|--dali\?|\bnan\b", message)
        assert max(parts, key=len).strip(" '") in printed, message


def test_site_has_no_dead_link_and_no_page_outside_the_navigation(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True)
    pages = {page.stem for page in tmp_path.glob("*.html")} - {"404", "search", "index"}
    assert pages == {page.stem for page in (ROOT / "docs").glob("*.md")} - {"README"}
    html = "".join(page.read_text() for page in tmp_path.glob("*.html"))
    assert not re.findall(r'<(?:link|script|img)[^>]+(?:href|src)="https?:', html)  # nothing is loaded from elsewhere


def test_figures_of_the_recipe_study_are_those_of_its_tables() -> None:
    text, tables = (ROOT / "docs" / "recipe.md").read_text().split("\n---\n")
    table = re.search(r"## Which recipe\?\n(.*?)\n## ", (ROOT / "README.md").read_text(), re.S)
    assert table is not None, "a section of README.md"
    for quoted in (table[1], text[:text.index("\n## ")]):
        figures = re.findall(r"[+-]\d\.\d{3} \[.*?\]|\b0\.\d{3}\b|\d+ \[\d+, \d+\]", quoted)
        assert len(figures) > 5
        assert [figure for figure in figures if figure not in tables] == []


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("package", ["shard", "pipeline", "train", "probe", "bench"])
def test_tree_lists_every_module(package: str) -> None:
    tree = (ROOT / "CONTRIBUTING.md").read_text().partition("## The tree")[2]
    section = re.search(rf"^    {package}/ .*?(?=^    \w+/ )", tree, re.M | re.S)
    assert section
    modules = [path.relative_to(ROOT / package) for path in (ROOT / package).glob("**/*.py")
               if not path.stem.startswith("__")]  # fmt: skip
    named = set(re.findall(r"[\w/]+(?:\.py|/)", section[0]))
    missing = [str(path) for path in modules if path.name not in named and f"{path.parent.name}/" not in named]
    assert modules and not missing
    removed = [name for name in named if name.endswith(".py") and not list((ROOT / package).glob(f"**/{name}"))]
    assert not removed
