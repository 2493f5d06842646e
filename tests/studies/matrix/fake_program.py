"""Stands for lerobot-train, wm-prophet, wm-eval and wm-intervene in the tests of the queue: same flags, same files.

It writes down what it does in $FAKE_LOG, one JSON per line, so that a test can see what ran how often. A training waits
after its step $FAKE_HOLD_AT, if that is set, until there is a file $FAKE_LOG.go.
"""

import json
import os
import sys
import time
from pathlib import Path

program = Path(sys.argv[0]).name
flags = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
STEP_S, HOLD_AT = float(os.environ.get("FAKE_STEP_S", "0")), int(os.environ.get("FAKE_HOLD_AT", "0"))


def note(**what):
    line = {"program": program, "pid": os.getpid(), "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"), **what}
    with open(os.environ["FAKE_LOG"], "a") as log:
        log.write(json.dumps(line) + "\n")


def save(output, step, config):
    """As LeRobot does: the checkpoint, then the link."""
    folder = output / "checkpoints" / f"{step:06d}"
    (folder / "pretrained_model").mkdir(parents=True)
    (folder / "training_state").mkdir()
    (folder / "pretrained_model/train_config.json").write_text(json.dumps(config))
    (folder / "training_state/training_step.json").write_text(json.dumps({"step": step}))
    last = folder.parent / "last"
    last.unlink(missing_ok=True)
    last.symlink_to(folder.name)


def train(flags):
    first = 0
    if flags.get("resume") == "true":
        config = Path(flags["config_path"])
        first = json.loads((config.parents[1] / "training_state/training_step.json").read_text())["step"]
        flags = json.loads(config.read_text())
    elif Path(flags["output_dir"]).exists():
        sys.exit("the output directory exists already")
    output = Path(flags["output_dir"])
    output.mkdir(parents=True, exist_ok=True)
    for step in range(first + 1, int(flags["steps"]) + 1):
        time.sleep(STEP_S)
        note(job=output.parent.name, step=step)
        with open(flags["policy.metrics_file"], "a") as metrics:
            metrics.write(json.dumps({"step": step, "loss_action": 1 / step}) + "\n")
        if step % int(flags["save_freq"]) == 0 or step == int(flags["steps"]):
            save(output, step, flags)
        while step == HOLD_AT and not os.path.exists(os.environ["FAKE_LOG"] + ".go"):
            time.sleep(0.01)


def in_parts(parts):
    """Work that skips the parts that it did before."""
    output = Path(flags["output_dir"])
    output.mkdir(parents=True, exist_ok=True)
    for part in parts:
        if not (output / part).exists():
            time.sleep(STEP_S)
            note(job=output.parent.name, part=part)
            (output / part).touch()


note(job=Path(flags.get("output_dir", flags.get("config_path"))).parent.name, start=sys.argv[1:])
if "bad" in flags:
    print("a line before the end\nit can't be done")
    sys.exit(3)
if "leaves_nothing" in flags:
    sys.exit(0)
if program == "lerobot-train":
    train(flags)
elif program == "wm-eval":
    assert Path(flags["policy.path"]).exists(), "evaluated before it was trained"
    in_parts([f"{arm}-{i}" for arm in flags["arms"].split(",") for i in range(int(flags["eval.n_episodes"]))])
else:
    in_parts([f"{program}-{i}" for i in range(int(flags.get("steps", "1")))])
