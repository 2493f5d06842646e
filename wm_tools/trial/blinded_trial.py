"""What is run next, what came out, and when to stop: two policies in random order on every set-up, nobody told which.

trial.json                what was asked for, the order of every set-up, and runs that were thrown away
<policy>/eval.json        and its episodes, as wm-eval writes them: wm-compare and wm-report read the folder
"""

from __future__ import annotations

import json
import random
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import read_json, write_text
from world_modality_core.io.option_differences import option_differences
from world_modality_core.studies.evidence.episode_records import EpisodeWriter, read_episodes, write_eval_info
from world_modality_core.studies.evidence.sequential import SequentialResult, sequential_test
from world_modality_core.studies.evidence.trial_records import trial_row
from world_modality_core.studies.evidence.wording import BETTER, NO_DIFFERENCE, OPEN, p_text

STATE_FILE = "trial.json"


@dataclass(frozen=True)
class TrialRun:
    """One run of one policy on one set-up."""

    setup: int
    # 0 or 1: the first or the second run on this set-up.
    turn: int
    policy: str


class BlindedTrial:
    """The state of a trial, on disk at all times: a trial that was cut off goes on.

    Args:
        folder: Where it is kept.
        policies: Label -> checkpoint, two of them.
        task: What the robot is to do.
        n_setups: Set-ups that are planned.
        stages: Names of the rubric's stages, in order; empty for success alone.
        alpha: Level of the sequential test.

    Raises:
        ConfigError: if the folder holds a trial that was begun otherwise.
    """

    def __init__(
        self, folder: Path, policies: dict[str, str], task: str, n_setups: int, stages: list[str], alpha: float
    ):
        asked = {
            "policies": policies, "task": task, "n_setups": n_setups, "stages": stages, "alpha": alpha,
        }  # fmt: skip
        self.folder, self.labels, self.task, self.alpha = folder, list(policies), task, alpha
        self.policies, self.n_setups, self.stages = policies, n_setups, stages
        self._path = folder / STATE_FILE
        if self._path.exists():
            self._state = read_json(self._path, dict)
            if differing := option_differences(self._state["asked"], asked):
                raise ConfigError(
                    f"output_dir={folder} holds a trial that was begun otherwise ({'; '.join(differing)}); repeat its "
                    "own command, or choose another --output_dir"
                )
        else:
            draw = random.Random(secrets.randbits(64))
            first = [draw.randrange(2) for _ in range(n_setups)]
            self._state = {"asked": asked, "first": first, "thrown_away": []}
            self._save()
        self._writers = {label: EpisodeWriter(folder / label) for label in self.labels}
        for label in self.labels:
            info = {"model": label, "train_seed": 0, "arms": ["intact"], "command": "wm-trial"}
            write_eval_info(folder / label, info | {"checkpoint": policies[label]})
        # Label -> set-up -> success; in memory, since a trial is asked what is next several times a run.
        self._successes = {
            label: {int(row.seed): bool(row.success) for row in writer.rows().itertuples()}
            for label, writer in self._writers.items()
        }
        begun = self._state.get("begun")
        if begun and begun["setup"] not in self._successes[begun["policy"]]:  # else it was judged before the cut
            self.throw_away(TrialRun(**begun), "wm-trial ended before it was judged")

    @property
    def next_run(self) -> TrialRun | None:
        """What is run next; None once the trial has ended."""
        if not self.result().is_open:
            return None
        for setup, first in enumerate(self._state["first"]):
            for turn, label in enumerate([self.labels[first], self.labels[1 - first]]):
                if setup not in self._successes[label]:
                    return TrialRun(setup, turn, label)
        return None

    def begin(self, run: TrialRun) -> None:
        """Remember that a run has begun: one that is never judged counts as thrown away."""
        self._state["begun"] = asdict(run)
        self._save()

    def note(self, run: TrialRun, success: bool, stages: list[bool], seconds: float) -> None:
        """Keep what came out of a run; its score is the number of stages that it reached."""
        score = float(sum(stages)) if self.stages else float(success)
        row = trial_row(
            run.policy, self.task, run.setup, success, checkpoint=self.policies[run.policy], sum_reward=score,
            max_reward=score, wall_s=seconds,
        )  # fmt: skip
        self._writers[run.policy].write([row])
        self._successes[run.policy][run.setup] = success

    def throw_away(self, run: TrialRun, why: str) -> None:
        """Do a run again, for a reason that has nothing to do with the policy; how often is kept and told."""
        self._state["thrown_away"].append(asdict(run) | {"why": why, "at": time.time()})
        self._state["begun"] = None
        self._save()

    def result(self) -> SequentialResult:
        """What the sequential test says after the set-ups on which both have run."""
        first, second = (self._successes[label] for label in self.labels)
        both = sorted(first.keys() & second.keys())
        differences = np.array([int(first[i]) - int(second[i]) for i in both], dtype=int).reshape(-1, 1)
        return sequential_test(differences, self.n_setups, self.alpha, with_share=bool(len(both)))

    def summary(self) -> str:
        """Who succeeded how often; to be read once the trial has ended."""
        result = self.result()
        lines = []
        for label, successes in self._successes.items():
            lines.append(f"{label}: {sum(successes.values())} of {len(successes)}")
        a, b = self.labels
        won = f"{a} alone succeeded on {result.wins_at_stop} set-ups, {b} alone on {result.losses_at_stop}"
        if result.stopped_at is not None:
            better = a if result.wins_at_stop > result.losses_at_stop else b
            p = p_text(result.p, self.alpha)
            verdict = f"{better} is {BETTER} in {self.task!r} (sequential p {p}), these two checkpoints"
        elif result.is_open:
            verdict = f"{OPEN}: {result.n_pairs} of {result.n_planned} set-ups are done"
        else:
            p = p_text(result.p, self.alpha)
            verdict = f"{NO_DIFFERENCE} (sequential p {p}) by {result.n_pairs} set-ups"
        thrown = [each["policy"] for each in self._state["thrown_away"]]
        counts = ", ".join(f"{thrown.count(label)} of {label}" for label in self.labels)
        return "\n".join([*lines, f"{won}: {verdict}", f"Runs thrown away and done again: {counts}"])

    def rows(self):
        """All rows so far, as `read_episodes` returns them."""
        return read_episodes(self.folder)

    def _save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self._path, json.dumps(self._state, indent=1) + "\n")


def page_state(trial: BlindedTrial, is_running: bool, is_over: bool, has_failed: bool) -> dict[str, Any]:
    """What a phone may know: nothing that tells which policy runs."""
    run = trial.next_run
    if run is None:
        return {"phase": "ended", "n_setups": trial.n_setups}
    phase = "running" if is_running else "judge" if is_over else "ready"
    return {
        "phase": phase, "setup": run.setup + 1, "turn": run.turn + 1, "n_setups": trial.n_setups, "task": trial.task,
        "stages": trial.stages, "has_failed": has_failed,
    }  # fmt: skip
