"""Runs on a real SLURM of one node, where one can be started: as root, with slurmctld, slurmd and munge installed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from common import ROOT
from small_runs import SMALL

from dlm.runs.run import Run

NEEDED = ("slurmctld", "slurmd", "sbatch", "munged", "runuser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not all(map(shutil.which, NEEDED)), reason=f"needs {', '.join(NEEDED)}"),
    pytest.mark.skipif(not find_spec("submitit"), reason="needs pip install '.[slurm]'"),
    pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() != 0, reason="only root can start a SLURM"),
]

TEXT = {"capture_output": True, "text": True}

CONF = """
ClusterName=dlm
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort=16817
SlurmdPort=16818
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobRequeue=1
KillWait=30
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment of a SLURM that is up."""
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = os.uname().nodename.split(".")[0]
    (folder / "slurm.conf").write_text(CONF.format(host=host, folder=folder))
    Path("/run/munge").mkdir(exist_ok=True)
    shutil.chown("/run/munge", "munge", "munge")
    if subprocess.run(["munge", "-n"], **TEXT).returncode:  # a socket may be there that nobody listens to
        subprocess.run(["runuser", "-u", "munge", "--", "munged", "--force"])
    environment = os.environ | {"SLURM_CONF": f"{folder}/slurm.conf", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for daemon in ("slurmctld", "slurmd"):
        subprocess.run([daemon, "-f", f"{folder}/slurm.conf"], env=environment)
    try:
        for _ in range(60):
            if subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, **TEXT).stdout.strip() == "idle":
                break
            time.sleep(1)
        else:
            logs = "".join(path.read_text()[-500:] for path in folder.glob("*.log"))
            pytest.skip(f"no SLURM starts on this machine ({logs})")
        yield environment
    finally:
        for daemon in ("slurmd", "slurmctld"):
            if (pid := folder / f"{daemon}.pid").exists():
                os.kill(int(pid.read_text()), signal.SIGTERM)


def sweep(runs_dir, *overrides):
    launcher = ["hydra/launcher=slurm", "hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1"]
    return [sys.executable, "-m", "dlm.train", "-m", *launcher, *SMALL, f"runs_dir={runs_dir}", *overrides]


def wait(until, seconds: int):
    """Wait until something is true."""
    for _ in range(seconds):
        if until():
            return
        time.sleep(1)
    raise TimeoutError(f"not within {seconds} s")


def test_every_job_of_a_sweep_is_a_job_of_slurm(slurm, tmp_path):
    command = sweep(tmp_path, "block_size=4,8")
    done = subprocess.run(command, env=slurm, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(path.read_text()) for path in tmp_path.glob("*/run.json")]
    assert sorted(record["config"]["block_size"] for record in records) == [4, 8]
    assert {record["status"] for record in records} == {"finished"} and "2 jobs" in done.stdout


def test_every_run_and_every_measurement_of_a_study_is_a_job_of_slurm(slurm, tmp_path):
    (tmp_path / "one.yaml").write_text(
        "title: one\nshared: [logger=csv]\npoints: {a: {label: A, overrides: [attention=block]}}\n"
        "evaluations: {order: {overrides: [measurement=trace]}}\n"
    )
    launcher = ["hydra/launcher=slurm", "hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1"]
    options = ["scale=smoke", "--runs", f"{tmp_path}/runs", "--jobs", "2"]
    command = [sys.executable, "-m", "analysis.study", f"{tmp_path}/one.yaml", *launcher, *options]
    done = subprocess.run(command, env=slurm, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = (tmp_path / "runs").glob("*/run.json")
    assert Run(record.parent).status == "finished"
    logs = {path.name: path.read_text() for path in (tmp_path / "runs" / ".logs").glob("*.log")}
    assert len(logs) == 2 and all(log.startswith("job ") for log in logs.values()), logs


def test_a_job_that_slurm_warns_stops_after_its_step_with_a_checkpoint(slurm, tmp_path):
    """Without submitit, as `sbatch --signal=USR1@120` warns. (A queue that takes it again waits for minutes.)"""
    command = [sys.executable, "-m", "dlm.train", *SMALL, "tokens=1000000", "runtime.checkpoint_every=1000000"]
    script = f"#!/bin/bash\ncd {ROOT}\nsrun {' '.join(command)} runs_dir={tmp_path}\n"
    queued = subprocess.run(["sbatch", "--parsable", "-o", f"{tmp_path}/out"], input=script, env=slurm, **TEXT)
    job = queued.stdout.strip()
    wait(lambda: "self-check" in (tmp_path / "out").read_text() if (tmp_path / "out").exists() else False, 300)
    time.sleep(2)  # some steps
    subprocess.run(["scancel", "--signal=USR1", job], env=slurm, check=True)
    wait(lambda: job not in subprocess.run(["squeue", "-h", "-o", "%i"], env=slurm, **TEXT).stdout.split(), 120)
    (record,) = tmp_path.glob("*/run.json")
    run = Run(record.parent)
    assert run.status == "interrupted" and run.checkpoint.exists(), (tmp_path / "out").read_text()
    assert not [*run.folder.glob("hpc_ckpt*")]  # of Lightning's own requeueing
