"""The scripts of slurm/ on a live private cluster: arrays, preemption, requeueing, several nodes, chains of jobs."""

from __future__ import annotations

import contextlib
import itertools
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

REQUIRED = os.environ.get("SLURM_TESTS") == "required"  # set by .ci/run: fail instead of skipping without Slurm
MISSING = slurm_cluster.missing() or ("" if has_dali() else "the scripts train with --dali: no DALI here")
needs_cluster = pytest.mark.skipif(bool(MISSING) and not REQUIRED, reason=MISSING)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes with 4 cores and a fake GPU each. The site calls this Python with a command of two words."""
    assert not MISSING, MISSING
    site = tmp_path_factory.mktemp("site") / "site.sh"
    site.write_text(f"CPU_OPTIONS=()\nGPU_OPTIONS=(--gres=gpu:1)\nPYTHON=(env {sys.executable})\n"
                    "enter_environment() { export OMP_NUM_THREADS=1; }\nSCRATCH_LOCAL=${SCRATCH_LOCAL:-}\n")
    cluster = Cluster()
    cluster.environment["SITE"] = str(site)
    cluster.start()
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def undisturbed(radiographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, run and report built without interruptions, in one process each."""
    out = tmp_path_factory.mktemp("undisturbed")
    build(radiographs, out / "shards", workers=1, **SHARD_FLAGS)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for command in ((["train", "--dali", f"--shards={out / 'shards'}", f"--out={out / 'run'}", "--workers=1"],
                     TRAIN_FLAGS), (["probe", "report", out / "run", f"--shards={out / 'shards'}"], PROBE_FLAGS)):
        words = [sys.executable, "-m", *command[0], *shlex.split(command[1])]
        subprocess.run(words, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    return out


def submit_chain(cluster: Cluster, cwd: Path, *steps: str, **given: Any) -> dict[str, str]:
    """Run submit.sh in `cwd`, and return step → job id."""
    output = cluster.run(SCRIPTS / "submit.sh", *steps, cwd=cwd, given={**CORES, **given})
    lines = [line.split() for line in output.splitlines() if line.startswith("  ") and " job " in line]
    return {words[0]: words[2].strip(",") for words in lines}


def steps_done(run: Path) -> int:
    """Return the step of a run's newest checkpoint, 0 without one."""
    return max(map(step_of, list_checkpoints(run)), default=0)


def log_of(run: Path, name: str, job: str) -> str:
    """Read the log of a job, or of a task such as 12_3."""
    return (run / "logs" / f"cxr-{name}-{job}.log").read_text()


def requeue_during_build(cluster: Cluster, tasks: list[str], shards: Path) -> str:
    """Requeue a task of a shard array while it builds. Returns the task."""
    processes = dict[str, list[int]]()

    def all_run() -> bool:
        processes.update({task: cluster.processes(task, f"{sys.executable} -m shard build") for task in tasks})
        return all(processes.values())

    wait_until(all_run, 60, "all tasks to run")
    while not list(shards.glob("*.tar")):
        time.sleep(0.002)
    for process in itertools.chain(*processes.values()):
        os.kill(process, signal.SIGSTOP)
    unfinished = [number for number in range(len(tasks)) if not list(shards.glob(f"part-{number:05d}*"))]
    assert unfinished, "all tasks finished before one could be requeued"
    task = tasks[unfinished[-1]]
    cluster.run("scontrol", "requeue", task)
    for process in itertools.chain(*processes.values()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)
    return task


def preempt(cluster: Cluster, job: str, run: Path) -> tuple[int, int]:
    """Wait until a training job saves another epoch, signal it to stop, and wait until it runs again.

    Returns the steps saved before and after.
    """
    before, restarts = steps_done(run), int(cluster.show(job)["Restarts"])
    wait_until(lambda: steps_done(run) > before, 90, f"job {job} to save after step {before}")
    cluster.run("scancel", "--signal=USR1", "--batch", job)  # as with --signal=B:USR1@120
    wait_until(lambda: int(cluster.show(job)["Restarts"]) > restarts, 60, f"job {job} to be requeued")
    saved = steps_done(run)
    cluster.wait(job, "RUNNING", 60)
    return before, saved


@needs_cluster
@pytest.mark.long
def test_interrupted_chain_gives_the_same_files_as_an_undisturbed_run(
    cluster: Cluster, radiographs: Path, undisturbed: Path, tmp_path: Path
) -> None:
    group = tmp_path / "a group's"  # the path contains a space and a quote
    group.mkdir()
    shutil.copytree(radiographs, group / "radiographs")
    flags = " ".join(f"--{name.replace('_', '-')}={value}" for name, value in SHARD_FLAGS.items())
    jobs = submit_chain(cluster, group, SRC="radiographs", SHARDS="shards", RUN="runs/a", SHARD_PARTS=4,
                        SHARD_FLAGS=flags, TRAIN_FLAGS=TRAIN_FLAGS, PROBE_FLAGS=PROBE_FLAGS, PROBE_PARTS=2,
                        SCRATCH_LOCAL=tmp_path / "scratch")  # fmt: skip
    assert list(jobs) == ["shard", "merge", "pretrain", "probe", "report", "chain"]
    shards, run = group / "shards", group / "runs" / "a"

    tasks = [f"{jobs['shard']}_{number}" for number in range(4)]
    task = requeue_during_build(cluster, tasks, shards)
    cluster.wait(jobs["merge"], "COMPLETED")
    assert cluster.show(task)["Restarts"] == "1"
    built, expected = ({file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
                       for folder in (shards, undisturbed / "shards"))  # fmt: skip
    assert built == expected and MANIFEST in built

    cluster.wait(jobs["pretrain"], "RUNNING")
    saved = [preempt(cluster, jobs["pretrain"], run) for _ in range(3)]
    cluster.wait(jobs["pretrain"], "COMPLETED")
    log = log_of(run, "pretrain", jobs["pretrain"])
    print(saved, cluster.show(jobs["pretrain"]), log, sep="\n")
    assert cluster.show(jobs["pretrain"])["Restarts"] == "3"
    assert all(0 <= before < after < steps_done(run) for before, after in saved)
    assert [line["step"] for line in read_journal(run, SPEED) if line["kind"] == "start"] == [
        0, *(after for _, after in saved)]  # fmt: skip
    assert log.count("copied and verified") == 1 and log.count("exists already") == 3
    assert f'"shards": "{tmp_path / "scratch"}' in (run / CARD).read_text()
    assert same_run(run, undisturbed / "run")

    cluster.wait(jobs["chain"], "COMPLETED")
    assert log_of(run, "chain", jobs["chain"]).endswith(f"All jobs are done: {run}/report/report.html\n")
    assert (run / "report" / "report.html").stat().st_size > 10_000
    for table in ("table.csv", "differences.csv", "draws.csv"):
        one, other = (folder / "report" / table for folder in (run, undisturbed / "run"))
        assert one.read_bytes() == other.read_bytes(), table
    assert {f"cxr-shard-{task}.log" for task in tasks} <= {log.name for log in (run / "logs").iterdir()}


@needs_cluster
@pytest.mark.long
def test_failed_job_stops_the_chain_and_a_second_submission_resumes(
    cluster: Cluster, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    given = {"SHARDS": undisturbed / "shards", "RUN": run, "PROBE_FLAGS": PROBE_FLAGS, "SRC": tmp_path}
    jobs = submit_chain(cluster, tmp_path, **given, TRAIN_FLAGS=f"{TRAIN_FLAGS} --batch-size=1000".replace(
        "--batch-size=16 ", ""))  # fmt: skip
    assert list(jobs) == ["pretrain", "probe", "chain"]  # the shards exist
    cluster.wait(jobs["chain"], "FAILED")
    assert cluster.states(jobs["pretrain"]) == {"FAILED"} and cluster.states(jobs["probe"]) == {"CANCELLED"}
    log = log_of(run, "chain", jobs["chain"])
    assert f"The chain stopped at pretrain, job {jobs['pretrain']}: {jobs['pretrain']} FAILED" in log
    assert "--batch-size=1000:" in log and "run slurm/submit.sh again" in log

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
    assert same_run(run, undisturbed / "run") and (run / "report" / "report.html").exists()


@needs_cluster
def test_failed_array_tasks_are_reported_with_their_logs(cluster: Cluster, radiographs: Path, tmp_path: Path) -> None:
    jobs = submit_chain(cluster, tmp_path, "shard", SRC=radiographs, SHARDS="shards", RUN="run", SHARD_PARTS=2,
                        SHARD_FLAGS="--quality=101")  # fmt: skip
    cluster.wait(jobs["chain"], "FAILED")
    log = log_of(tmp_path / "run", "chain", jobs["chain"])
    assert f"The chain stopped at shard, job {jobs['shard']}: {jobs['shard']}_" in log
    assert all(f"{jobs['shard']}_{number} FAILED" in log for number in range(2))
    assert log.count("--quality=101: must be a number from 1 to 100") == 2
    assert cluster.states(jobs["merge"]) == {"CANCELLED"}


@needs_cluster
@pytest.mark.long
def test_two_nodes_give_the_losses_of_one_process_on_the_joint_batch(
    cluster: Cluster, undisturbed: Path, tmp_path: Path
) -> None:
    # Adam's first steps have the same length for rounding errors as for gradients. A low learning rate keeps runs that
    # differ in the last bit together.
    others = ("--log-every", "--lr")
    flags = [*(flag for flag in SMALL if not flag.startswith(others)), "--limit-steps=6", "--log-every=1", "--lr=1e-5"]
    job = cluster.submit("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", f"--output={tmp_path}/log.txt",
                         SCRIPTS / "pretrain.sbatch", SHARDS=undisturbed / "shards", RUN=tmp_path / "two",
                         FLAGS=" ".join(flags))  # fmt: skip
    alone = run_module("train", "--dali", f"--shards={undisturbed / 'shards'}", f"--out={tmp_path / 'one'}", *flags)
    assert alone.returncode == 0, alone.stderr
    cluster.wait(job, "COMPLETED")
    assert cluster.show(job)["NodeList"] == "n[1-2]"
    losses = [[line["loss"] for line in read_journal(tmp_path / name) if line["kind"] == "step"]
              for name in ("one", "two")]  # fmt: skip
    assert len(losses[0]) == 6 and '"ranks": 2' in (tmp_path / "two" / CARD).read_text()
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)  # in float32


@pytest.mark.long
@needs_cluster
def test_job_whose_gpu_pytorch_cannot_use_fails_at_once(
    cluster: Cluster, undisturbed: Path, tmp_path: Path
) -> None:
    """The nodes' GPUs are fakes."""
    flags, site, run = TRAIN_FLAGS.replace("--device=cpu ", ""), tmp_path / "site.sh", tmp_path / "run"

    def submit(script: str, flags: str, **given: object) -> tuple[str, Path]:
        log = tmp_path / f"log-{len(list(tmp_path.glob('log-*')))}.txt"
        log.touch()
        return cluster.submit("--cpus-per-task=1", f"--output={log}", SCRIPTS / script, SHARDS=undisturbed / "shards",
                              FLAGS=flags, **given), log  # fmt: skip

    for script, words, message in (
        ("pretrain.sbatch", flags, "--device=cuda: PyTorch finds no GPU, but this process was given one ("),
        ("pretrain.sbatch", f"{flags} --device=auto", "error: PyTorch finds no GPU, but this process was given one ("),
        ("probe.sbatch", "", "--device=cuda: PyTorch finds no GPU, but this process was given one (")):  # fmt: skip
        given = {"RUN": undisturbed / "run" if script == "probe.sbatch" else run}
        job, log = submit(script, words, **given)
        cluster.wait(job, "FAILED")
        assert log.read_text().count(message) == 1, log.read_text()
        assert "Traceback" not in log.read_text()
    assert steps_done(run) == 0
    site.write_text(f"{Path(cluster.environment['SITE']).read_text()}DEVICE=cpu\n")
    job, log = submit("pretrain.sbatch", flags, RUN=run, SITE=site)
    cluster.wait(job, "COMPLETED")
    assert same_run(run, undisturbed / "run")


@pytest.mark.long
@needs_cluster
def test_only_the_preempted_task_of_an_array_is_requeued(
    cluster: Cluster, undisturbed: Path, tmp_path: Path
) -> None:
    """The last task to start has the same number as the whole array."""
    (tmp_path / "sweep.txt").write_text(f"# name and flags\n\npublished\npatient --preset=patient --epochs={EPOCHS}\n")
    job = cluster.submit("--array=0-1", "--cpus-per-task=1", SCRIPTS / "sweep.sbatch", cwd=tmp_path, RUN="runs",
                         SHARDS=undisturbed / "shards", SETTINGS="sweep.txt", FLAGS=TRAIN_FLAGS.replace(
                             f"--epochs={EPOCHS}", ""))  # fmt: skip
    names, tasks = ("published", "patient"), [f"{job}_{number}" for number in range(2)]
    wait_until(lambda: all(cluster.show(task)["JobState"] == "RUNNING" for task in tasks), 60, "both to run")
    last = next(number for number, task in enumerate(tasks) if cluster.show(task)["JobId"] == job)
    run = tmp_path / "runs" / names[last]
    preempt(cluster, tasks[last], run)
    assert cluster.show(tasks[1 - last])["Restarts"] == "0"
    # Cancelled tasks save and are not requeued.
    cluster.run("scancel", job)
    wait_until(lambda: cluster.states(job) <= {"CANCELLED", "COMPLETED"}, 30, "both to end")
    time.sleep(3)
    assert cluster.states(job) <= {"CANCELLED", "COMPLETED"}
    assert (tmp_path / "runs" / "logs" / f"cxr-sweep-{tasks[last]}.log").is_symlink()  # to the folder of submission
    assert '"patient"' in (tmp_path / "runs" / "patient" / CARD).read_text()


@needs_cluster
@pytest.mark.long
def test_run_on_a_drained_node_resumes_on_another(
    cluster: Cluster, undisturbed: Path, tmp_path: Path
) -> None:
    job = cluster.submit("--cpus-per-task=1", f"--output={tmp_path}/log.txt", SCRIPTS / "pretrain.sbatch",
                         SHARDS=undisturbed / "shards", RUN=tmp_path / "run", FLAGS=TRAIN_FLAGS)  # fmt: skip
    cluster.wait(job, "RUNNING")
    node = cluster.show(job)["NodeList"]
    cluster.run("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
    try:
        preempt(cluster, job, tmp_path / "run")
        assert cluster.show(job)["NodeList"] != node
        cluster.wait(job, "COMPLETED")
    finally:
        cluster.run("scontrol", "update", f"nodename={node}", "state=resume")
    assert same_run(tmp_path / "run", undisturbed / "run")


@needs_cluster
@pytest.mark.long
def test_time_limit_too_short_to_start_training_fails_without_requeueing(
    cluster: Cluster, undisturbed: Path, tmp_path: Path
) -> None:
    python, site = tmp_path / "slow-python", tmp_path / "site.sh"
    python.write_text("#!/bin/sh\n[ $SLURM_RESTART_COUNT ] || [ \"$2\" != train ] || sleep 30\n"
                      f'exec {sys.executable} "$@"\n')  # fmt: skip
    python.chmod(0o755)
    site.write_text(f"PYTHON=({python})\nenter_environment() {{ export OMP_NUM_THREADS=1; }}\nSCRATCH_LOCAL=\n")
    given = {"SHARDS": undisturbed / "shards", "RUN": tmp_path / "run", "FLAGS": TRAIN_FLAGS, "SITE": site}
    for limit in ("--time=3", "--time=60"):
        job = cluster.submit("--cpus-per-task=1", limit, f"--output={tmp_path}/log.txt", SCRIPTS / "pretrain.sbatch",
                             **given)  # fmt: skip
        wait_until(lambda job=job: bool(cluster.processes(job, "sleep 30")), 30, "training to start")  # type: ignore[misc]
        cluster.run("scancel", "--signal=USR1", "--batch", job)
        if limit == "--time=3":
            cluster.wait(job, "FAILED")
            assert "the time limit was reached before training started; submit it again with a longer --time" in (
                tmp_path / "log.txt").read_text()  # fmt: skip
    # The second job was preempted with time left.
    wait_until(lambda: cluster.show(job)["Restarts"] == "1", 30, "the job to be requeued")
    cluster.wait(job, "COMPLETED")
    assert same_run(tmp_path / "run", undisturbed / "run")


@needs_cluster
@pytest.mark.long
def test_signal_before_the_time_limit_saves_and_requeues(
    cluster: Cluster, undisturbed: Path, tmp_path: Path
) -> None:
    run, endless = tmp_path / "run", TRAIN_FLAGS.replace(f"--epochs={EPOCHS}", "--epochs=10000")
    job = cluster.submit("--cpus-per-task=1", "--time=30", "--signal=B:USR1@110", f"--output={tmp_path}/log.txt",
                         SCRIPTS / "pretrain.sbatch", RUN=run, SHARDS=undisturbed / "shards",
                         FLAGS=endless)  # fmt: skip
    wait_until(lambda: steps_done(run) > 0, 90, "a checkpoint")
    cluster.run("scontrol", "update", f"jobid={job}", "timelimit=2")  # the limit is near now
    wait_until(lambda: cluster.show(job)["Restarts"] == "1", 100, "Slurm to signal the job and requeue it")
    saved = steps_done(run)
    wait_until(lambda: f", step {saved})" in (tmp_path / "log.txt").read_text(), 60, "the next start to resume")
    cluster.run("scancel", job)
    assert f"saved after step {saved}, as requested by SIGUSR1" in (tmp_path / "log.txt").read_text() and saved > 0


@pytest.mark.long
@needs_cluster
def test_full_disk_is_reported_and_the_chain_resumes_with_room(
    cluster: Cluster, undisturbed: Path, small_disk: Path, tmp_path: Path
) -> None:
    subprocess.run(["mount", "-o", "remount,size=3m", small_disk], check=True)
    run, flags = small_disk / "run", TRAIN_FLAGS.replace(f"--epochs={EPOCHS}", "--epochs=2")
    given = {"SHARDS": undisturbed / "shards", "RUN": run, "TRAIN_FLAGS": flags}
    jobs = submit_chain(cluster, tmp_path, "pretrain", **given)
    cluster.wait(jobs["chain"], "FAILED")
    log = log_of(run, "chain", jobs["chain"])
    assert f"The chain stopped at pretrain, job {jobs['pretrain']}" in log and "No space left on device" in log
    assert steps_done(run) == 0 and not list(run.rglob("*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=900m", small_disk], check=True)
    jobs = submit_chain(cluster, tmp_path, "pretrain", **given)
    cluster.wait(jobs["chain"], "COMPLETED")
    assert log_of(run, "chain", jobs["chain"]).endswith(f"All jobs are done: {run}\n")


@needs_cluster
def test_single_part_is_built_by_hand(cluster: Cluster, radiographs: Path, tmp_path: Path) -> None:
    job = cluster.submit("--array=2", "--cpus-per-task=1", SCRIPTS / "shard.sbatch", cwd=tmp_path, SRC=radiographs,
                         SHARDS=tmp_path / "shards", PARTS=4, FLAGS="--size=64 --shard-size=10")  # fmt: skip
    cluster.wait(job, "COMPLETED")
    assert [file.name for file in (tmp_path / "shards").glob("part-*.json")] == ["part-00002-of-00004.json"]


@needs_cluster
@pytest.mark.parametrize(("python", "message"), [
    ("python-of-nowhere", "python-of-nowhere: no such command; set PYTHON and enter_environment in"),
    ("/bin/false", "cannot import the dependencies of cxr-simclr")], ids=["missing", "without-packages"])  # fmt: skip
def test_unusable_python_is_reported(
    cluster: Cluster, radiographs: Path, tmp_path: Path, python: str, message: str
) -> None:
    site, log = tmp_path / "site.sh", tmp_path / "log.txt"
    site.write_text(f"PYTHON=({python})\nenter_environment() {{ :; }}\n")
    job = cluster.submit("--cpus-per-task=1", f"--output={log}", SCRIPTS / "shard.sbatch", SRC=radiographs,
                         SHARDS=tmp_path / "shards", SITE=site)  # fmt: skip
    cluster.wait(job, "FAILED")
    assert message in log.read_text()


@pytest.mark.parametrize(("shards", "cache"), [("s3://bucket/a", "/local/cxr-cache"), ("/data/shards", "")])
def test_shards_at_an_address_are_cached_on_the_local_disk(shards: str, cache: str) -> None:
    script = f"source {SCRIPTS}/job.sh && cache_locally && echo \"${{CXR_CACHE:-}}\""
    environment = {"PATH": os.environ["PATH"], "SHARDS": shards, "SCRATCH_LOCAL": "/local"}
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == cache


@pytest.mark.long
@needs_cluster
def test_concurrent_submission_to_the_same_folder_is_refused(
    cluster: Cluster, undisturbed: Path, tmp_path: Path
) -> None:
    (tmp_path / "here").mkdir()
    given = {**cluster.environment, **CORES, "SHARDS": str(undisturbed / "shards"),
             "TRAIN_FLAGS": TRAIN_FLAGS.replace(f"--epochs={EPOCHS}", "--epochs=10000")}  # fmt: skip
    both = [subprocess.Popen([SCRIPTS / "submit.sh", "pretrain"], cwd=tmp_path / "here", env={**given, "RUN": run},
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for run in ("../run", f"{tmp_path}/here/../run/")]  # fmt: skip
    results = [process.communicate(timeout=120) for process in both]
    assert sorted(process.returncode for process in both) == [0, 1]
    assert sum("jobs that write there are queued or running: " in error for _, error in results) == 1
    out = next(out for out, _ in results if out)
    assert f"{tmp_path}/run/logs/cxr-chain-" in out and "/../" not in out
    cluster.run("scancel", *[line.split()[2].strip(",") for line in out.splitlines() if " job " in line][:2])


@pytest.mark.long
@needs_cluster
def test_unknown_partition_is_refused_before_any_job_is_submitted(
    cluster: Cluster, undisturbed: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site.sh"
    site.write_text("CPU_OPTIONS=()\nGPU_OPTIONS=(--partition=fast --gres=gpu:1)\nPYTHON=(python)\n")
    output = cluster.run(SCRIPTS / "submit.sh", cwd=tmp_path, check=False, given={
        "SITE": site, "SRC": tmp_path, "SHARDS": tmp_path / "shards", "RUN": tmp_path / "run"})  # fmt: skip
    assert output.count("\n") == 1 and "pretrain: " in output and "Invalid partition name specified" in output
    assert "--gres=gpu:1 --nodes=1 --ntasks-per-node=1 --cpus-per-task=8 --time=2-00:00:00 --partition=fast" in output
    assert f"correct CPU_OPTIONS and GPU_OPTIONS in {site}" in output and "nothing was submitted" in output
    assert not (tmp_path / "run").exists() and str(tmp_path) not in cluster.run("squeue", "-h", "-o", "%k")


@pytest.mark.parametrize(
    ("given", "steps", "message"),
    [({"RUN": "run"}, [], "set SHARDS"), ({"SHARDS": "shards"}, [], "set RUN"),
     ({"SHARDS": "shards", "RUN": "run"}, [], "set SRC"),
     ({"SHARDS": "shards", "RUN": "run", "SRC": "nowhere"}, [], "/nowhere: no such folder"),
     ({"SHARDS": "shards", "RUN": "run"}, ["probe"], "/shards: no manifest.json there; run the step shard too"),
     ({"SHARDS": "shards", "RUN": "run"}, ["prob"], "prob: no such step; available: shard, pretrain, sweep, probe"),
     ({"SHARDS": "shards", "RUN": "run", "SRC": ".", "SHARD_PARTS": "0"}, [],
      "SHARD_PARTS=0: expects a whole number"),
     ({"SHARDS": "shards", "RUN": "run", "SRC": "."}, ["shard", "sweep", "pretrain"], "pretrain sweep: both write"),
     ({"SHARDS": "shards", "RUN": "run", "SRC": ".", "TRAIN_FLAGS": "--dali=false"}, [],
      "--dali=false: the scripts set it"),
     ({"SHARDS": "shards", "RUN": "run", "SRC": ".", "SETTINGS": "/dev/stdin"}, ["shard", "sweep"], "names no run"),
     ({"SHARDS": "shards", "RUN": "run", "SRC": ".", "SHARD_FLAGS": "--size=64 --deidentify=secret"}, [],
      "--deidentify=secret: give an absolute path; jobs run in"),
     ({"SHARDS": "shards", "RUN": "run", "SRC": ".", "PROBE_FLAGS": "'--draws_file=of a/b.csv'"}, [],
      "--draws_file=of a/b.csv: give an absolute path"),
     ({"SHARDS": "shards", "RUN": "run", "SRC": "nowhere",
       "TRAIN_FLAGS": "--resume='/a b' --resume=auto --init=imagenet"}, [],
      "/nowhere: no such folder"),
     ({"SHARDS": "shards", "RUN": "run", "SRC": ".", "TRAIN_FLAGS": "--init=weights/a.pth"}, [],
      "--init=weights/a.pth: give an absolute path"),
     ({"SHARDS": "shards", "RUN": "run", "SRC": ".", "PROBE_FLAGS": "--tasks='Lung Opacity"}, [], "close the quotes"),
     ({"SHARDS": "shards", "RUN": "10%jx", "SRC": "."}, [], "10%jx: Slurm expands a % in the name of a log"),
     ({"SHARDS": "shards", "RUN": "run", "SRC": ".", "SITE": "none.sh"}, [], "/none.sh: no such file")],
)  # fmt: skip
def test_submit_refuses_bad_variables(
    tmp_path: Path, given: dict[str, str], steps: list[str], message: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("SRC", "SHARDS", "RUN")}
    done = subprocess.run([SCRIPTS / "submit.sh", *steps], cwd=tmp_path, env={**environment, **given}, text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_stage_copies_only_shards_that_fit_and_are_intact(
    undisturbed: Path, small_disk: Path, tmp_path: Path
) -> None:
    def stage(shards: Path, copy: Path) -> tuple[int, str]:
        command = [SCRIPTS / "stage.sh", shards, copy, sys.executable]
        done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
        return done.returncode, done.stdout + done.stderr

    shards = tmp_path / "shards"
    shutil.copytree(undisturbed / "shards", shards)
    (shards / "padding").write_bytes(b"0" * (2 << 20))
    status, output = stage(shards, small_disk / "copy")
    assert status == 3 and "MiB are free" in output and "not copied" in output
    assert not list(small_disk.glob("copy*/")), list(small_disk.iterdir())
    status, output = stage(shards, tmp_path / "local" / "copy")
    assert status == 0 and "copied and verified" in output
    assert all((tmp_path / "local" / "copy" / file.name).read_bytes() == file.read_bytes() for file in shards.iterdir())
    assert stage(shards, tmp_path / "local" / "copy")[1].endswith("exists already\n")
    tar = sorted((tmp_path / "local" / "copy").glob("*.tar"))[0]
    tar.write_bytes(tar.read_bytes()[:-512])  # a truncated copy is made again
    assert "copied and verified" in stage(shards, tmp_path / "local" / "copy")[1]
    corrupt = bytearray((shards / tar.name).read_bytes())
    corrupt[700] ^= 1
    (shards / tar.name).write_bytes(corrupt)
    status, output = stage(shards, tmp_path / "other")
    assert status == 1 and "not used" in output and not (tmp_path / "other").exists()


def test_scripts_pass_shellcheck_and_document_variables_and_output() -> None:
    for script in sorted(SCRIPTS.iterdir()):
        text = script.read_text()
        if script.name != "site.example.sh":
            assert "\nset -euo pipefail\n" in text, script
        if script.suffix == ".sbatch" or script.name == "submit.sh":
            assert "# Variables: " in text or "# Variables, set by " in text, script
            assert "Output" in text, script
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck here; on Debian: apt install shellcheck")
    scripts = [script for script in sorted(SCRIPTS.iterdir()) if script.suffix in (".sh", ".sbatch")]
    done = subprocess.run(["shellcheck", "-x", *scripts], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout
