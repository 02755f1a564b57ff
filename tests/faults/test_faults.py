"""Inject every fault into every command. make faults writes the table of outcomes, docs/faults.md."""

from __future__ import annotations

import contextlib
import datetime
import functools
import itertools
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from shard.manifest import MANIFEST
from shard.read import read_index
from shard.version import VERSION
from tests.conftest import ROOT, Shards, run_module
from tests.faults.commands import COMMANDS, Command, Workspace

ALL = os.environ.get("FAULTS") == "all"
SEED = int(os.environ.get("FAULTS_SEED", "0"))
# The default selection. Kills have their own tests (test_kills.py, test_resume.py).
FEW = {("C locale", "build"), ("symlink loop", "build"), ("truncated input", "probe"), ("corrupt output", "probe"),
       ("umask 077", "probe")}  # fmt: skip
BLOCKS = {"build": 90, "train": 7_000, "probe": 60, "report": 120}  # kB: too few for the command to finish


@dataclass(frozen=True)
class Trial:
    """A command in its own workspace, and the workspace of the same command without a fault.

    seconds: the duration without a fault.
    """

    command: Command
    workspace: Workspace
    reference: Workspace
    seconds: float
    rng: random.Random
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, **how: Any) -> subprocess.Popen[str]:
        """Start the command. Processes that still run at the end of the trial are killed."""
        self.started.append(self.command.start(self.workspace, **how))
        return self.started[-1]

    def expect_error(self, *words: str, process: subprocess.Popen[str] | None = None) -> str:
        """Check that the command ends with one line of error that contains `words`. Returns the line."""
        output, error = (process or self.start()).communicate(timeout=120)
        lines = [line for line in error.splitlines() if not line.startswith("  ")]  # a table of differences may precede
        assert len(lines) == 1 and "Traceback" not in output + error, error
        assert all(word in lines[0] for word in words), lines[0]
        self.command.check_complete(self.workspace)
        return lines[0]

    def expect_success(self, **how: Any) -> None:
        """Run the command, again if it was stopped, and check that its output equals the reference."""
        process = self.start(**how)
        _, error = process.communicate(timeout=240)
        assert process.returncode == 0, error
        self.command.check_complete(self.workspace)
        assert self.command.is_same(self.workspace, self.reference)

    def wait_until_started(self, process: subprocess.Popen[str]) -> None:
        """Wait until the command has written output, or has ended."""
        end = time.monotonic() + 90
        while process.poll() is None and not self.command.has_started(self.workspace):
            assert time.monotonic() < end, "the command did not start"
            time.sleep(0.01)

    def interrupt(self, number: signal.Signals, times: int = 3) -> list[int]:
        """Start the command several times, each time sending a signal at a random moment. Returns the exit statuses."""
        statuses = []
        for _ in range(times):
            process = self.start()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(self.rng.uniform(0.1, 1.0) * self.seconds)
            process.send_signal(number)
            output, error = process.communicate(timeout=120)
            assert "Traceback" not in output + error, error
            statuses.append(process.returncode)
            self.command.check_complete(self.workspace)
        return statuses

    def input_to_damage(self) -> Path:
        """Return the input file that a fault damages."""
        source, shards = self.workspace.source, self.workspace.shards
        files = {"build": source.rglob("*.jpg"), "train": shards.glob("train*.tar"), "probe": shards.glob("*.tar"),
                 "report": shards.glob("*.tar")}  # fmt: skip
        return min(files[self.command.name])


def kill_9(trial: Trial) -> str:
    """kill -9"""
    statuses = trial.interrupt(signal.SIGKILL)
    trial.expect_success()
    return f"killed {statuses.count(-9)} times at random moments; run again: the same"


def sigterm(trial: Trial) -> str:
    """SIGTERM"""
    statuses = trial.interrupt(signal.SIGTERM)
    # -15: Python had not yet installed its handlers, or was shutting down. -2: a KeyboardInterrupt passed through
    # exec(), as of a dataclass during imports, after which CPython ends by SIGINT, whatever the exit status. A shell
    # shows 130 for that, too.
    assert set(statuses) <= {0, 75, 130, -signal.SIGTERM, -signal.SIGINT}, statuses
    trial.expect_success()
    shown = [status if status >= 0 else 128 - status for status in statuses]
    return f"exit statuses in a shell {', '.join(map(str, shown))}; run again: the same"


def full_disk(trial: Trial) -> str:
    """full disk"""
    with disk(trial, f"size={BLOCKS[trial.command.name]}k") as mount:
        trial.expect_error("No space left on device", str(trial.workspace.out))
        mount("remount,size=2g")
        trial.expect_success()
    return "“No space left on device”, with the file; with space: the same"


def read_only(trial: Trial) -> str:
    """read-only folder"""
    with disk(trial, "size=2g,ro") as mount:
        trial.expect_error("Read-only file system", str(trial.workspace.out))
        mount("remount,rw")
        trial.expect_success()
    return "“Read-only file system”, with the folder; when writable: the same"


def truncated_input(trial: Trial) -> str:
    """truncated input file"""
    file = trial.input_to_damage()
    content = file.read_bytes()
    if trial.command.name == "train":  # during the run
        process = trial.start()
        trial.wait_until_started(process)
        file.write_bytes(content[: len(content) // 2])
        trial.expect_error(file.name, process=process)
    else:
        file.write_bytes(content[: len(content) // 2])
        trial.expect_error(file.name)
    file.write_bytes(content)
    trial.expect_success()
    return "an error that names the file; restored: the same"


def corrupt_input(trial: Trial) -> str:
    """corrupt input file (flipped bits)"""
    file = trial.input_to_damage()
    content = bytearray(file.read_bytes())
    position = 1
    if trial.command.name != "build":
        samples = read_index(file.with_suffix(".idx"))
        offset, size = samples[len(samples) // 3].members["jpg"]
        position = offset + size // 2
    content[position] ^= 0x10
    file.write_bytes(content)
    trial.expect_error(file.name)
    content[position] ^= 0x10
    file.write_bytes(content)
    trial.expect_success()
    limit = " (a source's JPEG that still decodes is not detected)" if trial.command.name == "build" else ""
    return f"an error that names the file; restored: the same{limit}"


def corrupt_output(trial: Trial) -> str:
    """corrupt output file (flipped bits) during the work"""
    process = trial.start()
    trial.wait_until_started(process)
    time.sleep(trial.seconds / 20)
    process.kill()
    process.communicate()
    patterns = {"build": "*.tar", "train": "checkpoints/step-*.pt", "probe": "features/*.npy",
                "report": "features/*.npy"}  # fmt: skip
    corrupt = sorted(trial.workspace.out.glob(patterns[trial.command.name]))[-1:]
    for file in corrupt:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 0x10
        file.write_bytes(content)
    if trial.command.name != "build":
        trial.expect_success()
        return "detected by its hash, set aside or written again; run again: the same"
    done = trial.start()
    done.communicate(timeout=120)
    if done.returncode == 0:  # resuming does not read finished shards again; verify does
        checked = run_module("shard", "verify", str(trial.workspace.out))
        assert checked.returncode == (1 if corrupt else 0) and "Traceback" not in checked.stderr, checked.stderr
        assert not corrupt or corrupt[0].name in checked.stderr
    return "build resumes; verify and every loader name the tar" if corrupt else "there was none yet"


def clock_backwards(trial: Trial) -> str:
    """clock that runs backwards"""
    process = trial.start()
    trial.wait_until_started(process)
    process.kill()
    process.communicate()
    early = trial.workspace.folder / "early"
    early.mkdir()
    (early / "sitecustomize.py").write_text(
        "import time\nnow, turn = time.time, iter(range(10**9))\n"
        "time.time = lambda: now() - 86400 - 60 * next(turn)\n"
    )
    trial.expect_success(environment={"PYTHONPATH": str(early)})
    return "killed, and resumed with the clock a day earlier: the same"


def two_at_once(trial: Trial) -> str:
    """two processes on one folder"""
    first = trial.start()
    trial.wait_until_started(first)
    first.send_signal(signal.SIGSTOP)
    second = trial.start()
    if trial.command.name == "probe":  # parts share their folder; two processes of one part write the same files
        first.send_signal(signal.SIGCONT)
        for process in (first, second):
            assert process.wait(120) == 0
        outcome = "parts share a folder; both processes of one part write the same files"
    else:
        trial.expect_error("another process is writing there", process=second)
        first.send_signal(signal.SIGCONT)
        assert first.wait(240) == 0
        outcome = "the second is refused with one line; the first succeeds; its lock is released when it ends"
    trial.expect_success()
    return outcome


def symlink_loop(trial: Trial) -> str:
    """symlink loops"""
    loop = trial.workspace.out
    loop.parent.mkdir(exist_ok=True)
    loop.symlink_to(loop.name)
    trial.expect_error(str(loop))
    loop.unlink()
    if trial.command.name == "build":
        (trial.workspace.source / "train" / "loop").symlink_to("..")
        (trial.workspace.source / "self").symlink_to("self")
    trial.expect_success()
    return "an output folder that links to itself: refused with one line; loops in the source: the same"


def no_home(trial: Trial) -> str:
    """no home folder"""
    trial.expect_success(environment={"HOME": "/nonexistent", "XDG_CACHE_HOME": None, "XDG_CONFIG_HOME": None,
                                      "USER": None})  # fmt: skip
    return "the same"


def c_locale(trial: Trial) -> str:
    """C locale, ASCII output, a path with spaces and accents"""
    trial.expect_success(environment={"LC_ALL": "C", "LANG": "C", "PYTHONIOENCODING": "ascii"})
    return "the same"


def umask_077(trial: Trial) -> str:
    """umask 077"""
    trial.expect_success(before=["sh", "-c", 'umask 077; exec "$@"', "sh"])
    loose = [file for file in trial.workspace.out.rglob("*") if file.stat().st_mode & 0o077 and not file.is_symlink()]
    assert not loose, loose
    return "the same, readable by the owner only"


def one_cpu(trial: Trial) -> str:
    """affinity to CPU 0, and to CPU 1"""
    allowed = sorted(os.sched_getaffinity(0))[:2]
    for cpu in allowed:
        shutil.rmtree(trial.workspace.out, ignore_errors=True)
        trial.expect_success(before=["taskset", "--cpu-list", str(cpu)])
    return "the same" if len(allowed) == 2 else "the same (there is one CPU)"


def little_memory(trial: Trial) -> str:
    """2 GB of memory"""
    group = Path("/sys/fs/cgroup/memory/cxr-simclr-faults")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(2 << 30))
    except OSError as error:
        pytest.skip(f"can't limit memory here: {error}")
    try:
        trial.expect_success(before=["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"])
        peak = int((group / "memory.max_usage_in_bytes").read_text())
    finally:
        group.rmdir()
    return f"the same; {peak / 1e6:.0f} MB at peak, including the page cache"


FAULTS: dict[str, Callable[[Trial], str]] = {
    "kill -9": kill_9, "SIGTERM": sigterm, "full disk": full_disk, "read-only": read_only,
    "truncated input": truncated_input, "corrupt input": corrupt_input, "corrupt output": corrupt_output,
    "clock backwards": clock_backwards, "two at once": two_at_once, "symlink loop": symlink_loop, "no home": no_home,
    "C locale": c_locale, "umask 077": umask_077, "one CPU": one_cpu, "2 GB": little_memory,
}  # fmt: skip
PAIRS = [pair for pair in itertools.product(FAULTS, COMMANDS) if ALL or pair in FEW]


@contextlib.contextmanager
def disk(trial: Trial, options: str) -> Iterator[Callable[[str], None]]:
    """Mount a file system at the parent of the output folder. Yields a function that remounts it with other options."""
    mount_point = trial.workspace.out.parent
    mount_point.mkdir()

    def mount(options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", mount_point]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"can't mount a file system here: {done.stderr.strip()}")

    mount(options)
    try:
        yield mount
    finally:
        subprocess.run(["umount", mount_point], check=True)


@pytest.fixture(scope="session")
def reference(
    radiographs: Path, shards: Shards, trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Workspace, float]]:
    """Run a command, once, without a fault. Returns its workspace and duration in seconds."""

    @functools.cache
    def run(name: str) -> tuple[Workspace, float]:
        command, workspace = COMMANDS[name], Workspace(tmp_path_factory.mktemp(f"reference-{name}"))
        copy_inputs(command, workspace, radiographs, shards, trained)
        begun = time.monotonic()
        process = command.start(workspace)
        _, error = process.communicate(timeout=240)
        assert process.returncode == 0, error
        return workspace, time.monotonic() - begun

    return run


def copy_inputs(command: Command, workspace: Workspace, radiographs: Path, shards: Shards, trained: Path) -> None:
    for name, folder in (("radiographs", radiographs), ("shards", shards.folder), ("run", trained)):
        if name in command.reads:
            copy = os.link if name == "run" else shutil.copy2  # checkpoints are large
            shutil.copytree(folder, workspace.folder / name, copy_function=copy)


@pytest.fixture(scope="session")
def table() -> Iterator[dict[tuple[str, str], str]]:
    """The outcomes by fault and command. Written to docs/faults.md if all pairs were tried."""
    outcomes: dict[tuple[str, str], str] = {}
    yield outcomes
    if ALL and set(outcomes) == set(PAIRS):
        (ROOT / "docs" / "faults.md").write_text(render_page(outcomes))


def render_page(outcomes: dict[tuple[str, str], str]) -> str:
    """Render docs/faults.md."""
    today = f"{datetime.datetime.now(tz=datetime.UTC):%d %B %Y}"
    lines = [
        "# Faults", "",
        f"Written by `make faults` on version {VERSION}, {today}: {len(PAIRS)} trials, seed {SEED}, with real",
        "processes and synthetic radiographs.", "",
        "After each trial, every file under its final name was checked and was complete; the error was one line",
        "without a traceback; and the same command, run again, wrote the same bytes as a command without a fault (of a",
        "training: weights, optimiser, random generators, loader and journal, to the last bit).", "",
    ]  # fmt: skip
    for command in COMMANDS:
        lines += [f"## {command}", "", "| fault | outcome |", "| --- | --- |"]
        lines += [f"| {fault.__doc__} | {outcomes[name, command]} |" for name, fault in FAULTS.items()]
        lines.append("")
    return "\n".join(lines)


@pytest.mark.parametrize(("fault", "name"), [
    pytest.param(fault, name, id=f"{fault}-{name}", marks=[] if ALL or name == "build" else pytest.mark.long)
    for fault, name in PAIRS
])  # fmt: skip
def test_command_after_a_fault_writes_the_same_output(
    fault: str, name: str, reference: Callable[[str], tuple[Workspace, float]], table: dict[tuple[str, str], str],
    radiographs: Path, shards: Shards, trained: Path, tmp_path: Path,
) -> None:  # fmt: skip
    workspace = Workspace(tmp_path / "poumons é ü 胸")
    workspace.folder.mkdir()
    copy_inputs(COMMANDS[name], workspace, radiographs, shards, trained)
    assert (workspace.shards / MANIFEST).exists() or name == "build"
    expected, seconds = reference(name)
    trial = Trial(COMMANDS[name], workspace, expected, seconds, random.Random(f"{SEED} {fault} {name}"))
    try:
        table[fault, name] = FAULTS[fault](trial)
    finally:
        for process in trial.started:
            process.kill()
            process.communicate()
    print(f"{fault} × {name}: {table[fault, name]}")
