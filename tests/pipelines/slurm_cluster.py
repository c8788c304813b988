"""A SLURM of our own for the tests: one node on loopback, and what they ask of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

CONF = """\
ClusterName=aqa
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={at}/munge/socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={at}/state
SlurmdSpoolDir={at}/spool
SlurmctldPidFile={at}/slurmctld.pid
SlurmdPidFile={at}/slurmd.pid
SlurmctldLogFile={at}/slurmctld.log
SlurmdLogFile={at}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode={preempt}
AccountingStorageType=accounting_storage/none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=0 State=UP
PartitionName=high Nodes=ALL PriorityTier=9 PreemptMode=OFF State=UP
"""


@pytest.fixture(params=["REQUEUE", "CANCEL"])
def cluster(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch) -> Iterator[str]:
    """A node of two cores under slurmctld and slurmd on loopback; yields what pre-emption does to a job."""
    lacking = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]
    if lacking or os.geteuid():
        pytest.skip(
            f"needs SLURM and root (`make test-slurm` installs it on Debian): no {', '.join(lacking) or 'root'}"
        )
    at = tmp_path / "slurm"
    for folder in ("munge", "state", "spool"):
        (at / folder).mkdir(parents=True, mode=0o700)
    conf = at / "slurm.conf"
    conf.write_text(
        CONF.format(
            host=socket.gethostname().split(".")[0], at=at, ports=[_free_port(), _free_port()], preempt=request.param
        )
    )
    monkeypatch.setenv("SLURM_CONF", str(conf))
    key = at / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    places = {"key-file": key, "socket": at / "munge/socket", "seed-file": at / "munge/seed"}
    logs = {"log-file": at / "munge/log", "pid-file": at / "munge/pid"}
    daemons = [
        ["munged", "--force", "--foreground", *(f"--{k}={v}" for k, v in {**places, **logs}.items())],
        ["slurmctld", "-D", "-c", "-f", str(conf)],
        ["slurmd", "-D", "-c", "-f", str(conf)],
    ]
    running = []
    try:
        for daemon in daemons:
            running.append(subprocess.Popen(daemon, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            time.sleep(1)
        until(lambda: "idle" in answer("sinfo", "--noheader", "--format=%t"), 60)
        yield request.param
    finally:
        subprocess.run(["scancel", "--full", "--user=root"], check=False, timeout=60)
        time.sleep(1)
        for process in reversed(running):
            process.terminate()
            process.wait(timeout=60)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def answer(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout


def until(true, seconds: float) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, answer("squeue") + answer("scontrol", "show", "jobs")
        time.sleep(0.3)


def states(job: str) -> dict[str, str]:
    """Task → state, of those that are queued or run."""
    rows = answer("squeue", "--noheader", "--array", f"--jobs={job}", "--format=%K %T").split("\n")
    return dict(row.split()[:2] for row in rows if row)


def stop(job: str, tasks: tuple[str, ...]) -> None:
    """SIGSTOP to every process of these tasks."""
    ours = {b"SLURM_ARRAY_JOB_ID=" + job.encode(), b"SLURM_CONF=" + os.environb[b"SLURM_CONF"]}
    theirs = {b"SLURM_ARRAY_TASK_ID=" + task.encode() for task in tasks}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environment = set((process / "environ").read_bytes().split(b"\0"))
            if ours <= environment and theirs & environment:
                os.kill(int(process.name), signal.SIGSTOP)
