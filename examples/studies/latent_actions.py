"""Latent actions for episodes that show no robot: a control for forecasts of what is seen (LAPA, arXiv:2410.11758).

    python examples/studies/latent_actions.py examples/studies/study6.yaml --seen_as=data/metaworld3/companion_hidden

For each training seed a latent action model is fitted on that companion's latents alone: an encoder puts what changes
from a frame to the one SPAN later into as few numbers as the robot's action has, from which and from the first frame a
decoder predicts the change. (LAPA's codes are discrete; so narrow a continuous one serves the same end, CLAM,
arXiv:2505.04999.) `${data}/latent_s<seed>` becomes a copy of the companion's dataset whose actions are these codes, on
the scale of the recorded actions, and whose states are one constant. `${data}/latent_policy_s<seed>` is `world_A`
trained to predict them in the study's setting, for STEPS steps: where the study's policy then starts, on the labelled
episodes. The copy's `meta/latent_actions.json` says how much of the change the decoder predicts with the codes and
without, and how much of the recorded actions a linear map of the codes has, which no training sees.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import torch
from pseudo_actions import read_frames, read_latents, replace_columns
from torch import Tensor, nn

from world_modality_core.studies.matrix.study import Study, load_study

# Frames between the two that a code lies between: the study's `future_stride`.
SPAN = 4
# Of the policy on latent actions.
STEPS = 3000


class LatentActionModel(nn.Module):
    """A code of a change, and the change from it.

    Args:
        n_inputs: w, width of a frame's latents.
        n_codes: a, width of the code.
    """

    def __init__(self, n_inputs: int, n_codes: int):
        super().__init__()
        self.encoder = _mlp(2 * n_inputs, n_codes)
        self.decoder = _mlp(n_inputs + n_codes, n_inputs)

    def encode(self, before: Tensor, change: Tensor) -> Tensor:
        """(n, a) bounded codes of (n, w) latents and changes."""
        return torch.tanh(self.encoder(torch.cat([before, change], dim=-1)))

    def forward(self, before: Tensor, code: Tensor) -> Tensor:
        """(n, w) predicted changes."""
        return self.decoder(torch.cat([before, code], dim=-1))


def _mlp(n_inputs: int, n_outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_inputs, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, n_outputs))


def changes(latents: np.ndarray, episodes: np.ndarray) -> np.ndarray:
    """(n, w) from each frame to the one SPAN later, or to the last of its episode."""
    last = np.searchsorted(episodes, episodes, side="right") - 1
    return latents[np.minimum(np.arange(len(latents)) + SPAN, last)] - latents


def fit(before: Tensor, change: Tensor, n_codes: int, seed: int, steps: int = 2000) -> tuple[Tensor, dict[str, float]]:
    """Fit the model on all frames.

    Args:
        before: (n, w) latents.
        change: (n, w).
        n_codes: a.
        seed: Of weights and batches.
        steps: Batches of 256.

    Returns:
        (n, a) codes; share of the changes' spread that is predicted "with_codes", and "without" (other frames' codes).
    """
    torch.manual_seed(seed)
    model = LatentActionModel(before.shape[1], n_codes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    for _ in range(steps):
        chosen = torch.randint(len(before), (256,))
        code = model.encode(before[chosen], change[chosen])
        optimizer.zero_grad()
        nn.functional.mse_loss(model(before[chosen], code), change[chosen]).backward()
        optimizer.step()
    with torch.no_grad():
        codes = model.encode(before, change)
        shares = {
            name: 1 - float((model(before, used) - change).square().sum() / (change - change.mean(0)).square().sum())
            for name, used in (("with_codes", codes), ("without", codes[torch.randperm(len(codes))]))
        }
    return codes, shares


def linear_share(codes: np.ndarray, actions: np.ndarray) -> float:
    """Share of the spread of (n, a) actions that the best linear map of (n, a) codes has."""
    inputs = np.concatenate([codes, np.ones((len(codes), 1))], axis=1)
    rest = actions - inputs @ np.linalg.lstsq(inputs, actions, rcond=None)[0]
    return float(1 - rest.var(0).sum() / actions.var(0).sum())


def label(source: Path, output: Path, latents: np.ndarray, seed: int) -> dict[str, float]:
    """Write the copy of a dataset whose actions are codes.

    Args:
        source: The dataset.
        output: The copy.
        latents: (n, w) standardised latents of its frames.
        seed: Of the model.

    Returns:
        What `meta/latent_actions.json` says of the codes.
    """
    states, actions, episodes = read_frames(source)
    before, change = torch.from_numpy(latents), torch.from_numpy(changes(latents, episodes))
    codes, shares = fit(before, change, actions.shape[1], seed)
    codes = ((codes - codes.mean(0)) / codes.std(0).clamp(min=1e-6)).numpy()
    columns = {
        "action": (codes * actions.std(0) + actions.mean(0)).astype(actions.dtype),
        "observation.state": np.broadcast_to(states.mean(0), states.shape).astype(states.dtype),
    }
    shares["of_recorded_actions"] = linear_share(codes, actions)
    replace_columns(source, output, columns, "latent_actions.json", {"seed": seed, "span": SPAN, "shares": shares})
    return shares


def pretrain(study: Study, dataset: Path, companion: Path, output: Path, seed: int) -> None:
    """Train `world_A` on latent actions as the study trains its policies."""
    aside = output.with_name(f".{output.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    flags = study.train | {
        "policy.type": "world_A", "dataset.root": str(dataset), "dataset.episodes": None,
        "policy.companion.root": str(companion), "steps": STEPS, "policy.scheduler_decay_steps": STEPS,
        "save_freq": STEPS, "seed": seed, "output_dir": str(aside),
    }  # fmt: skip
    words = [f"--{name}={_written(value)}" for name, value in flags.items() if value is not None]
    subprocess.run(["lerobot-train", *words], check=True)
    aside.rename(output)


def _written(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("study", type=Path, help="a study of policies on labelled episodes")
    cli.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a value of the study's `vars`")
    cli.add_argument("--seen_as", type=Path, required=True, metavar="COMPANION", help="episodes that show no robot")
    cli.add_argument("--seeds", type=int, nargs="+", required=True, help="training seeds")
    args = cli.parse_args()
    study = load_study(args.study, dict(item.split("=", 1) for item in args.set))
    latents = read_latents(str(args.seen_as))
    for seed in args.seeds:
        dataset, policy = (args.seen_as.parent / f"{name}_s{seed}" for name in ("latent", "latent_policy"))
        if not dataset.exists():
            shares = label(args.seen_as.with_name(f"{args.seen_as.name}_stripped"), dataset, latents, seed)
            print(f"{dataset}: " + ", ".join(f"{name} {value:.3f}" for name, value in shares.items()), flush=True)
        if not policy.exists():
            pretrain(study, dataset, args.seen_as, policy, seed)


if __name__ == "__main__":
    main()
