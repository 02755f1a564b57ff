"""A run that is killed with SIGKILL at random moments and resumed ends like one that was not. make kills: KILLS=20."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import DALI, KILLS, ROOT, SMALL, Shards, newest, same_run
from train.journal import SPEED, read_journal

TOTAL_KILLS = KILLS or 2
SEED = 0


def wait_to_kill(process: subprocess.Popen[str], run: Path, rng: random.Random, startup: float, steps_s: float) -> None:
    """Wait for a random moment: with a probability of 0.3 during the start, else after a new step in the journal.

    startup: seconds that a run takes to its first step. steps_s: seconds of all steps.
    """
    if rng.random() < 0.3:
        time.sleep(rng.uniform(0, startup))
        return
    lines = len(read_journal(run, SPEED))
    while process.poll() is None and len(read_journal(run, SPEED)) < lines + 2:
        time.sleep(0.02)
    time.sleep(rng.uniform(0, 2 * steps_s / TOTAL_KILLS))


@pytest.mark.long
def test_run_killed_at_random_moments_ends_like_an_uninterrupted_one(shards: Shards, tmp_path: Path) -> None:
    epochs = max(2, TOTAL_KILLS // 2)
    flags = [f"--shards={shards.folder}", DALI, f"--epochs={epochs}", "--checkpoint-minutes=0.005", "--online-every=1",
             *SMALL]  # fmt: skip
    uninterrupted = tmp_path / "uninterrupted"
    start = time.time()
    subprocess.run([sys.executable, "-m", "train", *flags, f"--out={uninterrupted}"], cwd=ROOT, check=True,
                   capture_output=True)  # fmt: skip
    speed = read_journal(uninterrupted, SPEED)
    startup, steps_s = speed[0]["time"] - start, speed[-1]["time"] - speed[0]["time"]
    rng, killed_at, number = random.Random(SEED), list[int](), 0
    while number == 0 or len(killed_at) < TOTAL_KILLS or (tmp_path / str(number)).exists():
        run, kill = tmp_path / str(number), len(killed_at) < TOTAL_KILLS
        process = subprocess.Popen([sys.executable, "-m", "train", *flags, f"--out={run}"], cwd=ROOT,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
        if kill:
            wait_to_kill(process, run, rng, startup, steps_s)
            process.kill()
        _, error = process.communicate()
        if process.returncode == -signal.SIGKILL:
            killed_at.append(max([line["step"] for line in read_journal(run)], default=0))
            continue
        assert process.returncode == 0, error
        assert same_run(uninterrupted, run)
        number += 1  # if it ended before enough kills, another run is killed at other moments
    steps = newest(uninterrupted)["step"]
    print(f"killed {len(killed_at)} times, at steps {killed_at} of {steps}; a run took {startup:.1f} + {steps_s:.1f} s")
    assert max(killed_at) > 0
