"""`wm-prophet`: train a Prophet on companions, with or without actions in their sources.

wm-prophet --companions=outputs/demo/companion --prophet.use_language=true --output_dir=outputs/prophet
"""

from __future__ import annotations

import sys

from world_modality_core.io.commands import run_command
from world_modality_core.prophet.training_options import ProphetTrainingConfig


def work(cfg: ProphetTrainingConfig) -> None:
    """Train what the options ask for."""
    from world_modality_core.prophet.train_prophet import train_prophet

    train_prophet(cfg)


def main() -> int:
    """Console script `wm-prophet`."""
    return run_command("wm-prophet", ProphetTrainingConfig, work)


if __name__ == "__main__":
    sys.exit(main())
