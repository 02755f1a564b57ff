"""Read-only code and no home: where the libraries' caches go, and that commands run there."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bench.figures import make_place
from shard.errors import InputError
from tests.conftest import ROOT, Shards

NAMES = ("XDG_CACHE_HOME", "MPLCONFIGDIR", "TRITON_CACHE_DIR", "NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TMPDIR")
BARE = {"PATH": os.environ["PATH"]}
NOBODY = "import pwd\ndef unknown(uid): raise KeyError(uid)\npwd.getpwuid = unknown\n"


def caches(environment: dict[str, str], before: str = "") -> dict[str, str]:
    """The variables above in a process that has imported shard."""
    code = f"{before}\nimport os, shard\nfor name in {NAMES}: print(os.environ.get(name, ''))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**BARE, **environment}, capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(zip(NAMES, done.stdout.splitlines(), strict=True))


def unshared(script: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a shell script where what it mounts is seen by it alone; skips where that isn't permitted."""
    tried = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True)
    if tried.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {tried.stderr.strip()}")
    return subprocess.run(["unshare", "--mount", "sh", "-euc", script], cwd=ROOT, env=environment, capture_output=True,
                          text=True, timeout=240)  # fmt: skip


def test_a_home_that_can_be_written_is_left_alone(tmp_path: Path) -> None:
    found = caches({"HOME": str(tmp_path), "TMPDIR": str(tmp_path)})
    assert found == {**dict.fromkeys(NAMES, ""), "TMPDIR": str(tmp_path)}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("home", "before"), [("/proc/nohome", ""), ("", NOBODY)], ids=["not-there", "of-nobody"])
def test_caches_without_a_home_are_in_a_folder_of_the_users_alone(home: str, before: str, tmp_path: Path) -> None:
    environment = {"TMPDIR": str(tmp_path), **({"HOME": home} if home else {})}
    found = caches(environment, before)
    place = tmp_path / f"cxr-simclr-{os.getuid()}"
    assert {name for name in NAMES if found[name].startswith(f"{place}/")} == set(NAMES[:3])
    assert place.stat().st_mode & 0o777 == 0o700
    assert caches(environment, before) == found


def test_a_folder_that_others_may_write_to_is_not_trusted(tmp_path: Path) -> None:
    place = tmp_path / f"cxr-simclr-{os.getuid()}"
    place.mkdir()
    place.chmod(0o777)  # numba runs what it finds in its cache
    found = caches({"TMPDIR": str(tmp_path), "HOME": "/proc/nohome"})["XDG_CACHE_HOME"]
    assert found.startswith(f"{tmp_path}/") and not found.startswith(f"{place}/")


def test_a_variable_that_points_nowhere_is_pointed_elsewhere(tmp_path: Path) -> None:
    found = caches({"TMPDIR": str(tmp_path), "HOME": str(tmp_path), "NUMBA_CACHE_DIR": "/proc/no",
                    "TORCHINDUCTOR_CACHE_DIR": "/proc/no", "MPLCONFIGDIR": str(tmp_path)})  # fmt: skip
    assert found["NUMBA_CACHE_DIR"].startswith(f"{tmp_path}/cxr-simclr-")
    assert found["TORCHINDUCTOR_CACHE_DIR"].startswith(f"{tmp_path}/cxr-simclr-")
    assert found["MPLCONFIGDIR"] == str(tmp_path) and not found["XDG_CACHE_HOME"]


def test_a_tmpdir_that_is_not_there_is_pointed_elsewhere() -> None:
    assert Path(caches({"TMPDIR": "/proc/no", "HOME": "/proc/no"})["TMPDIR"]).is_dir()


def test_a_home_is_not_looked_for_where_there_is_none() -> None:
    code = f"{NOBODY}\nfrom shard.cli import run\ndef main(place: Path) -> None: pass\nrun('x', main, ['~/a'])"
    done = subprocess.run([sys.executable, "-c", f"from pathlib import Path\n{code}"], cwd=ROOT, env=BARE,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "--place=~/a: there is no home for ~ here; give the whole path" in done.stderr


def test_training_with_read_only_code_and_no_home(shards: Shards, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "train", f"--shards={shards.folder}", f"--out={tmp_path / 'run'}",
               "--arch=resnet18", "--size=32", "--batch-size=16", "--limit-steps=1", "--workers=1",
               "--online-every=0"]  # fmt: skip
    script = f"mount --bind . . && mount -o remount,ro,bind . && cd {shlex.quote(str(ROOT))} && {shlex.join(command)}"
    done = unshared(script, {**BARE, "HOME": "/proc/nohome", "TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and "stopped after 1 steps" in done.stdout
    assert list((tmp_path / f"cxr-simclr-{os.getuid()}").glob("**/*.nbc"))  # and is compiled the next time


def test_a_place_that_cannot_be_written_ends_a_bench_before_it_measures() -> None:
    with pytest.raises(InputError, match=r"^/proc/b\.json: .*; name a file in another folder$"):
        make_place(Path("/proc/b.json"))
