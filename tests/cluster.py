"""A cluster of one node: `python tests/cluster.py` starts Slurm on loopback, runs the smoke profile
with the committed Snakemake profile, kills a running job and then the node in the middle, and
compares the tables with those of an undisturbed local run, byte by byte.

It writes figures/cluster.json and takes everything down. It needs root, and refuses beside a Slurm
that is already there.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import psutil

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root))
TABLES = (
    "per_image.csv table1.csv gains.csv translation.csv recipes.csv paired.csv vcdr.csv".split()
)
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")
CONF = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={port}
SlurmdPort={next_port}
AuthType=auth/munge
AuthInfo=socket={box}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
StateSaveLocation={box}/state
SlurmdSpoolDir={box}/spool
SlurmctldPidFile={box}/slurmctld.pid
SlurmdPidFile={box}/slurmd.pid
SlurmctldLogFile={box}/slurmctld.log
SlurmdLogFile={box}/slurmd.log
ReturnToService=2
MinJobAge=7200
KillWait=2
SlurmdTimeout=10
MpiDefault=none
# as large as the committed profile asks for, whatever this machine has
NodeName={host} NodeAddr=127.0.0.1 CPUs=16 RealMemory=64000 Gres=gpu:2 State=UNKNOWN
PartitionName=gpu Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def refuse():
    "One line and the end, where this machine is not for it."
    if os.geteuid():
        sys.exit(
            "cluster: starting Slurm needs root; run it in a container or a virtual machine."
        )
    there = [p for p in ("/etc/slurm/slurm.conf", os.environ.get("SLURM_CONF", "")) if p]
    running = subprocess.run(
        ["pgrep", "-x", "slurmctld|slurmd"], capture_output=True, check=False
    )
    if running.returncode == 0 or any(Path(p).exists() for p in there):
        sys.exit("cluster: there is a Slurm on this machine already; nothing was changed.")


def install():
    "Slurm from Debian, and Snakemake's executor for it."
    if not all(map(shutil.which, PROGRAMS)):
        command = "apt-get install -y -q --no-install-recommends slurm-wlm munge"
        subprocess.run(command.split(), check=True, stdout=subprocess.DEVNULL)
    plugin = ["install", "-q", "-c", "constraints.txt", "snakemake-executor-plugin-slurm"]
    subprocess.run([sys.executable, "-m", "pip", *plugin], check=True, cwd=root)


ETC = Path("/etc/slurm")  # a job's own programs look here, whatever the environment says


class Slurm:
    "Slurm's three programs in a folder of their own; links in /etc/slurm lead there."

    def __init__(self, box: Path):
        self.box, self.links = box, [ETC / name for name in ("slurm.conf", "gres.conf")]

    def __enter__(self):
        for name in ("state", "spool"):
            (self.box / name).mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        told = dict(host=socket.gethostname(), box=self.box, port=port, next_port=port + 1)
        (self.box / "slurm.conf").write_text(CONF.format(**told))
        for number in (0, 1):
            (self.box / f"gpu{number}").touch()
        (self.box / "gres.conf").write_text(f"Name=gpu File={self.box}/gpu[0-1]\n")
        ETC.mkdir(exist_ok=True)
        for link in self.links:
            link.symlink_to(self.box / link.name)
        key = self.box / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        places = [f"--{what}={self.box}/munge.{end}" for what, end in MUNGE.items()]
        self.run("munged", "--force", *places)
        self.run("slurmctld", "-i")
        self.start_node()
        return self

    def run(self, *words) -> str:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout

    def start_node(self):
        self.run("slurmd")
        end = time.monotonic() + 60
        while "idle" not in self.run("sinfo", "-h", "-o", "%t"):
            if time.monotonic() > end:
                sys.exit(
                    f"cluster: the node does not come up:\n{self.run('scontrol', 'show', 'node')}"
                )
            time.sleep(0.5)

    def running(self) -> list[str]:
        "Numbers of the jobs that run."
        return self.run("squeue", "-h", "-t", "RUNNING", "-o", "%i").split()

    def kill_node(self):
        "The node's program and every job's, at once, as by a power cut."
        node = psutil.Process(int((self.box / "slurmd.pid").read_text()))
        steps = [p for p in psutil.process_iter(["name"]) if p.info["name"] == "slurmstepd"]
        inside = [child for step in steps for child in step.children(recursive=True)]
        for process in (node, *steps, *inside):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def jobs(self) -> list[dict]:
        "What Slurm knows of each job."
        lines = self.run("scontrol", "-o", "show", "job").splitlines()
        return [dict(re.findall(r"(\w+)=(\S+)", line)) for line in lines if "JobId=" in line]

    def __exit__(self, *_):
        for name in ("slurmd", "slurmctld", "munge"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int((self.box / f"{name}.pid").read_text()), signal.SIGKILL)
        subprocess.run(["pkill", "-KILL", "slurmstepd"], check=False)
        for link in self.links:
            link.unlink(missing_ok=True)


MUNGE = {
    "key-file": "key",
    "socket": "socket",
    "pid-file": "pid",
    "log-file": "log",
    "seed-file": "seed",
}


def snakemake(checkout: Path, *words):
    "Snakemake in a checkout of its own, with one thread a step."
    command = [sys.executable, "-m", "snakemake", "--cores", "1", *words]
    command += ["--config", "profile=smoke"]
    env = os.environ | dict(PYTHONPATH=str(checkout), HF_HUB_OFFLINE="1")
    return subprocess.Popen(command, cwd=checkout, env=env)


def in_the_middle(slurm: Slurm, process) -> str:
    "The number of a job that has run for some seconds; empty where the run has ended."
    while process.poll() is None:
        before = slurm.running()
        time.sleep(5)
        if still := set(before) & set(slurm.running()):
            return min(still, key=int)
    return ""


def disturb(slurm: Slurm, process):
    "Kill a running job, then the node; yields what was done."
    if job := in_the_middle(slurm, process):
        slurm.run("scancel", "--signal=KILL", "--full", job)
        yield "a job"
    if in_the_middle(slurm, process):
        slurm.kill_node()
        time.sleep(3)
        slurm.start_node()
        yield "the node"


def seconds(job: dict, first: str, last: str) -> float:
    "Between two times of a job."
    return (
        datetime.fromisoformat(job[last]) - datetime.fromisoformat(job[first])
    ).total_seconds()


def main():
    refuse()
    install()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        box = Path(folder)
        box.chmod(0o755)
        for name in ("local", "cluster"):
            subprocess.run(["git", "clone", "-q", str(root), str(box / name)], check=True)
        start = time.monotonic()
        local = snakemake(box / "local")
        if local.wait():
            sys.exit("cluster: the local run failed")
        found["local_s"] = round(time.monotonic() - start, 1)
        (box / "slurm").mkdir()
        with Slurm(box / "slurm") as slurm:
            start = time.monotonic()
            words = ["--profile", "cluster", "--slurm-status-command", "squeue"]
            run = snakemake(box / "cluster", *words)
            found["harm"] = list(disturb(slurm, run))
            if run.wait() or len(found["harm"]) < 2:
                for log in (box / "cluster" / ".snakemake" / "slurm_logs").rglob("*.log"):
                    print(f"== {log.name}", log.read_text(errors="replace")[-1500:], sep="\n")
                print((box / "slurm" / "slurmd.log").read_text()[-3000:])
                sys.exit("cluster: the run on the cluster failed")
            found["wall_s"] = round(time.monotonic() - start, 1)
            jobs = slurm.jobs()
        made, wanted = (box / name / "figures" / "smoke" for name in ("cluster", "local"))
        for name in TABLES:
            if (made / name).read_bytes() != (wanted / name).read_bytes():
                sys.exit(f"cluster: {name} differs from that of an undisturbed local run")
        records = (box / "cluster" / "runs" / "smoke").rglob("result.json")
        steps = [json.loads(path.read_text(encoding="utf-8"))["wall_s"] for path in records]
    whole = [job for job in jobs if job["JobState"] == "COMPLETED"]
    busy = sum(seconds(job, "StartTime", "EndTime") for job in whole)
    waited = [seconds(job, "SubmitTime", "StartTime") for job in whole]
    found |= dict(
        jobs=len(jobs),
        completed=len(whole),
        retries=len(jobs) - len(whole),
        wait_median_s=statistics.median(waited),
        overhead_a_job_s=round((busy - sum(steps)) / len(whole), 1),
        tables_equal=TABLES,
    )
    write(found)


def write(found: dict):
    from mfmda.core.files import write_json
    from mfmda.core.runtime import git_commit, machine_facts, package_versions

    facts = dict(commit=git_commit(), versions=package_versions(), machine=machine_facts("cpu"))
    slurm = subprocess.run(["slurmctld", "-V"], capture_output=True, text=True, check=True)
    write_json(
        root / "figures" / "cluster.json", found | facts | dict(slurm=slurm.stdout.strip())
    )
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
