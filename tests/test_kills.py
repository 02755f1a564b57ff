"""Killed with -9 at random moments and started again, a run ends as if nothing had been. KILLS=20: make kills."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import DALI, KILLS, ROOT, SMALL, Shards, newest, same_run
from train.journal import SPEED, read_journal

WANTED = KILLS or 2
SEED = 0


def _live(process: subprocess.Popen[str], run: Path, chance: random.Random, starting: float, lasted: float) -> None:
    """Return at the moment to kill: three times in ten while it starts, else some time after a step of its own."""
    if chance.random() < 0.3:
        time.sleep(chance.uniform(0, starting))
        return
    lines = len(read_journal(run, SPEED))
    while process.poll() is None and len(read_journal(run, SPEED)) < lines + 2:
        time.sleep(0.02)
    time.sleep(chance.uniform(0, 2 * lasted / WANTED))


def test_killed_at_random_moments_a_run_ends_as_if_nothing_had_been(shards: Shards, tmp_path: Path) -> None:
    epochs = max(2, WANTED // 2)
    flags = [f"--shards={shards.folder}", DALI, f"--epochs={epochs}", "--checkpoint-minutes=0.005", "--online-every=1",
             *SMALL]  # fmt: skip
    whole = tmp_path / "whole"
    begun = time.time()
    subprocess.run([sys.executable, "-m", "train", *flags, f"--out={whole}"], cwd=ROOT, check=True, capture_output=True)
    speed = read_journal(whole, SPEED)
    starting, lasted = speed[0]["time"] - begun, speed[-1]["time"] - speed[0]["time"]
    chance, stood, folder = random.Random(SEED), list[int](), 0
    while folder == 0 or len(stood) < WANTED or (tmp_path / str(folder)).exists():
        parts, still = tmp_path / str(folder), len(stood) < WANTED
        process = subprocess.Popen([sys.executable, "-m", "train", *flags, f"--out={parts}"], cwd=ROOT,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
        if still:
            _live(process, parts, chance, starting, lasted)
            process.kill()
        _, complaint = process.communicate()
        if process.returncode == -signal.SIGKILL:
            stood.append(max([line["step"] for line in read_journal(parts)], default=0))
            continue
        assert process.returncode == 0, complaint
        assert same_run(whole, parts)
        folder += 1  # it came to its end before it had been killed often enough: another, killed at other moments
    steps = newest(whole)["step"]
    print(f"killed {len(stood)} times, at steps {stood} of {steps}; the whole took {starting:.1f} + {lasted:.1f} s")
    assert max(stood) > 0
