"""A Slurm cluster of one node on this machine: munged, slurmctld and slurmd on loopback, with files in one folder."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
CONFIG = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
AuthInfo=socket={folder}/munge.socket
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
ReturnToService=2
MinJobAge=86400
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory={memory}
PartitionName=small Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=large Nodes=ALL MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Job:
    """A job as `squeue` lists it."""

    number: int
    name: str
    """`rule_RULE`: the comment that the executor sets."""
    memory: str
    time: str
    partition: str
    state: str


@dataclass(frozen=True)
class Cluster:
    """A running Slurm cluster."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": path}

    def call(self, *command: str) -> str:
        """Output of one of Slurm's commands."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=60
        )
        return done.stdout + done.stderr

    def jobs(self) -> list[Job]:
        """All jobs, finished ones included, in the order of submission."""
        lines = self.call("squeue", "--states=all", "--noheader", "--format=%i|%k|%m|%l|%P|%T").splitlines()
        rows = [line.split("|") for line in lines]
        return sorted((Job(int(row[0]), *row[1:]) for row in rows), key=lambda job: job.number)

    def kill(self, job: Job) -> None:
        """Send SIGKILL to every process of a job."""
        self.call("scancel", "--full", "--signal=KILL", str(job.number))


def missing() -> str:
    """Names of Slurm's programs that are not installed; empty if all are."""
    return ", ".join(name for name in PROGRAMS if shutil.which(name) is None)


@contextmanager
def slurm(folder: Path) -> Iterator[Cluster]:
    """A Slurm cluster of one node with two cores; its daemons and jobs end with the context."""
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir(parents=True)
    controller, node = _free_ports()
    memory = psutil.virtual_memory().total // 2**20 * 9 // 10
    config = folder / "slurm.conf"
    names = {"host": socket.gethostname().split(".")[0], "user": getpass.getuser(), "folder": folder}
    config.write_text(CONFIG.format(controller=controller, node=node, memory=memory, **names))
    # the executor does not pass SLURM_CONF to the steps of a job
    srun = folder / "bin" / "srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={config} exec {shutil.which("srun")} "$@"\n')
    srun.chmod(0o755)
    cluster = Cluster(folder)
    with ExitStack() as stack:
        stack.enter_context(_daemon(folder, *_munged(folder)))
        stack.enter_context(_daemon(folder, "slurmctld", "-D", "-f", str(config)))
        stack.enter_context(_daemon(folder, "slurmd", "-D", "-f", str(config)))
        _wait_for_node(cluster)
        try:
            yield cluster
        finally:
            _end_jobs(cluster)


def _munged(folder: Path) -> list[str]:
    """The command of munged, with a new random key."""
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(os.urandom(128))
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    options = [f"--{option}={folder / f'munge.{suffix}'}" for option, suffix in files.items()]
    return ["munged", "--foreground", "--force", *options]


@contextmanager
def _daemon(folder: Path, *command: str) -> Iterator[None]:
    """A program that runs until the context ends; its output goes to NAME.out."""
    with (folder / f"{command[0]}.out").open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_node(cluster: Cluster) -> None:
    """Wait until the node accepts jobs. Raises RuntimeError, with the daemons' output, after a minute."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if "State=IDLE" in cluster.call("scontrol", "show", "node"):
            return
        time.sleep(0.2)
    output = "\n".join(file.read_text()[-1000:] for file in cluster.folder.glob("*.out"))
    raise RuntimeError(f"Slurm did not start:\n{output}")


def _end_jobs(cluster: Cluster) -> None:
    """Cancel running jobs, so that none outlives its daemons."""
    waiting = {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING"}
    end = time.monotonic() + 30
    while time.monotonic() < end:
        running = [str(job.number) for job in cluster.jobs() if job.state in waiting]
        if not running:
            return
        cluster.call("scancel", *running)
        time.sleep(1)


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]
