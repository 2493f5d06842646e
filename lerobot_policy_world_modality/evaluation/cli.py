"""`wm-eval`: the command, and the table that it ends with.

wm-eval --policy.path=outputs/F/checkpoints/last/pretrained_model --env.type=metaworld_light --env.task=push-v3 \
    --eval.n_episodes=20 --seed=100000 --arms=intact,gate_closed,shuffle --output_dir=outputs/eval/F
"""
# No `from __future__ import annotations`: LeRobot's parser reads the annotation of `run` as a class.

import sys

import pandas as pd
from lerobot.utils.import_utils import register_third_party_plugins
from lerobot.utils.utils import init_logging

from lerobot_policy_world_modality.evaluation.arms import ARMS
from lerobot_policy_world_modality.evaluation.configuration import WorldEvalConfig
from lerobot_policy_world_modality.evaluation.evaluate import evaluate
from world_modality_core.io.commands import run_command
from world_modality_core.studies.evidence.wilson import wilson_interval


def format_table(rows: pd.DataFrame) -> str:
    """Successes per task and arm, and per arm over all episodes, with Wilson intervals of 95 %."""
    arms = [arm for arm in ARMS if arm in set(rows["arm"])]
    groups = [(task, rows[rows["task"] == task]) for task in rows["task"].unique()]
    if len(groups) > 1:
        groups.append(("all episodes", rows))
    width = max(len(task) for task, _ in groups)
    lines = [f"{'task':{width}}  {'arm':19}  success"]
    for task, of_task in groups:
        for arm in arms:
            success = of_task.loc[of_task["arm"] == arm, "success"]
            if len(success):
                low, high = wilson_interval(int(success.sum()), len(success))
                rate = f"{int(success.sum())}/{len(success)} = {success.mean():.1%}  [{low:.1%}, {high:.1%}]"
                lines.append(f"{task:{width}}  {arm:19}  {rate}")
    return "\n".join(lines)


def repeated_scenes(rows: pd.DataFrame) -> str | None:
    """A warning where scenes of one task are the same although their seeds differ, so that n is less than it seems."""
    scenes = rows.drop_duplicates(["task", "seed"])
    is_repeated = scenes.duplicated(["task", "init_hash"], keep=False)
    if not is_repeated.any():
        return None
    tasks = sorted(scenes.loc[is_repeated, "task"].unique())
    return (
        f"{int(is_repeated.sum())} scenes of {', '.join(tasks)} begin alike although their seeds differ: they are "
        "not independent, and intervals are narrower than they should be; lower --eval.n_episodes"
    )


def run(cfg: WorldEvalConfig) -> None:
    """Evaluate, and print the table."""
    rows = evaluate(cfg)
    print(format_table(rows))
    if warning := repeated_scenes(rows):
        print(f"wm-eval: {warning}", file=sys.stderr)
    print(f"{len(rows)} episodes in {cfg.output_dir}")


def main() -> int:
    """Console script `wm-eval`."""
    init_logging()
    register_third_party_plugins()
    return run_command("wm-eval", WorldEvalConfig, run)


if __name__ == "__main__":
    sys.exit(main())
