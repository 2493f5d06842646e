"""Recorded episodes, their companion, a Prophet that learned from some of them, and a monitor fitted on the rest."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.fixtures_datasets import make_dataset
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.monitor.cli import make_parser
from world_modality_core.monitor.fit import fit
from world_modality_core.precompute.precompute_options import OutputConfig, PrecomputeConfig, SourceConfig
from world_modality_core.precompute.steps import precompute
from world_modality_core.prophet.train_prophet import train_prophet
from world_modality_core.prophet.training_options import ProphetTrainingConfig

N_EPISODES, LEARNED = 20, "0-3"
LENGTHS = [11 + episode % 5 for episode in range(N_EPISODES)]


class Watched(NamedTuple):
    """Where everything is; do not write there."""

    source: Path
    companion: Path
    prophet: Path
    monitor: Path


def fit_options(*arguments: str):
    """Options of `wm-monitor fit` as they are typed."""
    return make_parser().parse_args(["fit", *arguments])


@pytest.fixture(scope="session")
def watched(tmp_path_factory) -> Watched:
    base = tmp_path_factory.mktemp("watched")
    paths = Watched(base / "source", base / "companion", base / "prophet", base / "monitor")
    make_dataset(paths.source, lengths=LENGTHS, cameras=["observation.image"], use_videos=False, size=32)
    precompute(
        PrecomputeConfig(
            dataset=SourceConfig("tests/source", str(paths.source)),
            output=OutputConfig("tests/source_world", str(paths.companion)),
            encoder=EncoderSpec(family="efficientnet_lite0", height_px=32, width_px=32, pca_dim=8),
            device="cpu",
            batch_size=8,
            num_workers=0,
        )
    )
    train_prophet(
        ProphetTrainingConfig(
            companions=str(paths.companion), sources=str(paths.source), output_dir=str(paths.prophet),
            prophet=_prophet(), n_obs_steps=2, history_stride=1, n_future_steps=2, future_stride=2,
            episodes=LEARNED, eval_split=0, steps=20, state_loss_weight=1, batch_size=8, device="cpu",
        )
    )  # fmt: skip
    fit(
        fit_options(
            f"--prophet={paths.prophet}", f"--companions={paths.companion}", f"--sources={paths.source}",
            "--false_alarm_rate=0.3", "--window=2", f"--output_dir={paths.monitor}",
        )
    )  # fmt: skip
    return paths


def _prophet():
    from world_modality_core.configs import ProphetConfig

    return ProphetConfig(
        d_model=16, n_layers=1, n_heads=2, n_hypotheses=2, use_state=True, use_language=True, tells_state=True
    )
