"""The scripts of slurm/ as users submit them, on a live private cluster: arrays, preemption, requeue, nodes, chains."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.loader import has_dali
from shard.manifest import MANIFEST
from shard.write import build
from tests import slurm_cluster
from tests.conftest import ROOT, SMALL, run_module, same_run
from tests.slurm_cluster import Cluster, wait_until
from train.checkpoint import list_checkpoints, step_of
from train.journal import CARD, SPEED, read_journal

SCRIPTS = ROOT / "slurm"
SHARD_FLAGS: dict[str, int] = {"size": 64, "shard_size": 10, "partners": 2}
EPOCHS = 10
TRAIN_FLAGS = " ".join([*SMALL, f"--epochs={EPOCHS}", "--checkpoint-minutes=0", "--online-every=0"])
PROBE_FLAGS = "--shots=1,5 --draws=4 --device=cpu '--tasks=Lung Opacity,Pleural Effusion'"
CORES = {"SHARD_OPTIONS": "--cpus-per-task=1", "TRAIN_OPTIONS": "--cpus-per-task=1",
         "PROBE_OPTIONS": "--cpus-per-task=1"}  # fmt: skip

REQUIRED = os.environ.get("SLURM_TESTS") == "required"  # as .ci/run has it: where there is no Slurm they fail
LACKING = slurm_cluster.missing() or ("" if has_dali() else "the scripts train with --dali: no DALI here")
needs_cluster = pytest.mark.skipif(bool(LACKING) and not REQUIRED, reason=LACKING)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes of 4 cores and a pretended GPU each; a site that calls this Python by two words."""
    assert not LACKING, LACKING
    site = tmp_path_factory.mktemp("site") / "site.sh"
    site.write_text(f"CPU_OPTIONS=()\nGPU_OPTIONS=(--gres=gpu:1)\nPYTHON=(env {sys.executable})\n"
                    "enter_environment() { export OMP_NUM_THREADS=1; }\nSCRATCH_LOCAL=${SCRATCH_LOCAL:-}\n")
    cluster = Cluster()
    cluster.environment["SITE"] = str(site)
    cluster.start()
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def never_touched(radiographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of it, undisturbed: shards, run and report."""
    out = tmp_path_factory.mktemp("never-touched")
    build(radiographs, out / "shards", workers=1, **SHARD_FLAGS)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for command in ((["train", "--dali", f"--shards={out / 'shards'}", f"--out={out / 'run'}", "--workers=1"],
                     TRAIN_FLAGS), (["probe", "report", out / "run", f"--shards={out / 'shards'}"], PROBE_FLAGS)):
        words = [sys.executable, "-m", *command[0], *shlex.split(command[1])]
        subprocess.run(words, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    return out


def submit_chain(cluster: Cluster, cwd: Path, *steps: str, **given: Any) -> dict[str, str]:
    """What submit.sh submits, run in `cwd`: the step's name → its job."""
    said = cluster.run(SCRIPTS / "submit.sh", *steps, cwd=cwd, given={**CORES, **given})
    lines = [line.split() for line in said.splitlines() if line.startswith("  ") and " job " in line]
    return {words[0]: words[2].strip(",") for words in lines}


def steps_done(run: Path) -> int:
    """The step of a run's newest checkpoint."""
    return max(map(step_of, list_checkpoints(run)), default=0)


def log_of(run: Path, name: str, job: str) -> str:
    """The log of a job, or of a task written 12_3."""
    return (run / "logs" / f"cxr-{name}-{job}.log").read_text()


def kill_in_mid_build(cluster: Cluster, tasks: list[str], shards: Path) -> str:
    """Kill a task of a shard array while it builds, and have it requeued; returns which."""
    found = dict[str, list[int]]()

    def all_run() -> bool:
        found.update({task: cluster.processes(task, f"{sys.executable} -m shard build") for task in tasks})
        return all(found.values())

    wait_until(all_run, 60, "all tasks to run")
    while not list(shards.glob("*.tar")):
        time.sleep(0.002)
    for processes in found.values():
        for process in processes:
            os.kill(process, signal.SIGSTOP)
    unfinished = [number for number in range(len(tasks)) if not list(shards.glob(f"part-{number:05d}*"))]
    assert unfinished, "all tasks were done before one could be killed"
    task = tasks[unfinished[-1]]
    cluster.run("scontrol", "requeue", task)
    for processes in found.values():
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)
    return task


def preempt(cluster: Cluster, job: str, run: Path) -> tuple[int, int]:
    """Have a running training save another epoch, then told to stop, requeued and running again; the steps saved before
    and after."""
    before, restarts = steps_done(run), int(cluster.show(job)["Restarts"])
    wait_until(lambda: steps_done(run) > before, 90, f"job {job} to save after step {before}")
    cluster.run("scancel", "--signal=USR1", "--batch", job)  # what --signal=B:USR1@120 does
    wait_until(lambda: int(cluster.show(job)["Restarts"]) > restarts, 60, f"job {job} to be requeued")
    saved = steps_done(run)
    cluster.wait(job, "RUNNING", 60)
    return before, saved


@needs_cluster
@pytest.mark.long
def test_the_whole_path_killed_and_preempted_is_that_of_one_process_never_touched(
    cluster: Cluster, radiographs: Path, never_touched: Path, tmp_path: Path
) -> None:
    group = tmp_path / "a group's"  # whose folder has a space in it
    group.mkdir()
    shutil.copytree(radiographs, group / "radiographs")
    flags = " ".join(f"--{name.replace('_', '-')}={value}" for name, value in SHARD_FLAGS.items())
    jobs = submit_chain(cluster, group, SRC="radiographs", SHARDS="shards", RUN="runs/a", SHARD_PARTS=4,
                        SHARD_FLAGS=flags, TRAIN_FLAGS=TRAIN_FLAGS, PROBE_FLAGS=PROBE_FLAGS, PROBE_PARTS=2,
                        SCRATCH_LOCAL=tmp_path / "scratch")  # fmt: skip
    assert list(jobs) == ["shard", "merge", "pretrain", "probe", "report", "chain"]
    shards, run = group / "shards", group / "runs" / "a"

    tasks = [f"{jobs['shard']}_{number}" for number in range(4)]
    task = kill_in_mid_build(cluster, tasks, shards)
    cluster.wait(jobs["merge"], "COMPLETED")
    assert cluster.show(task)["Restarts"] == "1"
    made, wanted = ({file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
                    for folder in (shards, never_touched / "shards"))  # fmt: skip
    assert made == wanted and MANIFEST in made

    cluster.wait(jobs["pretrain"], "RUNNING")
    saved = [preempt(cluster, jobs["pretrain"], run) for _ in range(3)]
    cluster.wait(jobs["pretrain"], "COMPLETED")
    said = log_of(run, "pretrain", jobs["pretrain"])
    print(saved, cluster.show(jobs["pretrain"]), said, sep="\n")
    assert cluster.show(jobs["pretrain"])["Restarts"] == "3"
    assert all(0 <= before < after < steps_done(run) for before, after in saved)
    assert [line["step"] for line in read_journal(run, SPEED) if line["kind"] == "start"] == [
        0, *(after for _, after in saved)]  # fmt: skip
    assert said.count("copied and verified") == 1 and said.count("is there already") == 3
    assert f'"shards": "{tmp_path / "scratch"}' in (run / CARD).read_text()
    assert same_run(run, never_touched / "run")

    cluster.wait(jobs["chain"], "COMPLETED")
    assert log_of(run, "chain", jobs["chain"]).endswith(f"All is done: {run}/report/report.html\n")
    assert (run / "report" / "report.html").stat().st_size > 10_000
    for table in ("table.csv", "differences.csv", "draws.csv"):
        one, other = (folder / "report" / table for folder in (run, never_touched / "run"))
        assert one.read_bytes() == other.read_bytes(), table
    assert {f"cxr-shard-{task}.log" for task in tasks} <= {log.name for log in (run / "logs").iterdir()}


@needs_cluster
@pytest.mark.long
def test_a_failed_link_stops_the_chain_and_submitted_again_it_goes_on(
    cluster: Cluster, never_touched: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    given = {"SHARDS": never_touched / "shards", "RUN": run, "PROBE_FLAGS": PROBE_FLAGS, "SRC": tmp_path}
    jobs = submit_chain(cluster, tmp_path, **given, TRAIN_FLAGS=f"{TRAIN_FLAGS} --batch-size=1000".replace(
        "--batch-size=16 ", ""))  # fmt: skip
    assert list(jobs) == ["pretrain", "probe", "chain"]  # the shards are there
    cluster.wait(jobs["chain"], "FAILED")
    assert cluster.states(jobs["pretrain"]) == {"FAILED"} and cluster.states(jobs["probe"]) == {"CANCELLED"}
    said = log_of(run, "chain", jobs["chain"])
    assert f"The chain stopped at pretrain, job {jobs['pretrain']}: {jobs['pretrain']} FAILED" in said
    assert "--batch-size=1000:" in said and "run slurm/submit.sh again" in said

    jobs = submit_chain(cluster, tmp_path, **given, TRAIN_FLAGS=TRAIN_FLAGS)
    refused = subprocess.run([SCRIPTS / "submit.sh"], env={**cluster.environment, **CORES, **{
        name: str(value) for name, value in given.items()}}, text=True, capture_output=True)  # fmt: skip
    assert refused.returncode == 1 and f"{run}: jobs that write there are queued or running: " in refused.stderr
    wait_until(lambda: steps_done(run) > 0, 60, "a checkpoint")
    cluster.kill(jobs["pretrain"], f"{sys.executable} -m train")
    cluster.wait(jobs["chain"], "FAILED")
    assert f"The chain stopped at pretrain, job {jobs['pretrain']}" in log_of(run, "chain", jobs["chain"])
    before = steps_done(run)

    jobs = submit_chain(cluster, tmp_path, **given, TRAIN_FLAGS=TRAIN_FLAGS)
    cluster.wait(jobs["chain"], "COMPLETED")
    assert f"step {before})" in log_of(run, "pretrain", jobs["pretrain"])
    assert same_run(run, never_touched / "run") and (run / "report" / "report.html").exists()


@needs_cluster
def test_a_task_that_fails_is_named_with_its_log(cluster: Cluster, radiographs: Path, tmp_path: Path) -> None:
    jobs = submit_chain(cluster, tmp_path, "shard", SRC=radiographs, SHARDS="shards", RUN="run", SHARD_PARTS=2,
                        SHARD_FLAGS="--quality=101")  # fmt: skip
    cluster.wait(jobs["chain"], "FAILED")
    said = log_of(tmp_path / "run", "chain", jobs["chain"])
    assert f"The chain stopped at shard, job {jobs['shard']}: {jobs['shard']}_" in said
    assert all(f"{jobs['shard']}_{number} FAILED" in said for number in range(2))
    assert said.count("--quality=101: wants a number from 1 to 100") == 2
    assert cluster.states(jobs["merge"]) == {"CANCELLED"}


@needs_cluster
@pytest.mark.long
def test_two_nodes_give_the_losses_of_one_process_on_the_joint_batch(
    cluster: Cluster, never_touched: Path, tmp_path: Path
) -> None:
    # Adam's first steps are as long for a gradient's rounding as for the gradient itself: short ones, that runs which
    # differ in the last bit stay together.
    others = ("--log-every", "--lr")
    flags = [*(flag for flag in SMALL if not flag.startswith(others)), "--limit-steps=6", "--log-every=1", "--lr=1e-5"]
    job = cluster.submit("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", f"--output={tmp_path}/log.txt",
                         SCRIPTS / "pretrain.sbatch", SHARDS=never_touched / "shards", RUN=tmp_path / "two",
                         FLAGS=" ".join(flags))  # fmt: skip
    alone = run_module("train", "--dali", f"--shards={never_touched / 'shards'}", f"--out={tmp_path / 'one'}", *flags)
    assert alone.returncode == 0, alone.stderr
    cluster.wait(job, "COMPLETED")
    assert cluster.show(job)["NodeList"] == "n[1-2]"
    losses = [[line["loss"] for line in read_journal(tmp_path / name) if line["kind"] == "step"]
              for name in ("one", "two")]  # fmt: skip
    assert len(losses[0]) == 6 and '"ranks": 2' in (tmp_path / "two" / CARD).read_text()
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)  # in float32


@needs_cluster
def test_of_an_array_the_preempted_task_alone_is_requeued(
    cluster: Cluster, never_touched: Path, tmp_path: Path
) -> None:
    """Also where that task has the number of the whole array, as the last one to begin has."""
    (tmp_path / "sweep.txt").write_text(f"# name and flags\n\npublished\npatient --preset=patient --epochs={EPOCHS}\n")
    job = cluster.submit("--array=0-1", "--cpus-per-task=1", SCRIPTS / "sweep.sbatch", cwd=tmp_path, RUN="runs",
                         SHARDS=never_touched / "shards", SETTINGS="sweep.txt", FLAGS=TRAIN_FLAGS.replace(
                             f"--epochs={EPOCHS}", ""))  # fmt: skip
    names, tasks = ("published", "patient"), [f"{job}_{number}" for number in range(2)]
    wait_until(lambda: all(cluster.show(task)["JobState"] == "RUNNING" for task in tasks), 60, "both to run")
    last = next(number for number, task in enumerate(tasks) if cluster.show(task)["JobId"] == job)
    run = tmp_path / "runs" / names[last]
    preempt(cluster, tasks[last], run)
    assert cluster.show(tasks[1 - last])["Restarts"] == "0"
    # What is cancelled stays cancelled: it saves, and is not put into the queue again.
    cluster.run("scancel", job)
    wait_until(lambda: cluster.states(job) <= {"CANCELLED", "COMPLETED"}, 30, "both to end")
    time.sleep(3)
    assert cluster.states(job) <= {"CANCELLED", "COMPLETED"}
    assert (tmp_path / "runs" / "logs" / f"cxr-sweep-{tasks[last]}.log").is_symlink()  # from where it was submitted
    assert '"patient"' in (tmp_path / "runs" / "patient" / CARD).read_text()


@needs_cluster
@pytest.mark.long
def test_a_node_drained_in_mid_run_leaves_the_run_to_another(
    cluster: Cluster, never_touched: Path, tmp_path: Path
) -> None:
    job = cluster.submit("--cpus-per-task=1", f"--output={tmp_path}/log.txt", SCRIPTS / "pretrain.sbatch",
                         SHARDS=never_touched / "shards", RUN=tmp_path / "run", FLAGS=TRAIN_FLAGS)  # fmt: skip
    cluster.wait(job, "RUNNING")
    node = cluster.show(job)["NodeList"]
    cluster.run("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
    try:
        preempt(cluster, job, tmp_path / "run")
        assert cluster.show(job)["NodeList"] != node
        cluster.wait(job, "COMPLETED")
    finally:
        cluster.run("scontrol", "update", f"nodename={node}", "state=resume")
    assert same_run(tmp_path / "run", never_touched / "run")


@needs_cluster
@pytest.mark.long
def test_a_time_limit_too_short_to_begin_is_said_and_not_tried_for_ever(
    cluster: Cluster, never_touched: Path, tmp_path: Path
) -> None:
    python, site = tmp_path / "slow-python", tmp_path / "site.sh"
    python.write_text("#!/bin/sh\n[ $SLURM_RESTART_COUNT ] || [ \"$2\" != train ] || sleep 30\n"
                      f'exec {sys.executable} "$@"\n')  # fmt: skip
    python.chmod(0o755)
    site.write_text(f"PYTHON=({python})\nenter_environment() {{ export OMP_NUM_THREADS=1; }}\nSCRATCH_LOCAL=\n")
    given = {"SHARDS": never_touched / "shards", "RUN": tmp_path / "run", "FLAGS": TRAIN_FLAGS, "SITE": site}
    for limit in ("--time=3", "--time=60"):
        job = cluster.submit("--cpus-per-task=1", limit, f"--output={tmp_path}/log.txt", SCRIPTS / "pretrain.sbatch",
                             **given)  # fmt: skip
        wait_until(lambda job=job: bool(cluster.processes(job, "sleep 30")), 30, "training to be started")  # type: ignore[misc]
        cluster.run("scancel", "--signal=USR1", "--batch", job)
        if limit == "--time=3":
            cluster.wait(job, "FAILED")
            assert "its time was up before training had begun; submit it again with a longer --time" in (
                tmp_path / "log.txt").read_text()  # fmt: skip
    # It was preempted, and has time left.
    wait_until(lambda: cluster.show(job)["Restarts"] == "1", 30, "the job to be requeued")
    cluster.wait(job, "COMPLETED")
    assert same_run(tmp_path / "run", never_touched / "run")


@needs_cluster
@pytest.mark.long
def test_slurm_itself_tells_it_before_its_time_is_up_and_it_goes_on(
    cluster: Cluster, never_touched: Path, tmp_path: Path
) -> None:
    run, endless = tmp_path / "run", TRAIN_FLAGS.replace(f"--epochs={EPOCHS}", "--epochs=10000")
    job = cluster.submit("--cpus-per-task=1", "--time=30", "--signal=B:USR1@110", f"--output={tmp_path}/log.txt",
                         SCRIPTS / "pretrain.sbatch", RUN=run, SHARDS=never_touched / "shards",
                         FLAGS=endless)  # fmt: skip
    wait_until(lambda: steps_done(run) > 0, 90, "a checkpoint")
    cluster.run("scontrol", "update", f"jobid={job}", "timelimit=2")  # its end is near now
    wait_until(lambda: cluster.show(job)["Restarts"] == "1", 100, "Slurm to tell it, and the job to be requeued")
    saved = steps_done(run)
    wait_until(lambda: f", step {saved})" in (tmp_path / "log.txt").read_text(), 60, "the next start to go on")
    cluster.run("scancel", job)
    assert f"saved after step {saved}, as requested by SIGUSR1" in (tmp_path / "log.txt").read_text() and saved > 0


@needs_cluster
def test_a_full_disk_is_said_and_with_room_the_chain_goes_on(
    cluster: Cluster, never_touched: Path, small_disk: Path, tmp_path: Path
) -> None:
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    run, flags = small_disk / "run", TRAIN_FLAGS.replace(f"--epochs={EPOCHS}", "--epochs=2")
    given = {"SHARDS": never_touched / "shards", "RUN": run, "TRAIN_FLAGS": flags}
    jobs = submit_chain(cluster, tmp_path, "pretrain", **given)
    cluster.wait(jobs["chain"], "FAILED")
    said = log_of(run, "chain", jobs["chain"])
    assert f"The chain stopped at pretrain, job {jobs['pretrain']}" in said and "No space left on device" in said
    assert steps_done(run) == 0 and not list(run.rglob("*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=900m", small_disk], check=True)
    jobs = submit_chain(cluster, tmp_path, "pretrain", **given)
    cluster.wait(jobs["chain"], "COMPLETED")
    assert log_of(run, "chain", jobs["chain"]).endswith(f"All is done: {run}\n")


@needs_cluster
def test_a_part_is_built_by_hand_and_a_python_that_is_none_is_named(
    cluster: Cluster, radiographs: Path, tmp_path: Path
) -> None:
    given = {"SRC": radiographs, "SHARDS": tmp_path / "shards", "FLAGS": "--size=64 --shard-size=10"}
    script = SCRIPTS / "shard.sbatch"
    job = cluster.submit("--array=2", "--cpus-per-task=1", script, cwd=tmp_path, PARTS=4, **given)
    cluster.wait(job, "COMPLETED")
    assert [file.name for file in (tmp_path / "shards").glob("part-*.json")] == ["part-00002-of-00004.json"]
    (tmp_path / "site.sh").write_text("PYTHON=(python-of-nowhere)\nenter_environment() { :; }\n")
    log, given["SITE"] = tmp_path / "log.txt", tmp_path / "site.sh"
    cluster.wait(cluster.submit("--cpus-per-task=1", f"--output={log}", script, **given), "FAILED")
    assert "python-of-nowhere: no such command; set PYTHON and enter_environment in" in log.read_text()
    (tmp_path / "python").symlink_to("/bin/false")
    given["SITE"].write_text(f"PYTHON=({tmp_path / 'python'})\n")
    cluster.wait(cluster.submit("--cpus-per-task=1", f"--output={log}", script, **given), "FAILED")
    assert "cannot import what cxr-simclr needs" in log.read_text()


@needs_cluster
def test_of_two_at_the_same_moment_one_is_refused_however_the_folder_is_spelled(
    cluster: Cluster, never_touched: Path, tmp_path: Path
) -> None:
    (tmp_path / "here").mkdir()
    given = {**cluster.environment, **CORES, "SHARDS": str(never_touched / "shards"),
             "TRAIN_FLAGS": TRAIN_FLAGS.replace(f"--epochs={EPOCHS}", "--epochs=10000")}  # fmt: skip
    both = [subprocess.Popen([SCRIPTS / "submit.sh", "pretrain"], cwd=tmp_path / "here", env={**given, "RUN": run},
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for run in ("../run", f"{tmp_path}/here/../run/")]  # fmt: skip
    said = [process.communicate(timeout=120) for process in both]
    assert sorted(process.returncode for process in both) == [0, 1]
    assert sum("jobs that write there are queued or running: " in error for _, error in said) == 1
    out = next(out for out, _ in said if out)
    assert f"{tmp_path}/run/logs/cxr-chain-" in out and "/../" not in out
    cluster.run("scancel", *[line.split()[2].strip(",") for line in out.splitlines() if " job " in line][:2])


@needs_cluster
def test_a_partition_that_is_none_is_refused_before_anything_is_submitted(
    cluster: Cluster, never_touched: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site.sh"
    site.write_text("CPU_OPTIONS=()\nGPU_OPTIONS=(--partition=fast --gres=gpu:1)\nPYTHON=(python)\n")
    said = cluster.run(SCRIPTS / "submit.sh", cwd=tmp_path, check=False, given={
        "SITE": site, "SRC": tmp_path, "SHARDS": tmp_path / "shards", "RUN": tmp_path / "run"})  # fmt: skip
    assert said.count("\n") == 1 and "pretrain: " in said and "Invalid partition name specified" in said
    assert "--partition=fast" in said
    assert f"see CPU_OPTIONS and GPU_OPTIONS in {site}" in said and "nothing was submitted" in said
    assert not (tmp_path / "run").exists() and str(tmp_path) not in cluster.run("squeue", "-h", "-o", "%k")


@pytest.mark.parametrize(
    ("given", "steps", "wanted"),
    [({"RUN": "run"}, [], "set SHARDS"), ({"SHARDS": "shards"}, [], "set RUN"),
     ({"SHARDS": "shards", "RUN": "run"}, [], "set SRC"),
     ({"SHARDS": "shards", "RUN": "run", "SRC": "nowhere"}, [], "/nowhere: no such folder"),
     ({"SHARDS": "shards", "RUN": "run"}, ["probe"], "/shards: no manifest.json there; run the step shard too"),
     ({"SHARDS": "shards", "RUN": "run"}, ["prob"], "prob: no such step; there are shard, pretrain, sweep, probe"),
     ({"SHARDS": "shards", "RUN": "run", "SRC": ".", "SHARD_PARTS": "0"}, [],
      "SHARD_PARTS=0: wants a whole number"),
     ({"SHARDS": "shards", "RUN": "run", "SRC": "."}, ["shard", "sweep", "pretrain"], "pretrain sweep: both write"),
     ({"SHARDS": "shards", "RUN": "run", "SRC": ".", "TRAIN_FLAGS": "--dali=false"}, [],
      "--dali=false: the scripts set it"),
     ({"SHARDS": "shards", "RUN": "run", "SRC": ".", "SETTINGS": "/dev/stdin"}, ["shard", "sweep"], "names no run"),
     ({"SHARDS": "shards", "RUN": "run", "SRC": ".", "SHARD_FLAGS": "--size=64 --deidentify=secret"}, [],
      "--deidentify=secret: give an absolute path; jobs run in"),
     ({"SHARDS": "shards", "RUN": "run", "SRC": ".", "PROBE_FLAGS": "'--draws_file=of a/b.csv'"}, [],
      "--draws_file=of a/b.csv: give an absolute path"),
     ({"SHARDS": "shards", "RUN": "run", "SRC": "nowhere", "TRAIN_FLAGS": "--resume='/a b' --resume=auto"}, [],
      "/nowhere: no such folder"),
     ({"SHARDS": "shards", "RUN": "run", "SRC": ".", "PROBE_FLAGS": "--tasks='Lung Opacity"}, [], "close the quotes"),
     ({"SHARDS": "shards", "RUN": "10%jx", "SRC": "."}, [], "10%jx: Slurm reads a % in the name of a log"),
     ({"SHARDS": "shards", "RUN": "run", "SRC": ".", "SITE": "none.sh"}, [], "/none.sh: no such file")],
)  # fmt: skip
def test_what_submit_is_given_is_checked_first(
    tmp_path: Path, given: dict[str, str], steps: list[str], wanted: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("SRC", "SHARDS", "RUN")}
    done = subprocess.run([SCRIPTS / "submit.sh", *steps], cwd=tmp_path, env={**environment, **given}, text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 1 and wanted in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_shards_are_copied_where_they_fit_and_as_they_are(
    never_touched: Path, small_disk: Path, tmp_path: Path
) -> None:
    def stage(shards: Path, copy: Path) -> tuple[int, str]:
        command = [SCRIPTS / "stage.sh", shards, copy, sys.executable]
        done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
        return done.returncode, done.stdout + done.stderr

    shards = tmp_path / "shards"
    shutil.copytree(never_touched / "shards", shards)
    (shards / "padding").write_bytes(b"0" * (2 << 20))
    status, said = stage(shards, small_disk / "copy")
    assert status == 3 and "MiB are free" in said and "not copied" in said
    assert not list(small_disk.glob("copy*/")), list(small_disk.iterdir())
    status, said = stage(shards, tmp_path / "local" / "copy")
    assert status == 0 and "copied and verified" in said
    assert all((tmp_path / "local" / "copy" / file.name).read_bytes() == file.read_bytes() for file in shards.iterdir())
    assert stage(shards, tmp_path / "local" / "copy")[1].endswith("is there already\n")
    tar = sorted((tmp_path / "local" / "copy").glob("*.tar"))[0]
    tar.write_bytes(tar.read_bytes()[:-512])  # a copy that was spoilt is made anew
    assert "copied and verified" in stage(shards, tmp_path / "local" / "copy")[1]
    rotten = bytearray((shards / tar.name).read_bytes())
    rotten[700] ^= 1
    (shards / tar.name).write_bytes(rotten)
    status, said = stage(shards, tmp_path / "other")
    assert status == 1 and "not used" in said and not (tmp_path / "other").exists()


def test_the_scripts_pass_shellcheck_and_say_what_they_do() -> None:
    for script in sorted(SCRIPTS.iterdir()):
        text = script.read_text()
        if script.name != "site.example.sh":
            assert "\nset -euo pipefail\n" in text, script
        if script.suffix == ".sbatch" or script.name == "submit.sh":
            assert "# To set: " in text or "# Set by " in text, script
            assert "Leaves" in text, script
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck here; on Debian: apt install shellcheck")
    scripts = [script for script in sorted(SCRIPTS.iterdir()) if script.suffix in (".sh", ".sbatch")]
    done = subprocess.run(["shellcheck", "-x", *scripts], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout
