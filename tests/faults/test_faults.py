"""Every fault against every command; the table of what became of them is docs/faults.md, written by make faults."""

from __future__ import annotations

import contextlib
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
from tests.conftest import ROOT, Shards, run_module
from tests.faults.commands import COMMANDS, Command, Place

ALL = os.environ.get("FAULTS") == "all"
SEED = int(os.environ.get("FAULTS_SEED", "0"))
# What the tests try; the kills have campaigns of their own (test_kills.py, test_resume.py).
FEW = {("C locale", "build"), ("symlink loop", "build"), ("shrinks", "probe"), ("own file rots", "probe"),
       ("umask 077", "probe")}  # fmt: skip
BLOCKS = {"build": 90, "train": 20_000, "probe": 60, "report": 120}  # kB: too few to end in


@dataclass(frozen=True)
class Trial:
    """A command in a place of its own, and in one where nothing happened to it."""

    command: Command
    place: Place
    undisturbed: Place
    seconds: float
    chance: random.Random
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, **how: Any) -> subprocess.Popen[str]:
        """Start the command; what is not ended by the end of the trial is killed then."""
        self.started.append(self.command.start(self.place, **how))
        return self.started[-1]

    def fails(self, *wanted: str, process: subprocess.Popen[str] | None = None) -> str:
        """It ends in one line that says all that is wanted; returns that line."""
        said, error = (process or self.start()).communicate(timeout=120)
        lines = [line for line in error.splitlines() if not line.startswith("  ")]  # a table of differences may precede
        assert len(lines) == 1 and "Traceback" not in said + error, error
        assert all(word in lines[0] for word in wanted), lines[0]
        self.command.check_whole(self.place)
        return lines[0]

    def ends(self, **how: Any) -> None:
        """Run (again), it ends well, with the same as the undisturbed one."""
        process = self.start(**how)
        _, error = process.communicate(timeout=240)
        assert process.returncode == 0, error
        self.command.check_whole(self.place)
        assert self.command.is_same(self.place, self.undisturbed)

    def is_amid(self, process: subprocess.Popen[str]) -> None:
        """Return when it has begun to write, or has ended."""
        end = time.monotonic() + 90
        while process.poll() is None and not self.command.is_begun(self.place):
            assert time.monotonic() < end, "it did not begin"
            time.sleep(0.01)

    def ended_by(self, number: signal.Signals, times: int = 3) -> list[int]:
        """Send it a signal at random moments, each time anew; the statuses it ended with."""
        statuses = []
        for _ in range(times):
            process = self.start()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(self.chance.uniform(0.1, 1.0) * self.seconds)
            process.send_signal(number)
            said, error = process.communicate(timeout=120)
            assert "Traceback" not in said + error, error
            statuses.append(process.returncode)
            self.command.check_whole(self.place)
        return statuses

    def damaged(self) -> Path:
        """The input that is to be damaged."""
        place = self.place
        found = {"build": sorted(place.source.rglob("*.jpg")), "train": sorted(place.shards.glob("train*.tar")),
                 "probe": sorted(place.shards.glob("*.tar")), "report": sorted(place.shards.glob("*.tar"))}  # fmt: skip
        return found[self.command.name][0]


def kill_9(trial: Trial) -> str:
    """kill -9"""
    statuses = trial.ended_by(signal.SIGKILL)
    trial.ends()
    return f"ended {statuses.count(-9)} times at random moments; again: the same"


def sigterm(trial: Trial) -> str:
    """SIGTERM"""
    statuses = trial.ended_by(signal.SIGTERM)
    # -15: Python was not there yet to hear it, or was about to leave.
    assert set(statuses) <= {0, 75, 130, -signal.SIGTERM}, statuses
    trial.ends()
    return f"ended with status {', '.join(map(str, statuses))}; again: the same"


def full_disk(trial: Trial) -> str:
    """full disk"""
    with disk(trial, f"size={BLOCKS[trial.command.name]}k") as mount:
        trial.fails("No space left on device", str(trial.place.out))
        mount("remount,size=2g")
        trial.ends()
    return "“No space left on device”, and the file; with room: the same"


def read_only(trial: Trial) -> str:
    """read-only folder"""
    with disk(trial, "size=2g,ro") as mount:
        trial.fails("Read-only file system", str(trial.place.out))
        mount("remount,rw")
        trial.ends()
    return "“Read-only file system”, and the folder; when it can be written to: the same"


def shrinks(trial: Trial) -> str:
    """input file that shrinks"""
    file = trial.damaged()
    content = file.read_bytes()
    if trial.command.name == "train":  # amid the run
        process = trial.start()
        trial.is_amid(process)
        file.write_bytes(content[: len(content) // 2])
        trial.fails(file.name, process=process)
    else:
        file.write_bytes(content[: len(content) // 2])
        trial.fails(file.name)
    file.write_bytes(content)
    trial.ends()
    return "its name and what is wrong with it; put back: the same"


def rots(trial: Trial) -> str:
    """input file of which bits flip"""
    file = trial.damaged()
    content = bytearray(file.read_bytes())
    place = 1 if trial.command.name == "build" else len(content) // 3
    content[place] ^= 0x10
    file.write_bytes(content)
    trial.fails(file.name)
    content[place] ^= 0x10
    file.write_bytes(content)
    trial.ends()
    untold = " (a source's JPEG that decodes all the same is not told)" if trial.command.name == "build" else ""
    return f"its name and what is wrong with it; put back: the same{untold}"


def own_file_rots(trial: Trial) -> str:
    """own file of which bits flip, amid the work"""
    process = trial.start()
    trial.is_amid(process)
    time.sleep(trial.seconds / 20)
    process.kill()
    process.communicate()
    wanted = {"build": "*.tar", "train": "checkpoints/step-*.pt", "probe": "features/*.npy", "report": "features/*.npy"}
    rotten = sorted(trial.place.out.glob(wanted[trial.command.name]))[-1:]
    for file in rotten:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 0x10
        file.write_bytes(content)
    if trial.command.name != "build":
        trial.ends()
        return "told from its hash, set aside or made anew; again: the same"
    done = trial.start()
    done.communicate(timeout=120)
    if done.returncode == 0:  # finished shards are not read again, to go on at once; who reads them next tells
        checked = run_module("shard", "verify", str(trial.place.out))
        assert checked.returncode == (1 if rotten else 0) and "Traceback" not in checked.stderr, checked.stderr
        assert not rotten or rotten[0].name in checked.stderr
    return "build goes on; verify and every loader name the tar" if rotten else "there was none yet"


def clock_backwards(trial: Trial) -> str:
    """clock that goes backwards"""
    process = trial.start()
    trial.is_amid(process)
    process.kill()
    process.communicate()
    early = trial.place.folder / "early"
    early.mkdir()
    (early / "sitecustomize.py").write_text(
        "import time\nnow, turn = time.time, iter(range(10**9))\n"
        "time.time = lambda: now() - 86400 - 60 * next(turn)\n"
    )
    trial.ends(environment={"PYTHONPATH": str(early)})
    return "killed, and gone on a day before it began: the same"


def two_at_once(trial: Trial) -> str:
    """two processes on one folder"""
    first = trial.start()
    trial.is_amid(first)
    first.send_signal(signal.SIGSTOP)
    second = trial.start()
    if trial.command.name == "probe":  # parts share their folder; of the same part both write the same
        first.send_signal(signal.SIGCONT)
        for process in (first, second):
            assert process.wait(120) == 0
        said = "parts share a folder; of one part both write the same"
    else:
        said = trial.fails("another process is writing there", process=second)
        first.send_signal(signal.SIGCONT)
        assert first.wait(240) == 0
        said = "the second is refused in a line; the first ends well; a lock ends with its owner"
    trial.ends()
    return said


def symlink_loop(trial: Trial) -> str:
    """symlink loops"""
    loop = trial.place.out
    loop.parent.mkdir(exist_ok=True)
    loop.symlink_to(loop.name)
    trial.fails(str(loop))
    loop.unlink()
    if trial.command.name == "build":
        (trial.place.source / "train" / "loop").symlink_to("..")
        (trial.place.source / "self").symlink_to("self")
    trial.ends()
    return "an output folder that is its own target: refused in a line; loops in the source: the same"


def no_home(trial: Trial) -> str:
    """no home folder"""
    trial.ends(environment={"HOME": "/nonexistent", "XDG_CACHE_HOME": None, "XDG_CONFIG_HOME": None, "USER": None})
    return "the same"


def c_locale(trial: Trial) -> str:
    """C locale, ASCII output, a path with spaces and accents"""
    trial.ends(environment={"LC_ALL": "C", "LANG": "C", "PYTHONIOENCODING": "ascii"})
    return "the same"


def umask_077(trial: Trial) -> str:
    """umask 077"""
    trial.ends(before=["sh", "-c", 'umask 077; exec "$@"', "sh"])
    loose = [file for file in trial.place.out.rglob("*") if file.stat().st_mode & 0o077 and not file.is_symlink()]
    assert not loose, loose
    return "the same, for the owner alone to read"


def one_cpu(trial: Trial) -> str:
    """affinity to CPU 0, and to CPU 1"""
    allowed = sorted(os.sched_getaffinity(0))[:2]
    for cpu in allowed:
        shutil.rmtree(trial.place.out, ignore_errors=True)
        trial.ends(before=["taskset", "--cpu-list", str(cpu)])
    return "the same" if len(allowed) == 2 else "the same (there is one CPU)"


def little_memory(trial: Trial) -> str:
    """2 GB of memory"""
    group = Path("/sys/fs/cgroup/memory/cxr-simclr-faults")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(2 << 30))
    except OSError as error:
        pytest.skip(f"memory can't be limited here: {error}")
    try:
        trial.ends(before=["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"])
        peak = int((group / "memory.max_usage_in_bytes").read_text())
    finally:
        group.rmdir()
    return f"the same; {peak / 1e6:.0f} MB at most, files in the page cache included"


FAULTS: dict[str, Callable[[Trial], str]] = {
    "kill -9": kill_9, "SIGTERM": sigterm, "full disk": full_disk, "read-only": read_only, "shrinks": shrinks,
    "rots": rots, "own file rots": own_file_rots, "clock backwards": clock_backwards, "two at once": two_at_once,
    "symlink loop": symlink_loop, "no home": no_home, "C locale": c_locale, "umask 077": umask_077, "one CPU": one_cpu,
    "2 GB": little_memory,
}  # fmt: skip
PAIRS = [pair for pair in itertools.product(FAULTS, COMMANDS) if ALL or pair in FEW]


@contextlib.contextmanager
def disk(trial: Trial, options: str) -> Iterator[Callable[[str], None]]:
    """A file system of its own under the output folder, mounted with options; a function mounts it with others."""
    place = trial.place.out.parent
    place.mkdir()

    def mount(options: str) -> None:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a file system can't be mounted here: {done.stderr.strip()}")

    mount(options)
    try:
        yield mount
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.fixture(scope="session")
def undisturbed(
    radiographs: Path, shards: Shards, trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Place, float]]:
    """Each command's place where nothing happens, and how many seconds it took."""
    found = {}
    for name in sorted({command for _, command in PAIRS}):
        command, place = COMMANDS[name], Place(tmp_path_factory.mktemp(f"undisturbed-{name}"))
        copy_inputs(command, place, radiographs, shards, trained)
        begun = time.monotonic()
        process = command.start(place)
        _, error = process.communicate(timeout=240)
        assert process.returncode == 0, error
        found[name] = place, time.monotonic() - begun
    return found


def copy_inputs(command: Command, place: Place, radiographs: Path, shards: Shards, trained: Path) -> None:
    for name, folder in (("radiographs", radiographs), ("shards", shards.folder), ("run", trained)):
        if name in command.reads:
            large = os.link if name == "run" else shutil.copy2
            shutil.copytree(folder, place.folder / name, copy_function=large)


@pytest.fixture(scope="session")
def table() -> Iterator[dict[tuple[str, str], str]]:
    """What became of each; written to docs/faults.md where all were tried."""
    outcomes: dict[tuple[str, str], str] = {}
    yield outcomes
    if ALL and set(outcomes) == set(PAIRS):
        (ROOT / "docs" / "faults.md").write_text(page(outcomes))


def page(outcomes: dict[tuple[str, str], str]) -> str:
    """docs/faults.md."""
    lines = [
        "# Faults", "",
        f"`make faults` wrote this: {len(PAIRS)} trials, seed {SEED}, real processes and synthetic radiographs. After",
        "each, what lay under a final name was looked at and was whole; what was said was one line without a",
        "traceback; and the same command, run again, ended with the same bytes as one that nothing had happened to (of",
        "a training: weights, optimiser, generators, loader and journal, to the last bit).", "",
    ]  # fmt: skip
    for command in COMMANDS:
        lines += [f"## {command}", "", "| fault | outcome |", "| --- | --- |"]
        lines += [f"| {fault.__doc__} | {outcomes[name, command]} |" for name, fault in FAULTS.items()]
        lines.append("")
    return "\n".join(lines)


@pytest.mark.parametrize(("fault", "name"), PAIRS, ids=[f"{fault}-{name}" for fault, name in PAIRS])
def test_after_a_fault_the_same_command_ends_as_if_nothing_had_been(
    fault: str, name: str, undisturbed: dict[str, tuple[Place, float]], table: dict[tuple[str, str], str],
    radiographs: Path, shards: Shards, trained: Path, tmp_path: Path,
) -> None:  # fmt: skip
    place = Place(tmp_path / "poumons é ü 胸")
    place.folder.mkdir()
    copy_inputs(COMMANDS[name], place, radiographs, shards, trained)
    assert (place.shards / MANIFEST).exists() or name == "build"
    untouched, seconds = undisturbed[name]
    trial = Trial(COMMANDS[name], place, untouched, seconds, random.Random(f"{SEED} {fault} {name}"))
    try:
        table[fault, name] = FAULTS[fault](trial)
    finally:
        for process in trial.started:
            process.kill()
            process.communicate()
    print(f"{fault} × {name}: {table[fault, name]}")
