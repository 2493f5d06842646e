"""Stands for `accelerate launch`: 12 pieces of work, each done once, a checkpoint every three if it is a training.

Notes every piece, and every start, in the file that WORK_LOG names.
"""

import json
import os
import sys
import time
from pathlib import Path


def value(name):
    return next((word.partition("=")[2] for word in sys.argv if word.startswith(f"--{name}=")), None)


def note(**line):
    with open(os.environ["WORK_LOG"], "a") as file:
        file.write(json.dumps(line) + "\n")


config = value("config_path")
output = Path(config).parents[3] if config else Path(value("output.root") or value("labels") or value("output_dir"))
is_training = "lerobot.scripts.lerobot_train" in sys.argv
last = output / "checkpoints" / "last" / "pretrained_model"
assert last.exists() == (value("resume") == "true")
note(start=output.name, pid=os.getpid(), job=os.environ["SLURM_JOB_ID"])
output.mkdir(parents=True, exist_ok=True)
for piece in range(12):
    path = output / str(piece)
    if path.exists():
        continue
    time.sleep(0.1)
    path.touch(exist_ok=False)
    note(output=output.name, piece=piece)
    if is_training and piece % 3 == 2:
        last.mkdir(parents=True, exist_ok=True)
        (last / "train_config.json").write_text("{}")
note(end=output.name)
