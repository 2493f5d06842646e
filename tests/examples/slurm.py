"""A real Slurm of one node on the loopback address: munge, controller and node of our own, beside any other."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
MISSING = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
NODE = "n1"
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=300
KillWait=2
NodeName={node} NodeAddr=127.0.0.1 NodeHostname={host} CPUs=64 Gres=gpu:8
PartitionName=all Nodes={node} Default=YES MaxTime=INFINITE
"""


def free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Slurm:
    """A controller and one node that claims 64 CPUs and 8 GPUs.

    Args:
        folder: For all of its files; it must be short, since a socket lies in it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        }

    def start(self) -> None:
        for name in ("munge", "state", "spool"):
            (self.folder / name).mkdir(mode=0o755)
        self.folder.chmod(0o755)  # munge wants to be able to trust it
        munge = self.folder / "munge"
        (munge / "key").write_bytes(os.urandom(1024))
        (munge / "key").chmod(0o400)
        ports, host = free_ports(2), socket.gethostname().partition(".")[0]
        gpus = [self.folder / f"gpu{i}" for i in range(8)]
        for gpu in gpus:
            gpu.touch()
        (self.folder / "gres.conf").write_text(f"NodeName={NODE} Name=gpu File={self.folder}/gpu[0-7]\n")
        values = {"host": host, "controller_port": ports[0], "node_port": ports[1], "node": NODE}
        (self.folder / "slurm.conf").write_text(CONFIG.format(folder=self.folder, **values))
        files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        self.run("munged", "--force", *(f"--{option}={munge / name}" for option, name in files.items()))
        self.run("slurmctld")
        self.start_node()
        self.wait_for(lambda: "idle" in self.run("sinfo", "-h", "-o", "%t"))

    def start_node(self) -> None:
        self.run("slurmd", "-N", NODE)

    def kill_node(self) -> None:
        """SIGKILL the node's daemon; what it started goes on."""
        os.kill(int((self.folder / "slurmd.pid").read_text()), signal.SIGKILL)

    def stop(self) -> None:
        self.run("scancel", "--signal=KILL", "--full", "--user=root")
        for name in ("slurmctld.pid", "slurmd.pid", "munge/pid"):
            try:
                os.kill(int((self.folder / name).read_text()), signal.SIGTERM)
            except (FileNotFoundError, ProcessLookupError):
                continue

    def run(self, *command: str, **environment: str) -> str:
        """Run one of Slurm's commands and return what it printed."""
        done = subprocess.run(
            command, env=self.environment | environment, cwd=self.folder, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def is_over(self, job: str) -> bool:
        """Whether nothing of a job, or an array, waits or runs."""
        return not self.run("squeue", "-h", "-o", "%i", f"--jobs={job}", "--states=PD,R,CG,CF,S")

    def go_on_at_once(self, job: str) -> None:
        """Slurm lets a requeued job wait for two minutes."""
        self.wait_for(lambda: "BeginTime" in self.run("squeue", "-h", "-o", "%r", f"--jobs={job}"))
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now")

    def wait_for(self, condition, timeout_s: float = 60) -> None:
        end = time.monotonic() + timeout_s
        while not condition():
            logs = [path.read_text()[-2000:] for path in (self.folder / "slurmctld.log", *self.folder.glob("*_*.log"))]
            assert time.monotonic() < end, "\n".join(logs)
            time.sleep(0.1)
