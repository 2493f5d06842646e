"""`coc-eval`: how good are labels, measured against the simulator's own trace or against people's?

coc-eval --labels=outputs/coc/vlm.jsonl --reference=outputs/coc/sim.jsonl --dataset.root=data/metaworld
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from coc_tools.config import DatasetConfig, GripperConfig
from world_modality_core.configs import check_at_least
from world_modality_core.io.commands import run_command
from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import write_text

if TYPE_CHECKING:
    from coc_tools.judge.score_report import ScoreReport


@dataclass
class EvalConfig:
    """Options of `coc-eval`."""

    # Label file to be judged.
    labels: str = ""
    # Label file that is taken for the truth: of backend sim, or by people.
    reference: str = ""
    # The labelled dataset, for the check against the gripper; without it that metric is left out.
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    gripper: GripperConfig = field(default_factory=GripperConfig)
    # Temporal intersection over union from which two steps can be the same.
    min_iou: float = 0.5
    # Resamples of the episodes for the intervals.
    n_bootstrap: int = 2000
    # Seed of the resamples and of the corruptions.
    seed: int = 0
    # Also write the figures into this file.
    json: str | None = None

    def validate(self) -> None:
        """Raises ConfigError naming the option."""
        for name in ("labels", "reference"):
            if not Path(getattr(self, name) or "-").is_file():
                raise ConfigError(f"{name}={getattr(self, name)!r}: no such file; name a label file (.jsonl)")
        if not 0 < self.min_iou <= 1:
            raise ConfigError(f"min_iou={self.min_iou}: expected more than 0 and at most 1")
        check_at_least(self, 100, "n_bootstrap")
        check_at_least(self, 0, "seed")


def evaluate(cfg: EvalConfig) -> ScoreReport:
    """Score a label file and print the report.

    Raises:
        UserError: an option or a file cannot be used.
    """
    cfg.validate()
    # Not before the options are read: `--help` shall be quick.
    from coc_tools.judge.score_report import format_report, judge
    from coc_tools.store import read_labels

    labels, reference = read_labels(cfg.labels), read_labels(cfg.reference)
    grippers = None
    if cfg.dataset.repo_id or cfg.dataset.root:
        from coc_tools.episodes import EpisodeReader  # LeRobot and torch, only where a dataset is given
        from coc_tools.judge.gripper import read_grippers

        reader = EpisodeReader(cfg.dataset.repo_id, cfg.dataset.root, cfg.dataset.revision)
        dimension, grippers = read_grippers(reader, sorted(set(labels) & set(reference)), cfg.gripper)
        print(f"gripper: {dimension}; another with --gripper.key and --gripper.dim")
    report = judge(labels, reference, grippers, cfg.min_iou, cfg.n_bootstrap, cfg.seed)
    print(format_report(report))
    if cfg.json:
        options = {**asdict(cfg), "json": None}
        write_text(cfg.json, json.dumps({"options": options, **asdict(report)}, indent=1) + "\n")
    return report


def main() -> int:
    """Console script `coc-eval`."""
    return run_command("coc-eval", EvalConfig, evaluate, remedy="begins anew")


if __name__ == "__main__":
    sys.exit(main())
