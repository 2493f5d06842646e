"""Give the action-free episodes of a study actions, told from their states: a control for memories of future states.

    python examples/studies/pseudo_actions.py examples/studies/study2.yaml --set data=data/metaworld6

For each training seed an inverse dynamics model (a small MLP from states around a moment to its action) is fitted on
the seed's labelled episodes, and `${data}/pseudo_s<seed>` becomes a copy of the dataset whose other episodes
hold what it tells. Where states are recorded, this is the cheapest use of episodes without actions (as in VPT,
arXiv:2206.11795): whoever claims that a memory of future states helps must show how far this goes.
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

from world_modality_core.matrix.draw import draw_episodes, read_tasks
from world_modality_core.matrix.study import load_study

# Frames whose states tell the action of frame 0.
OFFSETS = (-2, -1, 1, 2, 3, 4)


def windows(states: np.ndarray, episodes: np.ndarray) -> np.ndarray:
    """(n, s * 7) states, and how far those around them are away; outside the episode, its nearest frame's.

    Args:
        states: (n, s), in order.
        episodes: (n,) episode of each.
    """
    index = np.arange(len(states))
    first = np.searchsorted(episodes, episodes, side="left")
    last = np.searchsorted(episodes, episodes, side="right") - 1
    around = [states[np.clip(index + offset, first, last)] - states for offset in OFFSETS]
    return np.concatenate([states, *around], axis=1)


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


def write_copy(source: Path, output: Path, labelled: list[int], unlabelled: list[int], seed: int) -> float:
    """Copy a dataset without images; actions of episodes that are not labelled are told by the model.

    Args:
        source: The dataset.
        output: The copy.
        labelled: Episodes that keep their actions.
        unlabelled: Episodes to measure on.
        seed: Seed of the model.

    Returns:
        R^2 of the told actions against those that were recorded (and are not used), over all action dimensions.
    """
    files = sorted((source / "data").glob("*/*.parquet"))
    tables = [pq.read_table(file) for file in files]
    whole = pa.concat_tables(tables).to_pandas()
    states, actions = (np.stack(whole[name].to_numpy()) for name in ("observation.state", "action"))
    episodes = whole["episode_index"].to_numpy()
    inputs = torch.from_numpy(windows(states.astype(np.float32), episodes))
    is_labelled = np.isin(episodes, labelled)
    model = fit(inputs[is_labelled], torch.from_numpy(actions[is_labelled]), seed)
    told = np.where(is_labelled[:, None], actions, model(inputs).numpy()).astype(actions.dtype)
    aside = output.with_name(f".{output.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(source, aside, ignore=shutil.ignore_patterns("*.parquet.lock", "*.lock"))
    start = 0
    for file, table in zip(files, tables, strict=True):
        column = table.schema.get_field_index("action")
        part = pa.array(list(told[start : start + len(table)]), type=table.schema.field(column).type)
        pq.write_table(table.set_column(column, table.schema.field(column), part), aside / file.relative_to(source))
        start += len(table)
    record = {"labelled": labelled, "seed": seed, "offsets": OFFSETS}
    (aside / "meta" / "pseudo_actions.json").write_text(json.dumps(record))
    aside.rename(output)
    rest = np.isin(episodes, unlabelled)
    error = ((told[rest] - actions[rest]) ** 2).sum()
    return float(1 - error / ((actions[rest] - actions[rest].mean(0)) ** 2).sum())


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("study", type=Path, help="a study with `episodes.draw`")
    cli.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a value of the study's `vars`")
    args = cli.parse_args()
    study = load_study(args.study, dict(item.split("=", 1) for item in args.set))
    draw = study.episodes.draw
    tasks, source = read_tasks(draw), Path(draw.root)
    for seed in sorted({seed for model in study.models.values() for seed in model.seeds or study.seeds}):
        output = source.parent / f"pseudo_s{seed}"
        if output.exists():
            print(f"{output}: there already")
            continue
        fitness = write_copy(source, output, *draw_episodes(draw, tasks, seed), seed)
        print(f"{output}: R^2 of the told actions {fitness:.3f}")


if __name__ == "__main__":
    main()
