"""Where a record comes from."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch


def provenance() -> dict:
    """Command, commit (with "-dirty" where the working tree differs from it), machine and versions of this run."""
    here = Path(__file__).parent
    git = ["git", "describe", "--always", "--abbrev=40", "--dirty"]
    return {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "commit": subprocess.run(git, capture_output=True, text=True, cwd=here).stdout.strip(),
        "machine": {"cpu": platform.processor() or platform.machine(), "torch_threads": torch.get_num_threads()},
        "versions": {name: version(name) for name in ("torch", "lerobot", "transformers")},
    }
