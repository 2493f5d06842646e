"""Can a world memory help? smolvla_world where to act well is to know what comes next (`light_ring.py`).

A tiny SmolVLA of the real class is trained, from random weights and with all of it trainable, on recorded episodes in
which a light runs round a ring and the action aims ahead of it. Which way the light runs is in no current input. The
arms, each with the same seeds, batches and noise:

    E0             no memory: SmolVLA alone
    E1             memory of zeros: the capacity control
    E2             the Prophet's prediction from T frames
    copy_current   the current latent, repeated: more vision, no future
    oracle         the true future

Then each plans for every frame of held-out episodes, E2 with its memory exchanged too: offline, from recorded latents
(`oracle` needs them), and in rollouts, where the policy is shown the frames one after the other and encodes them
itself. The error is the mean squared distance between planned and right aim, both on the unit circle: 0 to 4, 2 for
aiming blindly. Beside it: how many plans are nearer to the light's way than to the opposite one, on frames where the
light doesn't turn from the first frame of the history to the last of the future. Intervals are 95 % percentile
bootstraps over seeds and episodes. `kept` is the share of what E2 gained on E0: 1 is all of it, 0 is E0's
level. To know nothing is to go the right way half the time; an error somewhat below a coin toss's is then no knowledge,
but hedging: aiming at the middle between the two ways.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np
import torch
from lerobot.datasets import LeRobotDataset
from lerobot.policies import make_policy, make_policy_config, make_pre_post_processors
from torch import Tensor
from torch.utils.data import default_collate

sys.path.insert(0, str(Path(__file__).parent))
import light_ring
from provenance import provenance

import lerobot_policy_world_modality  # noqa: F401  registers the types
from wm_tools.doctor.smolvlm_backbone import TINY_SMOLVLA, make_smolvlm
from world_modality_core.configs import MemorySource
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.latents.companion import open_companion
from world_modality_core.precompute.precompute_options import OutputConfig, PrecomputeConfig, SourceConfig
from world_modality_core.precompute.steps import precompute

IMAGE_PX, LENGTH, CHUNK = 64, 40, 4
HISTORY, FUTURES, STRIDE = 3, 3, 3  # the Prophet sees frames t-2, t-1, t and predicts t+3, t+6, t+9: the chunk's reach
AHEAD = max(FUTURES * STRIDE, light_ring.LEAD + CHUNK - 1)
# Held-out frames that are scored: with a whole history, and with a recorded future for the oracle.
SCORED = range(HISTORY - 1, LENGTH - AHEAD)
# Memory in training; None for no memory at all.
ARMS = {"E0": None, "E1": "zero", "E2": "pred", "copy_current": "copy_current", "oracle": "oracle"}
INTERVENTIONS = ["zero", "random", "shuffle", "copy_current"]


class Bench:
    """The dataset, held in memory, and all that the arms share.

    Args:
        folder: Where dataset, companion and backbone are, or are made.
        args: The command's arguments.
    """

    def __init__(self, folder: Path, args: argparse.Namespace):
        self.args, self.folder = args, folder
        n = args.train_episodes + args.test_episodes
        repo_id, root = "bench/light_ring", folder / f"dataset_{n}"
        self.episodes = light_ring.simulate(n, LENGTH, seed=0)
        if not root.exists():
            light_ring.record(root, repo_id, self.episodes, IMAGE_PX, seed=1)
        self.companion_root = folder / f"companion_{n}"
        precompute(
            PrecomputeConfig(
                dataset=SourceConfig(repo_id, str(root)),
                output=OutputConfig(f"{repo_id}_world", str(self.companion_root)),
                encoder=EncoderSpec(family="efficientnet_lite0", height_px=IMAGE_PX, width_px=IMAGE_PX, pca_dim=16),
                device="cpu",
                num_workers=0,
            )
        )
        self.vlm = make_smolvlm(folder / "vlm")
        delta = {"action": [i / light_ring.FPS for i in range(CHUNK)]}
        dataset = LeRobotDataset(repo_id, root=root, delta_timestamps=delta)
        self.meta = dataset.meta
        # Decoding images anew at every step would be most of the run.
        self.table = default_collate([dataset[i] for i in range(len(dataset))])
        self.test = np.arange(args.train_episodes, n)
        self.frames = np.array([(e, t) for e in self.test for t in SCORED])  # (f, 2) episode and time
        self.noise = torch.randn(
            n * LENGTH, CHUNK, TINY_SMOLVLA["max_action_dim"], generator=torch.Generator().manual_seed(2)
        )

    def batch(self, rows: np.ndarray) -> dict:
        """Recorded frames by their row, as a data loader gives them."""
        index = torch.as_tensor(rows)
        return {k: v[index] if isinstance(v, Tensor) else [v[i] for i in rows] for k, v in self.table.items()}

    def observation(self, rows: np.ndarray) -> dict:
        """What a robot would see at these frames."""
        keys = (light_ring.CAMERA, "observation.state", "task")
        return {key: value for key, value in self.batch(rows).items() if key in keys}

    def aims(self, way: int | None = None) -> np.ndarray:
        """(f, h, 2) right actions of the scored frames, or those of a light that runs `way` and doesn't turn."""
        if way is None:
            return np.stack([self.episodes[e].aim(t, CHUNK) for e, t in self.frames])
        return np.stack([self.episodes[e].straight_aim(t, CHUNK, way) for e, t in self.frames])

    def ways(self) -> tuple[np.ndarray, np.ndarray]:
        """(f,) the way that the light runs at each scored frame, and where it doesn't turn nearby."""
        way = np.array([self.episodes[e].way[t] for e, t in self.frames])
        is_steady = ~np.array([self.episodes[e].turns_near(t, HISTORY - 1, AHEAD) for e, t in self.frames])
        return way, is_steady


def train(bench: Bench, arm: str, seed: int):
    """Train an arm as `lerobot-train` does; returns the policy, its processors and what it logged last."""
    args, source = bench.args, ARMS[arm]
    config = make_policy_config(
        "smolvla_world",
        **TINY_SMOLVLA
        | {
            "vlm_model_name": str(bench.vlm),
            "chunk_size": CHUNK,
            "n_action_steps": 1,
            "num_steps": 5,
            "train_expert_only": False,  # the backbone's weights are random: nothing in it is worth keeping
            "freeze_vision_encoder": False,
            "optimizer_lr": args.lr,
            "n_history_steps": HISTORY,
            "n_future_steps": FUTURES,
            "future_stride": STRIDE,
            "lambda_world": 0.0 if source is None else 1.0,
        },
    )
    for fusion in ("f1", "f2", "f3a", "f3b"):
        setattr(config.fusion, fusion, source is not None and fusion in args.fusion)
    config.prophet.d_model = 64
    config.companion.root = str(bench.companion_root)
    if source is not None:
        config.memory.source = MemorySource(source)
    torch.manual_seed(seed)
    policy = make_policy(config, ds_meta=bench.meta).train()
    preprocess, postprocess = make_pre_post_processors(config, dataset_stats=bench.meta.stats)
    optimizer = config.get_optimizer_preset().build(policy.get_optim_params())
    scheduler = config.get_scheduler_preset().build(optimizer, args.steps)
    rng = np.random.default_rng(seed)
    n_train = len(bench.table["index"]) - len(bench.test) * LENGTH
    last: list[dict[str, float]] = []
    for step in range(args.steps):
        batch = preprocess(bench.batch(rng.integers(0, n_train, args.batch_size)))
        loss, logged = policy.forward(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), config.optimizer_grad_clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        policy.update()
        if step >= args.steps - 50:
            last.append(dict(logged.items()))
    names = [name for name in last[0] if name.startswith(("loss", "world_gate", "prophet_skill", "memory_entropy"))]
    return policy, (preprocess, postprocess), {name: float(np.mean([row[name] for row in last])) for name in names}


def plan_offline(bench: Bench, policy, processors, source: str | None) -> np.ndarray:
    """(f, h, 2) actions planned from recorded frames, with the memory of a source."""
    preprocess, postprocess = processors
    # Neighbouring rows are of different episodes, or `shuffle` would find no partner.
    rows = (bench.frames[:, 0] * LENGTH + bench.frames[:, 1]).reshape(len(bench.test), -1).T.ravel()
    plans = np.empty((len(bench.table["index"]), CHUNK, 2))
    for some in np.array_split(rows, max(1, len(rows) // 256)):
        planned = policy.plan_recorded(preprocess(bench.batch(some)), source, noise=bench.noise[some])
        plans[some] = postprocess(planned).numpy()
    return plans[bench.frames[:, 0] * LENGTH + bench.frames[:, 1]]


def plan_live(bench: Bench, policy, processors, source: str | None) -> np.ndarray:
    """(f, h, 2) actions planned in rollouts: the test episodes side by side, shown frame by frame."""
    preprocess, postprocess = processors
    if source is not None:
        policy.config.memory.eval_source = MemorySource(source)
    policy.reset()
    plans = np.empty((LENGTH, len(bench.test), CHUNK, 2))
    for t in range(LENGTH):
        rows = bench.test * LENGTH + t
        planned = policy.predict_action_chunk(preprocess(bench.observation(rows)), noise=bench.noise[rows])
        plans[t] = postprocess(planned).numpy()
    return plans[SCORED.start : SCORED.stop].swapaxes(0, 1).reshape(-1, CHUNK, 2)


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(f,) mean squared distance between chunks (f, h, 2)."""
    return ((a - b) ** 2).sum(-1).mean(-1)


def score(bench: Bench, plans: np.ndarray) -> dict[str, np.ndarray]:
    """Per test episode: mean error, and share of plans that go the light's way on steady frames (NaN without any)."""
    way, is_steady = bench.ways()
    ahead, back = bench.aims(1), bench.aims(-1)
    is_right = (distance(plans, ahead) < distance(plans, back)) == (way > 0)
    shape = (len(bench.test), -1)
    right = np.where(is_steady, is_right, np.nan).reshape(shape)
    with np.errstate(invalid="ignore"):
        share = np.nansum(right, 1) / (~np.isnan(right)).sum(1)
    return {"error": distance(plans, bench.aims()).reshape(shape).mean(1), "right_way": share}


def references(bench: Bench) -> dict[str, dict[str, np.ndarray]]:
    """Scores of ideal players: what can be known from one frame, from the history, and from the future."""
    way, _ = bench.ways()
    ahead, back = bench.aims(1), bench.aims(-1)
    toss = np.random.default_rng(3).choice([False, True], len(way))[:, None, None]
    return {
        "one frame, a coin toss": score(bench, np.where(toss, ahead, back)),
        "one frame, the middle": score(bench, (ahead + back) / 2 + 1e-6 * np.where(toss, ahead, back)),
        "history": score(bench, np.where((way > 0)[:, None, None], ahead, back)),
        "future": score(bench, bench.aims()),
    }


def probe(bench: Bench) -> dict[str, float]:
    """R^2 on held-out episodes of the first aim, from latents by ridge regression: where the information is."""
    latents = open_companion(root=bench.companion_root).table.latents.astype(np.float32)
    latents = (latents - latents.mean(0)) / latents.std(0)
    latents = latents.reshape(len(bench.episodes), LENGTH, -1)
    aim = np.stack([episode.aim(0, LENGTH) for episode in bench.episodes])  # (episodes, length, 2)
    inputs = {"current": [0], "history": [1 - HISTORY + i for i in range(HISTORY)], "future": [light_ring.LEAD]}
    n_train, found = bench.args.train_episodes, {}
    for name, offsets in inputs.items():
        x = np.concatenate([latents[:, SCORED.start + i : SCORED.stop + i] for i in offsets], axis=-1)
        x, y = (part.reshape(len(part), len(SCORED), -1) for part in (x, aim[:, SCORED.start : SCORED.stop]))
        x_train, y_train = x[:n_train].reshape(-1, x.shape[-1]), y[:n_train].reshape(-1, 2)
        weights = np.linalg.solve(x_train.T @ x_train + np.eye(x.shape[-1]), x_train.T @ y_train)
        residual = y[n_train:] - x[n_train:] @ weights
        found[name] = float(1 - (residual**2).sum() / ((y[n_train:] - y_train.mean(0)) ** 2).sum())
    return found


def interval(per_seed: list[np.ndarray]) -> dict:
    """Mean over seeds and episodes, its 95 % bootstrap interval over both, and each seed's mean."""
    values = np.stack(per_seed)  # (seeds, episodes)
    rng = np.random.default_rng(4)
    seeds, episodes = (rng.integers(0, n, (2000, n)) for n in values.shape)
    low, high = np.percentile(np.nanmean(values[seeds[:, :, None], episodes[:, None]], axis=(1, 2)), [2.5, 97.5])
    return {
        "mean": float(np.nanmean(values)), "low": float(low), "high": float(high),
        "seeds": [float(np.nanmean(row)) for row in values],
    }  # fmt: skip


def measure(bench: Bench) -> tuple[dict, dict]:
    """Train and score all arms: (arm, memory, how) -> scores per seed, and arm -> logged values per seed."""
    scores: dict[tuple[str, str, str], list[dict]] = {}
    logged: dict[str, list[dict]] = {}
    for seed in bench.args.seeds:
        for arm in bench.args.arms:
            start = time.perf_counter()
            policy, processors, last = train(bench, arm, seed)
            logged.setdefault(arm, []).append(last | {"train_s": time.perf_counter() - start})
            own = ARMS[arm]
            offline = [own] + ([*INTERVENTIONS, "oracle"] if arm == "E2" else [])
            live = [] if arm == "oracle" else [own] + (INTERVENTIONS if arm == "E2" else [])
            for how, plan, sources in (("offline", plan_offline, offline), ("rollout", plan_live, live)):
                for source in sources:
                    scored = score(bench, plan(bench, policy, processors, source))
                    scores.setdefault((arm, source or "none", how), []).append(scored)
            error = np.mean(scores[arm, own or "none", "offline"][-1]["error"])
            print(f"seed {seed} {arm:<13} error {error:.3f}  {time.perf_counter() - start:.0f} s", flush=True)
    return scores, logged


def summarise(scores: dict) -> list[dict]:
    """One row per arm, memory and way of evaluation."""
    rows = []
    for (arm, source, how), per_seed in scores.items():
        row = {"arm": arm, "memory": source, "how": how}
        row |= {name: interval([each[name] for each in per_seed]) for name in ("error", "right_way")}
        if ("E0", "none", how) in scores:
            paired = zip(per_seed, scores["E0", "none", how], strict=True)
            row["error_minus_E0"] = interval([mine["error"] - base["error"] for mine, base in paired])
        rows.append(row)
    for how in ("offline", "rollout"):
        with_e0 = {(row["arm"], row["memory"]): row for row in rows if row["how"] == how and "error_minus_E0" in row}
        if ("E2", "pred") in with_e0:
            gained = with_e0["E2", "pred"]["error_minus_E0"]["mean"]
            for row in with_e0.values():
                row["kept"] = row["error_minus_E0"]["mean"] / gained
    return rows


def check_claims(rows: list[dict]) -> dict[str, bool]:
    """What the benchmark is to show, and whether it did; only claims whose arms were run."""
    found = {(row["arm"], row["memory"], row["how"]): row for row in rows}
    e0, e2 = (found.get(key) for key in (("E0", "none", "rollout"), ("E2", "pred", "rollout")))
    e1, oracle = found.get(("E1", "zero", "rollout")), found.get(("oracle", "oracle", "offline"))
    claims = {}
    if e0 and e2:
        claims["E2 has at most half of E0's error in rollouts"] = e2["error"]["high"] <= e0["error"]["low"] / 2
        for source in INTERVENTIONS:
            right = found["E2", source, "rollout"]["right_way"]
            claims[f"E2 with {source} memory goes the right way as often as E0, +- 0.1"] = (
                abs(right["mean"] - e0["right_way"]["mean"]) <= 0.1
            )
    if e0 and e1:
        claims["E1 is no better than E0: what helps is not capacity"] = e1["error_minus_E0"]["low"] > -0.1
    if e2 and oracle:
        claims["oracle bounds E2"] = oracle["error"]["high"] <= e2["error"]["low"]
    return {claim: bool(holds) for claim, holds in claims.items()}


def show(rows: list[dict], ideal: dict, probes: dict, logged: dict) -> None:
    """Print everything that goes into the record."""
    print("\nR^2 of the aim from latents:  " + "   ".join(f"{name} {value:.2f}" for name, value in probes.items()))
    head = f"\n{'arm':<14}{'memory':<14}{'':<9}{'error [95 %]':<22}{'right way [95 %]':<22}{'minus E0 [95 %]':<24}kept"
    print(head)
    for name, scored in ideal.items():
        error, right = interval([scored["error"]]), interval([scored["right_way"]])
        print(f"{'ideal':<14}{name:<23}{_text(error):<22}{_text(right):<22}")
    for row in rows:
        minus = _text(row["error_minus_E0"]) if "error_minus_E0" in row else ""
        kept = f"{row['kept']:.2f}" if "kept" in row else ""
        left = f"{row['arm']:<14}{row['memory']:<14}{row['how']:<9}"
        print(f"{left}{_text(row['error']):<22}{_text(row['right_way']):<22}{minus:<24}{kept}")
    print("\nlogged in the last 50 steps, mean over seeds")
    for arm, per_seed in logged.items():
        names = [
            name for name in per_seed[0] if name.startswith(("world_gate", "prophet_skill", "loss_action", "train"))
        ]
        values = {name: np.mean([each[name] for each in per_seed]) for name in names}
        print(f"  {arm:<14}" + "  ".join(f"{name} {value:.3f}" for name, value in values.items()))


def _text(value: dict) -> str:
    return f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    cli.add_argument("--fusion", nargs="+", choices=["f1", "f2", "f3a", "f3b"], default=["f1"])
    cli.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    cli.add_argument("--steps", type=int, default=1000)
    cli.add_argument("--batch_size", type=int, default=32)
    cli.add_argument("--lr", type=float, default=2e-3)
    cli.add_argument("--train_episodes", type=int, default=120)
    cli.add_argument("--test_episodes", type=int, default=40)
    cli.add_argument("--threads", type=int, default=1)
    cli.add_argument("--folder", type=Path, help="keep dataset and companion here, and use them again")
    cli.add_argument("--json", type=Path, help="also write the record here")
    args = cli.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args.folder or Path(folder), args)
        probes, ideal = probe(bench), references(bench)
        scores, logged = measure(bench)
    rows = summarise(scores)
    show(rows, ideal, probes, logged)
    claims = check_claims(rows)
    for claim, holds in claims.items():
        print(f"{'holds' if holds else 'FAILS':<7}{claim}")
    if args.json:
        record = {
            **provenance(),
            "settings": {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()},
            "n": {"test_episodes": len(bench.test), "frames_each": len(SCORED), "seeds": len(args.seeds)},
            "probe_r2": probes,
            "ideal": {name: {key: interval([v]) for key, v in scored.items()} for name, scored in ideal.items()},
            "claims": claims,
            "results": rows,
            "logged": logged,
        }
        args.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
