"""Queues of fake programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import yaml

REPO = Path(__file__).parents[3]
NAMES = ("lerobot-train", "wm-prophet", "wm-eval", "wm-intervene")
# Without a `policy.type`, so that no test of the queue has to import LeRobot.
BASE = {
    "study": "fake",
    "seeds": [1, 2],
    "train": {"config_path": "x.json", "steps": 10, "save_freq": 4, "policy.metrics_file": "{job}/metrics.jsonl"},
    "eval": {"env.task": "a,b", "eval.n_episodes": 3},
    "models": {"A": {}, "F": {"arms": ["intact", "zero"]}},
}


class Fakes:
    """A folder with fake programs, a study of them, and what they did."""

    def __init__(self, folder: Path):
        self.folder, self.root, self.log = folder, folder / "root", folder / "log.jsonl"
        self.bin = folder / "bin"
        self.bin.mkdir()
        source = (Path(__file__).parent / "fake_program.py").read_text()
        for name in NAMES:
            path = self.bin / name
            path.write_text(f"#!{sys.executable} -I\n{source}")
            path.chmod(0o755)

    def write(self, **changes) -> Path:
        """Write the study, with some of its keys changed."""
        path = self.folder / "study.yaml"
        path.write_text(yaml.safe_dump({**BASE, "root": str(self.root), **changes}))
        return path

    @property
    def code(self) -> str:
        """`wm-matrix` with the fake programs, as Python."""
        return (
            "import sys; from world_modality_core.studies.matrix.cli import main; "
            f"sys.exit(main(sys.argv[1:], find_program=lambda name: {str(self.bin)!r} + '/' + name, "
            "check=lambda jobs: None))"
        )

    def start(self, *arguments: str, hold_at: int = 0) -> subprocess.Popen:
        """Start a queue on the study; its trainings wait after step `hold_at` until `let_go`."""
        return subprocess.Popen(
            [sys.executable, "-c", self.code, str(self.folder / "study.yaml"), *arguments],
            env=os.environ | {"FAKE_LOG": str(self.log), "FAKE_HOLD_AT": str(hold_at)},
            cwd=REPO,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def let_go(self) -> None:
        """Let trainings that wait go on."""
        self.log.with_name(f"{self.log.name}.go").touch()

    def run(self, *arguments: str) -> tuple[int, str]:
        """Run a queue to its end: exit status and what it printed."""
        process = self.start(*arguments)
        printed, _ = process.communicate(timeout=300)
        return process.returncode, printed

    def noted(self, *keys: str) -> list[dict]:
        """What the programs wrote down, of the lines that have some keys."""
        if not self.log.exists():
            return []
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.endswith("}")]
        return [line for line in lines if all(key in line for key in keys)]

    def wait_for(self, condition, timeout: float = 120.0) -> None:
        """Wait until something was done."""
        end = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < end, "it never happened"
            time.sleep(0.02)

    def record(self, job: str) -> dict:
        return json.loads((self.root / job / "job.json").read_text())


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie doesn't)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it had ended, or ends while this reads
        return False
