"""A private Slurm cluster for tests: real daemons of Debian's slurm-wlm and munge, with several nodes on one machine.

All files are in one temporary folder, and the daemons listen on free local ports.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
DAEMONS = ("slurmctld", "slurmd", "munged", "srun", "sbatch")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
# A requeued job waits until its credential expires: by default 120 s; 5 s is the minimum.
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
StateSaveLocation={folder}/ctld
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=2
MinJobAge=86400
SlurmdTimeout=10
GresTypes=gpu
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Return why no cluster can be started here, or an empty string."""
    absent = [name for name in DAEMONS if shutil.which(name, path=PATH) is None]
    return f"no {' and no '.join(absent)} here; on Debian: apt install slurm-wlm munge" if absent else ""


class Cluster:
    """A cluster of `nodes` nodes, each with `cpus` cores and a fake GPU. It runs from start() to stop()."""

    def __init__(self, nodes: int = 2, cpus: int = 4) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # sockets need a short path
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self._daemons = list[subprocess.Popen[bytes]]()
        ports = _free_ports(nodes + 1)
        host = socket.gethostname().split(".")[0]
        lines = [f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=8000 "
                 "Gres=gpu:1 State=UNKNOWN" for name, port in zip(self.nodes, ports[1:], strict=True)]  # fmt: skip
        config = CONFIG.format(host=host, ports=ports, user=getpass.getuser(), folder=self.folder,
                               nodes="\n".join(lines))  # fmt: skip
        (self.folder / "slurm.conf").write_text(config)
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/zero\n")  # a device that exists but is no GPU
        # Slurm 22.05 loads a cgroup plugin even if nothing uses it.
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (self.folder / "ctld").mkdir()
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        self.environment = {**os.environ, "PATH": PATH, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self) -> None:
        """Start the daemons and wait until all nodes are idle."""
        files = {name: self.folder / f"munge.{name}" for name in ("key", "sock", "pid", "log", "seed")}
        self._start_daemon("munged", "--foreground", "--force", "--num-threads=2", f"--key-file={files['key']}",
                    f"--socket={files['sock']}", f"--pid-file={files['pid']}", f"--log-file={files['log']}",
                    f"--seed-file={files['seed']}")  # fmt: skip
        wait_until(files["sock"].exists, 10, "munged to listen")
        self._start_daemon("slurmctld", "-D")
        for name in self.nodes:
            self._start_daemon("slurmd", "-D", "-N", name)
        wait_until(lambda: self.run("sinfo", "-h", "-N", "-o", "%T", check=False).split() == ["idle"] * len(self.nodes),
                   30, "all nodes to be idle")  # fmt: skip

    def stop(self) -> None:
        """Cancel all jobs, stop the daemons and remove the folder."""
        self.run("scancel", "--quiet", f"--user={getpass.getuser()}", check=False)
        wait_until(lambda: not self.run("squeue", "-h", check=False), 20, "all jobs to end")
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
        shutil.rmtree(self.folder)

    def _start_daemon(self, *command: str) -> None:
        with (self.folder / "daemons.log").open("ab") as log:
            self._daemons.append(subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log,
                                                  stderr=log, start_new_session=True))  # fmt: skip

    def run(
        self, *command: str | Path, check: bool = True, cwd: Path | None = None,
        given: Mapping[str, object] | None = None,
    ) -> str:  # fmt: skip
        """Run a command and return its output. given: additional environment variables. check: assert success."""
        environment = {**self.environment, **{name: str(value) for name, value in (given or {}).items()}}
        done = subprocess.run([str(word) for word in command], env=environment, cwd=cwd, text=True, capture_output=True)
        assert not check or done.returncode == 0, f"{command}: status {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout if check else done.stdout + done.stderr

    def submit(self, *options: str | Path, cwd: Path | None = None, **given: object) -> str:
        """Submit a job with sbatch and return its id."""
        return self.run("sbatch", "--parsable", *options, cwd=cwd, given=given).strip()

    def show(self, job: str) -> dict[str, str]:
        """Return the properties of a job or task, as scontrol reports them."""
        text = self.run("scontrol", "--oneliner", "show", "job", job)
        return dict(re.findall(r"(\S+?)=(\S*)", text.splitlines()[0]))

    def states(self, job: str) -> set[str]:
        """Return the states of a job's tasks."""
        return set(re.findall(r" JobState=(\S+)", self.run("scontrol", "--oneliner", "show", "job", job)))

    def wait(self, job: str, state: str, seconds: float = 120) -> None:
        """Wait until all tasks of a job are in `state`. Fails if a task ends in another state."""
        def is_reached() -> bool:
            states = self.states(job)
            assert not states & ENDED - {state}, f"job {job}: {states}, not {state}"
            return states == {state}

        wait_until(is_reached, seconds, f"job {job} to be {state}")

    def processes(self, job: str, prefix: str) -> list[int]:
        """Return the ids of a job's processes whose command line starts with `prefix`."""
        variable = f"SLURM_JOB_ID={self.show(job)['JobId']}"
        processes = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                variables = (process / "environ").read_bytes().decode(errors="replace").split("\0")
            except OSError:  # it has ended since
                continue
            if variable in variables and command.startswith(prefix):
                processes.append(int(process.name))
        return processes

    def kill(self, job: str, prefix: str) -> None:
        """Send SIGKILL to a job's processes whose command line starts with `prefix`."""
        processes = self.processes(job, prefix)
        assert processes, f"job {job}: no process {prefix}"
        for process in processes:
            os.kill(process, signal.SIGKILL)


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll a condition. Fails if it does not hold within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.1)


def _free_ports(number: int) -> list[int]:
    probes = [socket.socket() for _ in range(number)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports
