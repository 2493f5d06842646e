"""Options of `wm-precompute`. They need neither torch nor LeRobot, so that a wrong one is answered at once."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

from world_modality_core.configs import TokensPer, check_at_least, check_choices
from world_modality_core.encoders.registry import check_family
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.io.devices import check_device
from world_modality_core.io.errors import ConfigError

# Closed choices have names: the help reads a field's comment only where its type has no quotes.
BadEpisodes = Literal["stop", "skip"]


@dataclass
class SourceConfig:
    """The dataset to read."""

    # Repository id of the source dataset.
    repo_id: str = ""
    # Its local folder; LeRobot's default folder, or the Hub, if not given.
    root: str | None = None
    # Its Hub revision: branch, tag or commit.
    revision: str | None = None


@dataclass
class OutputConfig:
    """The companion to write."""

    # Repository id of the companion; <source>_world_<family> if not given.
    repo_id: str = ""
    # Its local folder; LeRobot's default folder if not given.
    root: str | None = None


@dataclass
class TokensConfig:
    """World tokens."""

    # Codes of the codebook; 0 for no tokens.
    n_codes: int = 0
    # One token for all of a frame, or one for each of its latent's tokens.
    per: TokensPer = "frame"
    # Frames in the seeded sample that the codebook is fitted on.
    n_samples: int = 65536


@dataclass
class PrecomputeConfig:
    """Options of `wm-precompute`."""

    dataset: SourceConfig = field(default_factory=SourceConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    # The encoder; without --encoder.family the embedded one, without --encoder.cameras all of the dataset's.
    encoder: EncoderSpec = field(default_factory=EncoderSpec)
    tokens: TokensConfig = field(default_factory=TokensConfig)
    # Episodes to leave out, e.g. 0,5,7-12: they get no latents, and nothing can be trained on them.
    exclude_episodes: str = ""
    # What to do with an episode that can't be read (a video shorter than its table): "stop", or "skip" it, as
    # exclude_episodes does.
    on_bad_episode: BadEpisodes = "stop"
    # Folder or repository id of a companion whose encoder, PCA and codebook to use, as fine-tuning needs; then no
    # --encoder and no --tokens options. Episodes that it holds already are copied from it.
    reuse_from: str | None = None
    # Also write <output root>_merged: a copy of the source that has the latents as features.
    merge: bool = False
    # Also write <output root>_stripped: a copy of the source without its images.
    strip_images: bool = False
    # Upload what was written.
    push_to_hub: bool = False
    # Make the uploaded repositories private.
    private: bool = False
    # Throw away a companion, or unfinished latents, that another request left in the output folder.
    overwrite: bool = False
    # Print what would be done, and stop.
    dry_run: bool = False
    # Frames encoded at once; 0 for as many as the encoder is fastest with, found by trying.
    batch_size: int = 64
    # Decoding processes, for each encoding process; 0 decodes and encodes in turn.
    num_workers: int = field(default_factory=lambda: max(1, min(8, (os.cpu_count() or 1) - 1)))
    # "cpu", "cuda", "cuda:1", ...; the best one at hand if not given.
    device: str | None = None
    # Frames in the seeded sample that the PCA is fitted on.
    pca_n_frames: int = 2048
    # Seed of the samples and of the codebook.
    seed: int = 0
    # Seconds by which a video's frame may miss its timestamp, as LeRobot's option of this name.
    tolerance_s: float = 1e-4

    def __post_init__(self) -> None:
        if not self.dataset.repo_id and not self.dataset.root:
            raise ConfigError("dataset.repo_id and dataset.root are both empty: name the dataset to read")
        check_device(self.device, is_needed=False)
        check_at_least(self, 1, "pca_n_frames")
        check_at_least(self, 0, "batch_size", "num_workers", "seed", "tolerance_s")
        check_choices(self)
        check_choices(self.tokens, "tokens.")
        check_at_least(self.tokens, 1, "n_samples", prefix="tokens.")
        for name in ("n_tokens", "dim", "raw_dims", "pca_sha256"):
            if getattr(self.encoder, name):
                raise ConfigError(
                    f"encoder.{name}={getattr(self.encoder, name)!r} follows from the encoder and its PCA; leave it out"
                )
        if self.encoder.is_set:
            check_family(self.encoder.family)
        if self.reuse_from and (self.encoder != EncoderSpec() or self.tokens != TokensConfig()):
            raise ConfigError(
                f"reuse_from={self.reuse_from!r} brings its encoder and codebook: leave out --encoder and --tokens"
            )
        if self.tokens.n_codes < 0 or self.tokens.n_codes == 1:
            raise ConfigError(f"tokens.n_codes={self.tokens.n_codes}: expected 0 (none) or at least 2")
