"""parallel_map ends even if a worker is killed, whatever it was doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import ROOT


def test_parallel_map_ends_after_an_idle_worker_is_killed() -> None:
    code = "from tests.jobs import run; run()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_parallel_map_ends_after_a_worker_is_killed_while_it_counts() -> None:
    code = ("from shard.pool import parallel_map; from tests.jobs import count_or_die\n"
            "list(parallel_map(range(2), 2, count_or_die, images=2, label='x', workers=2))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "--workers=2: a worker was killed" in done.stderr


def test_workers_share_a_preloaded_module() -> None:
    """The fork server is a process of its own, so in this one the module is not imported."""
    code = ("import sys; from shard.pool import parallel_map; from tests.jobs import is_preloaded\n"
            "print(*parallel_map(range(2), 2, is_preloaded, images=2, label='x', workers=2, preload='shard.preload'))\n"
            "print('shard.preload' in sys.modules)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["True", "True", "False"], done.stderr


def test_interrupted_fork_server_prints_no_traceback(tmp_path: Path) -> None:
    """Ctrl-C, which a terminal sends to every process, while the fork server imports modules."""
    (tmp_path / "slow.py").write_text("import pathlib, time; pathlib.Path('begun').touch(); time.sleep(60)")
    code = ("from shard.pool import parallel_map\n"
            "try: list(parallel_map(range(2), 2, abs, images=2, label='x', workers=2, preload='slow'))\n"
            "except KeyboardInterrupt: print('interrupted')")  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, start_new_session=True, text=True,
                               env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    try:
        while not (tmp_path / "begun").exists() and process.poll() is None:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate(timeout=30) == ("interrupted\n", "")
    finally:
        process.kill()
