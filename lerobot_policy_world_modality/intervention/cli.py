"""`wm-intervene`: does a checkpoint use its world memory, and would a better one help? Measured on recorded episodes.

wm-intervene --policy.path=outputs/F_k4/checkpoints/last/pretrained_model --output_dir=outputs/F_k4/interventions
"""
# No `from __future__ import annotations`: LeRobot's parser reads the annotation of `intervene` as a class.

import platform
import re
import sys
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets import LeRobotDatasetMetadata

import lerobot_policy_world_modality  # noqa: F401  registers the types
from lerobot_policy_world_modality.hub.policy_option import read_policy_option
from lerobot_policy_world_modality.intervention.examined_policy import ExaminedPolicy
from lerobot_policy_world_modality.intervention.folder import Folder
from lerobot_policy_world_modality.intervention.forecasts import ForecastScores, Readers
from lerobot_policy_world_modality.intervention.frames import Frames, targets
from lerobot_policy_world_modality.intervention.memories import plans, scored_frames, why_not
from lerobot_policy_world_modality.intervention.pretraining import seen_beforehand
from lerobot_policy_world_modality.intervention.results import (
    Bootstrap,
    action_errors,
    action_spread,
    by_episode,
    chunk_changes,
    gate_note,
    read_source,
    summarise_forecast,
    summarise_source,
    table,
)
from lerobot_policy_world_modality.intervention.rollout import needs_interpolation
from lerobot_policy_world_modality.intervention.unseen_episodes import Checkpoint, choose_episodes
from lerobot_policy_world_modality.policies.shared.world_options import WorldOptions
from world_modality_core.configs import CompanionConfig, check_at_least
from world_modality_core.io.commands import run_command
from world_modality_core.io.dataset_files import named_files
from world_modality_core.io.devices import check_device
from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import read_json
from world_modality_core.io.progress import Progress
from world_modality_core.memory.sources import TESTED_SOURCES, MemorySource
from world_modality_core.precompute.precompute_options import SourceConfig
from world_modality_core.studies.evidence.checkpoint import label_of

SCHEMA = 1
RECORD_FILE = "interventions.json"
CHART_FILE = "interventions.png"
EPISODES_FILE = "interventions.parquet"


@dataclass
class InterveneConfig:
    """Options of `wm-intervene`."""

    # The checkpoint: --policy.path=FOLDER or a Hub id.
    policy: PreTrainedConfig | None = None
    # The dataset to take frames from; by default the one that the checkpoint was trained on.
    dataset: SourceConfig = field(default_factory=SourceConfig)
    # Its companion; by default the one of the checkpoint's config.
    companion: CompanionConfig = field(default_factory=CompanionConfig)
    # Folder of the record.
    output_dir: str = ""
    # Only these episodes; by default all that training did not see.
    episodes: list[int] | None = None
    # Also take episodes that training saw.
    allow_training_episodes: bool = False
    # Memories to try, separated by commas (docs/memory.md).
    sources: str = ",".join(TESTED_SOURCES)
    # Frames drawn among the episodes'; 0 for all.
    n_frames: int = 0
    # Frames planned from at once; sources such as `shuffle` exchange memories among them.
    batch_size: int = 64
    # For `stale`: how many plans (of n_action_steps) old the memory is.
    stale_plans: int = 4
    # How many times in a row the Prophet predicts in the open-loop rollout.
    rollout_rounds: int = 4
    # Resamples of the episodes for the intervals.
    n_bootstrap: int = 2000
    # Seed of the frames, the noise, the draws and the resamples.
    seed: int = 0
    # "cpu", "cuda", ...; by default the checkpoint's, or the best at hand.
    device: str | None = None
    # Decoding processes.
    num_workers: int = 0
    # What was trained, whatever the training seed: one label per recipe. From the checkpoint's folder, if not given.
    model: str = ""
    # The training run's seed. From the checkpoint's train_config.json, if not given.
    train_seed: int | None = None
    # Also draw the record: interventions.png (needs matplotlib).
    plot: bool = False

    def __post_init__(self) -> None:
        check_device(self.device, is_needed=False)
        self.policy = read_policy_option() or self.policy

    @classmethod
    def __get_path_fields__(cls) -> list[str]:
        return ["policy"]

    @property
    def wanted(self) -> list[MemorySource]:
        """The sources asked for, in order."""
        return list(dict.fromkeys(MemorySource(name) for name in re.findall(r"\w+", self.sources)))

    def validate(self) -> None:
        """Raises ConfigError naming the option."""
        check_device(self.device)
        if self.policy is None or not self.policy.pretrained_path:
            raise ConfigError("policy.path is empty: name the checkpoint to examine")
        if not self.output_dir:
            raise ConfigError("output_dir is empty: name the folder of the record")
        names = re.findall(r"\w+", self.sources)
        unknown = sorted(set(names) - set(TESTED_SOURCES))
        if unknown or not names:
            raise ConfigError(f"sources={self.sources!r}: unknown {unknown}; there are {', '.join(TESTED_SOURCES)}")
        lows = {"n_frames": 0, "batch_size": 2, "stale_plans": 1, "rollout_rounds": 1, "n_bootstrap": 100}
        for name, low in (lows | {"num_workers": 0, "seed": 0}).items():
            check_at_least(self, low, name)


def intervene(cfg: InterveneConfig) -> dict:
    """Examine a checkpoint and write the record; what a killed run finished is not done again.

    Returns:
        The record, as `interventions.json` has it.

    Raises:
        ConfigError: before any work, if it cannot be done as asked for.
    """
    cfg.validate()
    torch.manual_seed(cfg.seed)
    if cfg.plot:  # before any work: matplotlib is an extra
        from lerobot_policy_world_modality.intervention.chart import draw
    checkpoint = Checkpoint.open(str(cfg.policy.pretrained_path), cfg.policy.pretrained_revision)
    dataset, meta = _open_dataset(cfg.dataset, checkpoint)
    episodes, held_out = choose_episodes(
        checkpoint, dataset, meta.total_episodes, cfg.episodes, cfg.allow_training_episodes
    )
    if cfg.train_seed is not None:
        checkpoint.train_seed = cfg.train_seed
    if cfg.device:
        cfg.policy.device = cfg.device
    if not isinstance(cfg.policy, WorldOptions):
        raise ConfigError(
            f"policy.path={str(checkpoint.folder)!r} is a {cfg.policy.type}, which has no world to look at"
        )
    if cfg.companion.repo_id or cfg.companion.root:
        cfg.companion.rename_map = cfg.companion.rename_map or cfg.policy.companion.rename_map
        cfg.policy.companion = cfg.companion
    folder = Folder(Path(cfg.output_dir).resolve(), _request(cfg, checkpoint, meta, episodes))

    try:
        examined = ExaminedPolicy(cfg.policy, checkpoint, meta)
    except ValueError as error:  # a companion that is missing or of another dataset or encoder
        raise ConfigError(str(error)) from error
    held_out += seen_beforehand(cfg.policy, examined.host.latent_reader.companion, episodes)
    frames = Frames(cfg.policy, dataset, meta, episodes, cfg.n_frames, cfg.batch_size, cfg.num_workers, cfg.seed)
    own = None if examined.memory is None else examined.memory.rollout_source
    stale = cfg.stale_plans * cfg.policy.n_action_steps
    with folder.begin():
        skipped = _passes(folder, examined, frames, own, cfg, stale)
        record = _record(cfg, checkpoint, examined, folder, own, skipped, dataset, episodes, held_out, frames)
        folder.write_json(RECORD_FILE, record)
    print(table(record))
    print(f"Record: {folder.root / RECORD_FILE}")
    if cfg.plot:
        print(f"Chart: {draw(record, folder.root / CHART_FILE)}")
    return record


def _passes(
    folder: Folder, examined: ExaminedPolicy, frames: Frames, own: MemorySource | None, cfg: InterveneConfig, stale: int
) -> dict[str, str]:
    """Plan with the policy's own memory and with each source asked for; finished passes are not run again.

    Returns:
        Sources that were left out, and why.
    """
    _first_pass(folder, examined, frames, own, cfg, stale)
    skipped = {}
    for source in cfg.wanted:
        if source is own:
            continue
        is_scored = scored_frames(frames, source, stale, _needed_future(cfg.policy))
        reason = why_not(examined, frames, source, is_scored)
        if reason:
            skipped[source.value] = reason
        elif not folder.has(source):
            _corrupt(folder, examined, frames, source, is_scored, cfg, stale)
    return skipped


def _needed_future(policy: PreTrainedConfig) -> int:
    """Frames that must follow one for the oracle to fill its memory: one future step, or all where it holds states."""
    holds_states = policy.memory is not None and policy.memory.content == "states"
    return (policy.n_future_steps if holds_states else 1) * policy.future_stride


def _open_dataset(named: SourceConfig, checkpoint: Checkpoint) -> tuple[SourceConfig, LeRobotDatasetMetadata]:
    dataset = named
    if not dataset.repo_id and dataset.root:
        dataset = SourceConfig(Path(dataset.root).name, dataset.root, dataset.revision)
    elif not dataset.repo_id:
        if checkpoint.trained_on is None:
            raise ConfigError("dataset.repo_id is empty, and the checkpoint does not say what it was trained on")
        dataset = checkpoint.trained_on
    try:
        meta = LeRobotDatasetMetadata(dataset.repo_id, root=dataset.root, revision=dataset.revision)
        named_files(meta)  # all of them its own
        return dataset, meta
    except Exception as error:
        raise ConfigError(
            f"dataset.repo_id={dataset.repo_id!r} with dataset.root={dataset.root!r} cannot be opened: {error}. Name "
            "the dataset with --dataset.repo_id and --dataset.root"
        ) from error


def _first_pass(
    folder: Folder, examined: ExaminedPolicy, frames: Frames, own: MemorySource | None, cfg: InterveneConfig, stale: int
) -> None:
    """Plan with the policy's own memory; note the gates, the attention and the forecasts on the way."""
    if folder.has("clean"):
        return
    readers, forecast_scores = Readers(examined), ForecastScores(examined, frames, cfg.rollout_rounds)
    chunks, recorded, padding, rows = [], [], [], []
    with Progress("own memory", len(frames), "frames") as progress:
        for part, loaded, batch, plan in plans(examined, frames, own, cfg.seed, stale):
            readers.look(len(part))
            rows.append(_errors(examined, frames, part, loaded, batch, plan))
            actions, is_pad = targets(batch)
            chunks.append(plan.float().cpu())
            recorded.append(actions.float().cpu())
            padding.append(is_pad)
            forecast_scores.look(part, batch)
            progress.update(len(part))
    spread = action_spread(torch.cat(recorded), torch.cat(padding))
    folder.write_tensors("clean", {"chunks": torch.cat(chunks), "spread": spread})
    folder.write("foresight", forecast_scores.rows())
    folder.write_json("parts/readers.json", readers.values())
    folder.write("clean", pd.concat(rows).assign(is_scored=True, chunk_change=0.0))  # last: what says that it is done


def _corrupt(
    folder: Folder, examined: ExaminedPolicy, frames: Frames, source: MemorySource, is_scored: np.ndarray,
    cfg: InterveneConfig, stale: int,
) -> None:  # fmt: skip
    """Plan with the memory of a source, and hold it against the clean plans."""
    clean, rows = folder.read_tensors("clean"), []
    with Progress(source.value, len(frames), "frames") as progress:
        for part, loaded, batch, plan in plans(examined, frames, source, cfg.seed, stale):
            _, is_pad = targets(batch)
            change = chunk_changes(plan.float().cpu(), clean["chunks"][part], is_pad, clean["spread"])
            rows.append(_errors(examined, frames, part, loaded, batch, plan).assign(chunk_change=change))
            progress.update(len(part))
    folder.write(source.value, pd.concat(rows).assign(is_scored=is_scored))


def _errors(
    examined: ExaminedPolicy, frames: Frames, part: np.ndarray, loaded: dict, batch: dict, plan
) -> pd.DataFrame:
    """Errors of the plans of a batch, in normalised and in raw units."""
    actions, is_pad = targets(batch)
    raw, _ = targets(loaded)
    return pd.DataFrame(
        {
            "index": frames.index[part],
            "episode": frames.episode[part],
            "task": frames.task[part],
            "error": action_errors(plan.cpu(), actions.cpu(), is_pad),
            "error_raw": action_errors(examined.postprocess(plan).cpu(), raw.cpu(), is_pad),
        }
    )


def _request(cfg: InterveneConfig, checkpoint: Checkpoint, meta: LeRobotDatasetMetadata, episodes: list[int]) -> dict:
    """All that the finished passes depend on."""
    names = ["n_frames", "batch_size", "stale_plans", "rollout_rounds", "seed"]
    companion = getattr(cfg.policy, "companion", None)
    memory = getattr(cfg.policy, "memory", None)
    return {
        "checkpoint_hash": checkpoint.sha256,
        "dataset": meta.repo_id,
        "dataset_frames": meta.total_frames,
        "companion": None if companion is None else companion.repo_id or Path(companion.root or "").name,
        "episodes": episodes,
        "own_memory": None if memory is None else memory.rollout_source.value,
    } | {name: getattr(cfg, name) for name in names}


def _record(
    cfg: InterveneConfig, checkpoint: Checkpoint, examined: ExaminedPolicy, folder: Folder, own: MemorySource | None,
    skipped: dict, dataset: SourceConfig, episodes: list[int], held_out: str, frames: Frames,
) -> dict:  # fmt: skip
    interval = Bootstrap(cfg.n_bootstrap, cfg.seed)
    readers = read_json(folder.parts / "readers.json", dict)
    gate, note = gate_note(readers)
    clean, forecast_scores = folder.read("clean"), folder.read("foresight")
    policy, label = cfg.policy, cfg.model or label_of(checkpoint.name)
    sources, tables = {}, []
    names = [(own or "none", clean)]
    names += [(s, folder.read(s)) for s in cfg.wanted if s is not own and s.value not in skipped]
    for source, rows in names:
        per_episode = by_episode(rows, clean)
        summary = summarise_source(per_episode, interval)
        reading = "no memory to exchange" if own is None else read_source(source, summary, own, gate)
        sources[str(source)] = summary | {"reading": reading}
        tables.append(per_episode.assign(source=str(source)))
    merged = pd.concat(tables).assign(model=label, train_seed=checkpoint.train_seed, checkpoint=checkpoint.sha256)
    folder.put(folder.root / EPISODES_FILE, lambda path: merged.to_parquet(path, index=False))
    tokens, latents, rollout = (
        summarise_forecast(forecast_scores, kind, interval) for kind in ("tokens", "latents", "rollout")
    )
    masses = [row["attention_mass"] for row in readers.values() if row["attention_mass"]]
    return {
        "schema": SCHEMA,
        "checkpoint": checkpoint.name,
        "checkpoint_hash": checkpoint.sha256,
        "model": label,
        "train_seed": checkpoint.train_seed,
        "policy_type": policy.type,
        "dataset": dataset.repo_id,
        "episodes": len(episodes),
        "episode_indices": episodes,
        "held_out": held_out,
        "frames": len(frames),
        "own_memory": None if own is None else own.value,
        "gate": gate,
        "gate_note": note,
        "attention_mass": np.mean(masses, axis=0).tolist() if masses else None,
        "readers": readers,
        "sources": sources,
        "skipped": skipped,
        "token_accuracy": None if tokens is None else [row["value"] for row in tokens],
        "skill": None if latents is None else [row["skill"] for row in latents],
        "rollout_error": None if rollout is None else [
            {"step": row["step"], "prophet": row["value"], "copy": row["copy"]} for row in rollout
        ],
        "tokens": tokens,
        "latents": latents,
        "rollout": rollout,
        "rollout_is_interpolated": rollout is not None
        and needs_interpolation(examined.prophet.n_history, policy.history_stride, policy.future_stride),
        "future_stride": getattr(policy, "future_stride", None),
        "options": {k: v for k, v in asdict(cfg).items() if k not in ("policy", "dataset", "companion", "output_dir")},
        "command": ["wm-intervene", *sys.argv[1:]],
        "versions": {name: version(name) for name in ("lerobot", "torch", "numpy", "lerobot_policy_world_modality")}
        | {"python": platform.python_version()},
    }  # fmt: skip


def main() -> int:
    """Console script `wm-intervene`."""
    return run_command("wm-intervene", InterveneConfig, intervene)


if __name__ == "__main__":
    sys.exit(main())
