"""What the Prophet foresees in episodes that training never saw, put into pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets import LeRobotDataset
from lerobot.policies import make_policy, make_pre_post_processors
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

import lerobot_policy_world_modality  # noqa: F401 - registers the policy types
from lerobot_policy_world_modality.intervention.pretraining import learned_by_prophet
from lerobot_policy_world_modality.intervention.unseen_episodes import Checkpoint, choose_episodes
from world_modality_core.latents.companion import Companion, open_companion
from world_modality_core.latents.latent_normaliser import LatentNormaliser
from world_modality_core.latents.latent_table import LatentTable
from world_modality_core.precompute.precompute_options import SourceConfig
from world_modality_core.studies.report.film import Imagined, ImaginedMoment, ImaginedStep, write_imagined

# Where in an episode to look.
MOMENTS = (0.25, 0.6)
N_COLUMNS = 4


def _nearest(queries: Tensor, table: LatentTable, space: LatentNormaliser, rows: int = 4096) -> Tensor:
    """Index (q,) of the recorded frame whose latent has the highest cosine to each query (q, p * d)."""
    queries = normalize(queries, dim=-1)
    best = torch.full((len(queries),), -2.0)
    winner = torch.zeros(len(queries), dtype=torch.int64)
    for start in range(0, table.n_frames, rows):
        block = torch.from_numpy(np.asarray(table.latents[start : start + rows]))
        cosine, row = (queries @ normalize(space.standardise_rows(block).flatten(1), dim=-1).T).max(dim=1)
        better = cosine > best
        best[better], winner[better] = cosine[better], row[better] + start
    return winner


def _predict(
    checkpoint: Path, source: SourceConfig, companion: Companion, device: str
) -> tuple[LeRobotDataset, Tensor, Tensor, LatentNormaliser, list[int]]:
    """Run the policy over the episodes that neither it nor its Prophet learned from.

    Returns:
        The dataset of these episodes, the dataset index (n,) of its frames, their predicted latents (n, k, p * d),
        standardised; the policy's space, and the k offsets in frames.
    """
    made = Checkpoint.open(str(checkpoint))
    config = TrainPipelineConfig.from_pretrained(checkpoint)
    config.policy.pretrained_path = checkpoint
    config.policy.device = device
    config.policy.metrics_file = None
    unseen, _ = choose_episodes(made, source, len(companion.bounds), None, False)
    unseen = sorted(set(unseen) - learned_by_prophet(config.policy, companion))
    if not unseen:
        raise SystemExit(
            f"{checkpoint}: its Prophet ({config.policy.prophet.initialised_from}) learned from all episodes"
        )
    held_out = LeRobotDataset(source.repo_id, root=source.root, episodes=unseen)
    policy = make_policy(config.policy, ds_meta=held_out.meta)
    policy.eval()
    preprocessor, _ = make_pre_post_processors(
        config.policy,
        pretrained_path=str(checkpoint),
        preprocessor_overrides={"device_processor": {"device": device}},
    )
    indices, futures = [], []
    for batch in torch.utils.data.DataLoader(held_out, batch_size=128):
        batch = preprocessor(batch)
        with torch.inference_mode():
            futures.append(policy.predict_latents(batch).cpu())
        indices.append(batch["index"].cpu().flatten())
    stride = config.policy.future_stride
    offsets = [stride * k for k in range(1, config.policy.n_future_steps + 1)]
    space = policy.space.cpu()
    return held_out, torch.cat(indices), space.standardise(torch.cat(futures)).flatten(2), space, offsets


def predict_latents(
    checkpoint: Path, source_root: Path, source_repo_id: str, companion_root: Path, device: str
) -> Imagined:
    """Compare predicted futures with what came, on the episodes that training held out.

    Args:
        checkpoint: A `pretrained_model` folder of a policy with `predict_latents`.
        source_root: The recorded dataset, with images.
        source_repo_id: Its name.
        companion_root: Its companion.
        device: Where to run the policy.
    """
    companion = open_companion(root=companion_root)
    source_config = SourceConfig(source_repo_id, str(source_root))
    held_out, index, predicted, space, offsets = _predict(checkpoint, source_config, companion, device)
    table = companion.table
    latents, is_pad = table.gather(index, [0, *offsets])
    latents, is_pad = space.standardise_rows(latents).flatten(2), is_pad[:, 1:]
    now, real = latents[:, :1], latents[:, 1:]
    cosine = cosine_similarity(predicted, real, dim=-1)
    copy_cosine = cosine_similarity(now, real, dim=-1)
    keep = (~is_pad).float()
    mean, copy_mean = (((c * keep).sum(0) / keep.sum(0)).tolist() for c in (cosine, copy_cosine))

    columns = sorted({round(i) for i in np.linspace(0, len(offsets) - 1, N_COLUMNS)})
    chosen = _choose(held_out, index, is_pad)
    source = LeRobotDataset(source_repo_id, root=source_root)
    camera = companion.spec.cameras[0]
    episode_of = table.episode_index
    first_frame = dict(zip(*(values.tolist() for values in np.unique(episode_of, return_index=True)), strict=True))

    def picture(row: int) -> np.ndarray:
        return (source[row][camera].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()

    moments = []
    for row in chosen:
        at, episode = int(index[row]), int(episode_of[int(index[row])])
        steps = []
        for k, found in zip(columns, _nearest(predicted[row, columns], table, space).tolist(), strict=True):
            other = int(episode_of[found])
            where = f"episode {other}, frame {found - first_frame[other]}"
            if other == episode:
                where = f"this episode, {found - at:+d}"
            steps.append(
                ImaginedStep(
                    offset=offsets[k], found=picture(found), found_where=where, real=picture(at + offsets[k]),
                    cosine=float(cosine[row, k]), copy_cosine=float(copy_cosine[row, k]),
                )
            )  # fmt: skip
        task = held_out.meta.episodes["tasks"][episode][0]
        frame = at - first_frame[episode]
        moments.append(ImaginedMoment(task=task, episode=episode, frame=frame, now=picture(at), steps=steps))
    n_episodes = len(np.unique(episode_of[index.numpy()]))
    return Imagined(
        moments=moments, offsets=offsets, cosine=mean, copy_cosine=copy_mean, n_frames=len(index),
        n_episodes=n_episodes, n_searched=table.n_frames, fps=float(companion.fps),
    )  # fmt: skip


def _choose(held_out: LeRobotDataset, index: Tensor, is_pad: Tensor) -> list[int]:
    """Rows at `MOMENTS` of the first held-out episode of each task, among those whose whole future was recorded."""
    episode_of = torch.as_tensor(np.asarray(held_out.hf_dataset["episode_index"])).flatten()
    chosen, seen = [], set()
    for episode in episode_of.unique().tolist():
        task = held_out.meta.episodes["tasks"][episode][0]
        rows = torch.nonzero((episode_of == episode) & ~is_pad.any(-1)).flatten()
        if task in seen or len(rows) == 0:
            continue
        seen.add(task)
        chosen += [int(rows[int(share * (len(rows) - 1))]) for share in MOMENTS]
    return chosen


def main() -> None:
    """Write the record that `wm-report` shows as filmstrips."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder `pretrained_model` of a trained policy")
    parser.add_argument("--source_root", type=Path, required=True, help="the recorded dataset, with images")
    parser.add_argument("--companion_root", type=Path, required=True, help="its companion")
    parser.add_argument("--model", default="", help="label of the policy")
    parser.add_argument("--output", type=Path, required=True, help="folder of the record")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    imagined = predict_latents(
        given.checkpoint, given.source_root, given.source_root.name, given.companion_root, given.device
    )
    imagined.model = given.model
    print(f"wrote {write_imagined(imagined, given.output)}")


if __name__ == "__main__":
    main()
