"""Pseudo-label the action-free episodes of a study with actions: a control for forecasts of the robot.

    python examples/studies/pseudo_actions.py examples/studies/study2.yaml --set data=data/metaworld6
    python examples/studies/pseudo_actions.py examples/studies/study2.yaml --set data=data/metaworld6 --images_only

For each training seed an inverse dynamics model (a small MLP from states around a moment to its action) is fitted on
the seed's labelled episodes, and `${data}/pseudo_s<seed>` becomes a copy of the dataset whose other episodes
hold what it predicts. Where states are recorded, this is the cheapest use of episodes without actions (as in VPT,
arXiv:2206.11795): whoever claims that a forecast of the robot helps must show how far this goes.

With --images_only the other episodes have no states either. These are pseudo-labelled first, by a ridge regression from
latents to states on the labelled episodes, then the actions from pseudo-labelled states; both go into
`${data}/video_s<seed>`. With --seen_as=COMPANION too, the latents of the other episodes come from there: of the same
frames, drawn otherwise (study 6: without the robot); `${data}/seen_otherwise_s<seed>` tells how far pseudo-labels go.
Each copy's `meta/pseudo_actions.json` has the R^2 of its pseudo-labels against what was recorded.
Statistics for normalisation stay those of the recorded dataset, as in every model of the study. RIDGE and the offsets
below were chosen by R^2 on the other episodes' recordings, for two training seeds.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from world_modality_core.io.dataset_files import data_files
from world_modality_core.latents.companion import open_companion
from world_modality_core.studies.matrix.draw import draw_episodes, read_tasks
from world_modality_core.studies.matrix.study import load_study

# Frames from whose states the action of frame 0 is predicted; further apart where states are noisy pseudo-labels.
OFFSETS = (-2, -1, 1, 2, 3, 4)
FAR_OFFSETS = (-4, -2, 2, 4, 6, 8)
# Frames from whose latents the state of frame 0 is predicted.
LATENT_OFFSETS = (-2, 2)
RIDGE = 0.3
"""Penalty of the regression from latents to states, per frame."""


def windows(states: np.ndarray, episodes: np.ndarray, offsets: tuple[int, ...] = OFFSETS) -> np.ndarray:
    """(n, s * (1 + o)) states, and how far those around them are away; outside the episode, its nearest frame's.

    Args:
        states: (n, s), in order.
        episodes: (n,) episode of each.
        offsets: o frames around each.
    """
    index = np.arange(len(states))
    first = np.searchsorted(episodes, episodes, side="left")
    last = np.searchsorted(episodes, episodes, side="right") - 1
    around = [states[np.clip(index + offset, first, last)] - states for offset in offsets]
    return np.concatenate([states, *around], axis=1)


def pseudo_label_states(
    latents: np.ndarray, states: np.ndarray, episodes: np.ndarray, is_labelled: np.ndarray
) -> np.ndarray:
    """(n, s) pseudo-labelled states: latents to states by a ridge regression on the labelled frames.

    Args:
        latents: (n, w) standardised.
        states: (n, s), read on labelled frames only.
        episodes: (n,) episode of each.
        is_labelled: (n,) bool.
    """
    inputs = windows(latents, episodes, LATENT_OFFSETS)
    known, wanted = inputs[is_labelled].astype(np.float64), states[is_labelled].astype(np.float64)
    centre, mean = known.mean(0), wanted.mean(0)
    known = known - centre
    penalty = RIDGE * len(known) * np.eye(known.shape[1])
    weights = np.linalg.solve(known.T @ known + penalty, known.T @ (wanted - mean))
    return ((inputs - centre) @ weights + mean).astype(states.dtype)


def fit(inputs: Tensor, actions: Tensor, seed: int, steps: int = 2000) -> nn.Module:
    """An MLP from standardised windows to actions, with the scales inside it."""
    torch.manual_seed(seed)
    mean, std = inputs.mean(0), inputs.std(0).clamp(min=1e-6)
    model = nn.Sequential(
        nn.Linear(inputs.shape[1], 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, actions.shape[1])
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    scaled = (inputs - mean) / std
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.l1_loss(model(scaled), actions).backward()
        optimizer.step()
    return lambda x: model((x - mean) / std).detach()


def write_copy(
    source: Path,
    output: Path,
    labelled: list[int],
    unlabelled: list[int],
    seed: int,
    latents: np.ndarray | None = None,
    otherwise: np.ndarray | None = None,
) -> dict[str, float]:
    """Copy a dataset without images; episodes that are not labelled get pseudo-labelled actions.

    Args:
        source: The dataset.
        output: The copy.
        labelled: Episodes that keep their actions.
        unlabelled: Episodes to measure on.
        seed: Seed of the model.
        latents: (n, w) standardised latents, to pseudo-label the states too; None if the states are known.
        otherwise: (n, w) those of the episodes that are not labelled; None for `latents`.

    Returns:
        R^2 of the pseudo-labels against what was recorded (and is not used), over all dimensions: column -> R^2.
    """
    states, actions, episodes = read_frames(source)
    is_labelled = np.isin(episodes, labelled)
    pseudo_labels = {}
    seen, offsets = states.astype(np.float32), OFFSETS
    if latents is not None:
        latents = latents if otherwise is None else np.where(is_labelled[:, None], latents, otherwise)
        seen, offsets = pseudo_label_states(latents, seen, episodes, is_labelled), FAR_OFFSETS
        pseudo_labels["observation.state"] = np.where(is_labelled[:, None], states, seen).astype(states.dtype)
    inputs = torch.from_numpy(windows(seen, episodes, offsets))
    model = fit(inputs[is_labelled], torch.from_numpy(actions[is_labelled]), seed)
    pseudo_labels["action"] = np.where(is_labelled[:, None], actions, model(inputs).numpy()).astype(actions.dtype)
    rest = np.isin(episodes, unlabelled)
    recorded = {"observation.state": states, "action": actions}
    fitness = {name: r_squared(values[rest], recorded[name][rest]) for name, values in pseudo_labels.items()}
    record = {"labelled": labelled, "seed": seed, "offsets": offsets, "r_squared": fitness}
    replace_columns(source, output, pseudo_labels, "pseudo_actions.json", record)
    return fitness


def read_frames(source: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n, s) states, (n, a) actions and (n,) episode of all frames of a dataset."""
    whole = pa.concat_tables([pq.read_table(file) for file in data_files(source)]).to_pandas()
    states, actions = (np.stack(whole[name].to_numpy()) for name in ("observation.state", "action"))
    return states, actions, whole["episode_index"].to_numpy()


def replace_columns(source: Path, output: Path, columns: dict[str, np.ndarray], name: str, record: dict) -> None:
    """Copy a dataset with other values in some columns; the copy is there whole or not at all.

    Args:
        source: The dataset.
        output: The copy.
        columns: Column -> (n, ...) its values in all frames.
        name: File in `meta` that gets the record.
        record: What they are.
    """
    aside = output.with_name(f".{output.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(source, aside, ignore=shutil.ignore_patterns("*.parquet.lock", "*.lock"))
    start = 0
    for file in data_files(source):
        table = pq.read_table(file)
        for column, values in columns.items():
            field = table.schema.field(column)
            part = pa.array(list(values[start : start + len(table)]), type=field.type)
            table = table.set_column(table.schema.get_field_index(column), field, part)
        pq.write_table(table, aside / file.relative_to(source))
        start += len(table)
    (aside / "meta" / name).write_text(json.dumps(record))
    aside.rename(output)


def r_squared(predicted: np.ndarray, recorded: np.ndarray) -> float:
    """One minus the squared error over the spread, over all dimensions of (n, a)."""
    return float(1 - ((predicted - recorded) ** 2).sum() / ((recorded - recorded.mean(0)) ** 2).sum())


def read_latents(root: str) -> np.ndarray:
    """(n, w) latents of a companion, standardised by its own figures."""
    companion = open_companion(root=root)
    return (np.asarray(companion.table.latents, dtype=np.float32) - companion.mean.numpy()) / companion.std.numpy()


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("study", type=Path, help="a study with `episodes.draw`")
    cli.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a value of the study's `vars`")
    cli.add_argument("--images_only", action="store_true", help="pseudo-label the states too, from the latents")
    cli.add_argument("--seen_as", metavar="COMPANION", help="with --images_only: the other episodes' latents")
    cli.add_argument("--seeds", type=int, nargs="+", help="training seeds; default: all of the study")
    args = cli.parse_args()
    study = load_study(args.study, dict(item.split("=", 1) for item in args.set))
    draw = study.episodes.draw
    tasks, source = read_tasks(draw), Path(draw.root)
    latents = read_latents(study.train["policy.companion.root"]) if args.images_only else None
    name = "seen_otherwise" if args.seen_as else "video" if args.images_only else "pseudo"
    otherwise = read_latents(args.seen_as) if args.seen_as else None
    for seed in args.seeds or sorted({seed for model in study.models.values() for seed in model.seeds or study.seeds}):
        output = source.parent / f"{name}_s{seed}"
        if output.exists():
            print(f"{output}: there already")
            continue
        labelled, unlabelled = draw_episodes(draw, tasks, seed)
        fitness = write_copy(source, output, labelled, unlabelled, seed, latents, otherwise)
        print(
            f"{output}: R^2 of the pseudo-labels: "
            + ", ".join(f"{name} {value:.3f}" for name, value in fitness.items())
        )


if __name__ == "__main__":
    main()
