"""With read-only code and no home, the libraries' caches move to a writable folder, and commands run."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bench.output import prepare_output_path
from shard.errors import InputError
from tests.conftest import ROOT, Shards

NAMES = ("XDG_CACHE_HOME", "MPLCONFIGDIR", "TRITON_CACHE_DIR", "NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TMPDIR")
BARE = {"PATH": os.environ["PATH"]}
UNKNOWN_USER = "import pwd\ndef unknown(uid): raise KeyError(uid)\npwd.getpwuid = unknown\n"


def caches(environment: dict[str, str], setup: str = "") -> dict[str, str]:
    """Return the variables NAMES in a new process that has run `setup` and imported shard."""
    code = f"{setup}\nimport os, shard\nfor name in {NAMES}: print(os.environ.get(name, ''))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**BARE, **environment}, capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(zip(NAMES, done.stdout.splitlines(), strict=True))


def run_unshared(script: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a shell script in its own mount namespace; skip the test if that is not permitted."""
    namespace = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True)
    if namespace.returncode != 0:
        pytest.skip(f"a mount namespace can't be created: {namespace.stderr.strip()}")
    return subprocess.run(["unshare", "--mount", "sh", "-euc", script], cwd=ROOT, env=environment, capture_output=True,
                          text=True, timeout=240)  # fmt: skip


def test_writable_home_changes_no_variables(tmp_path: Path) -> None:
    found = caches({"HOME": str(tmp_path), "TMPDIR": str(tmp_path)})
    assert found == {**dict.fromkeys(NAMES, ""), "TMPDIR": str(tmp_path)}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("home", "setup"), [("/proc/nohome", ""), ("", UNKNOWN_USER)], ids=["missing", "unknown user"])
def test_caches_without_a_home_go_to_a_private_folder(home: str, setup: str, tmp_path: Path) -> None:
    environment = {"TMPDIR": str(tmp_path), **({"HOME": home} if home else {})}
    found = caches(environment, setup)
    folder = tmp_path / f"cxr-simclr-{os.getuid()}"
    assert {name for name in NAMES if found[name].startswith(f"{folder}/")} == set(NAMES[:3])
    assert folder.stat().st_mode & 0o777 == 0o700
    assert caches(environment, setup) == found


def test_folder_that_others_can_write_to_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / f"cxr-simclr-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)  # numba executes what its cache contains
    found = caches({"TMPDIR": str(tmp_path), "HOME": "/proc/nohome"})["XDG_CACHE_HOME"]
    assert found.startswith(f"{tmp_path}/") and not found.startswith(f"{folder}/")


def test_variable_with_an_unwritable_folder_is_replaced(tmp_path: Path) -> None:
    found = caches({"TMPDIR": str(tmp_path), "HOME": str(tmp_path), "NUMBA_CACHE_DIR": "/proc/no",
                    "TORCHINDUCTOR_CACHE_DIR": "/proc/no", "MPLCONFIGDIR": str(tmp_path)})  # fmt: skip
    assert found["NUMBA_CACHE_DIR"].startswith(f"{tmp_path}/cxr-simclr-")
    assert found["TORCHINDUCTOR_CACHE_DIR"].startswith(f"{tmp_path}/cxr-simclr-")
    assert found["MPLCONFIGDIR"] == str(tmp_path) and not found["XDG_CACHE_HOME"]


def test_missing_tmpdir_is_replaced() -> None:
    assert Path(caches({"TMPDIR": "/proc/no", "HOME": "/proc/no"})["TMPDIR"]).is_dir()


def test_tilde_without_a_home_is_refused() -> None:
    code = f"{UNKNOWN_USER}\nfrom shard.cli import run\ndef main(place: Path) -> None: pass\nrun('x', main, ['~/a'])"
    done = subprocess.run([sys.executable, "-c", f"from pathlib import Path\n{code}"], cwd=ROOT, env=BARE,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "--place=~/a: there is no home directory for ~; give the full path" in done.stderr


@pytest.mark.long
def test_training_with_read_only_code_and_no_home(shards: Shards, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "train", f"--shards={shards.folder}", f"--out={tmp_path / 'run'}",
               "--arch=resnet18", "--size=32", "--batch-size=16", "--limit-steps=1", "--workers=1",
               "--online-every=0"]  # fmt: skip
    script = f"mount --bind . . && mount -o remount,ro,bind . && cd {shlex.quote(str(ROOT))} && {shlex.join(command)}"
    done = run_unshared(script, {**BARE, "HOME": "/proc/nohome", "TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and "stopped after 1 steps" in done.stdout
    assert list((tmp_path / f"cxr-simclr-{os.getuid()}").glob("**/*.nbc"))  # so that the next run compiles nothing


def test_benchmark_refuses_an_unwritable_result_before_it_measures() -> None:
    with pytest.raises(InputError, match=r"^/proc/b\.json: .*; name a file in another folder$"):
        prepare_output_path(Path("/proc/b.json"))
