"""Records as the commands write them, of episodes that nobody ran."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from world_modality_core.studies.evidence.episode_records import TRAINING_COLUMNS, EpisodeWriter, write_eval_info
from world_modality_core.studies.report.film import Imagined, ImaginedMoment, ImaginedStep

TASKS = ("push-v3", "reach-v3", "peg-insert-side-v3")
VERSIONS = {"lerobot": "0.6.1", "torch": "2.11.0", "python": "3.12.0"}


def episode(model: str, train_seed: int, arm: str, task: str, seed: int, success: bool, **changes) -> dict:
    """A row of `episodes.parquet`."""
    row = {
        "model": model, "train_seed": train_seed, "arm": arm, "checkpoint": f"hash-{model}-{train_seed}",
        "policy_type": "world_F", "env": "metaworld_light", "task": task, "group": task, "tier": "", "seed": seed,
        "init_hash": f"{task}-{seed}", "success": success, "steps": 40 + seed % 50 if success else 250,
        "sum_reward": 1.0, "max_reward": 1.0, "wall_s": 0.5, "gate": None, "attention_entropy": None,
        "attention_mass": None, "n_plans": 10, "n_action_steps": 4, "renderer": "egl: llvmpipe", "image_height": 128,
        "image_width": 128, "episode_length": 250, "env_hash": "e", "video": None,
        **dict.fromkeys(TRAINING_COLUMNS),
    }  # fmt: skip
    assert set(changes) <= set(row)
    return row | changes


def write_eval(
    folder: Path,
    model: str,
    train_seed: int,
    rates: Mapping[str, float],
    tasks: Sequence[str] = TASKS,
    n_scenes: int = 20,
    gate: float | None = None,
    k: int = 4,
    tiers: Mapping[str, str] | None = None,
    seed: int = 0,
    video: bytes | None = None,
    **info,
) -> Path:
    """An evaluation's folder, with the very same scenes and difficulties whatever the model.

    Args:
        folder: To write.
        model, train_seed: What was evaluated.
        rates: Arm -> rate of success.
        tasks: Their names.
        n_scenes: Of each task.
        gate: Of the memory; None for a model without one.
        k: Future steps of the attention, where there is a gate.
        tiers: Task -> tier.
        seed: Of the outcomes' own chance.
        video: Content of every episode's video; None for none.
        info: Further or other fields of eval.json.
    """
    command = ["wm-eval", f"--policy.path=outputs/{model}", f"--model={model}"]
    write_eval_info(folder, {
        "model": model, "train_seed": train_seed, "policy_type": "world_F", "checkpoint": f"outputs/{model}",
        "checkpoint_hash": f"hash-{model}-{train_seed}", "arms": list(rates), "env": {"type": "metaworld_light"},
        "n_action_steps": 4, "renderer": "egl: llvmpipe", "image": [128, 128], "versions": VERSIONS,
        "commit": "0123abc", "command": command, "started_at": "2025-01-02T03:04:05", "machine": "2 cores",
    } | info)  # fmt: skip
    writer = EpisodeWriter(folder)
    chance = np.random.default_rng([seed, train_seed, *map(ord, model)])
    for arm, rate in rates.items():
        for i, task in enumerate(tasks):
            difficulty = np.random.default_rng(i).random(n_scenes)
            rows = []
            for scene in range(n_scenes):
                success = bool(0.7 * difficulty[scene] + 0.3 * chance.random() < rate)
                seen = {}
                if gate is not None:
                    mass = np.linspace(1, 2, k) / np.linspace(1, 2, k).sum()
                    seen = {"gate": gate, "attention_entropy": 0.9, "attention_mass": mass.tolist()}
                if video is not None:
                    seen["video"] = f"videos/{arm}-{i}-{scene}.mp4"
                    (folder / "videos").mkdir(exist_ok=True)
                    (folder / seen["video"]).write_bytes(video)
                tier = (tiers or {}).get(task, "")
                rows.append(episode(model, train_seed, arm, task, 100_000 + scene, success, tier=tier, **seen))
            writer.write(rows)
    writer.finish()
    return folder


def write_training(path: Path, gate: float = 0.1, n: int = 40, k: int = 4, seed: int = 0) -> None:
    """A metrics file."""
    rng = np.random.default_rng(seed)
    lines = []
    for step in range(50, 50 * n + 1, 50):
        noise = 1 + 0.05 * rng.standard_normal()
        values = {
            "loss_action": 30 / (step + 50) * noise,
            "loss_world": 0.4 + 10 / step,
            "world_gate": gate * step / (50 * n),
        }
        values |= {"prophet_skill": 0.3 * step / (50 * n)} | {f"prophet_skill_{i + 1}": 0.1 * (i + 1) for i in range(k)}
        lines.append(json.dumps({"step": step} | values))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def write_job(folder: Path, kind: str, model: str, train_seed: int | None, command: Sequence[str], **changes) -> None:
    """A job's record."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "name": folder.name, "kind": kind, "model": model, "train_seed": train_seed, "command": list(command),
        "state": "done", "seconds": 754.0, "started_at": "2025-01-02T03:04:05+00:00", "commit": "0123abc",
        "versions": VERSIONS, "threads": 1,
    } | changes  # fmt: skip
    (folder / "job.json").write_text(json.dumps(record))


def write_intervention(path: Path, model: str, train_seed: int, **changes) -> None:
    """A record of wm-intervene."""
    rows = {"pred": 1.0, "oracle": 0.93, "zero": 1.31, "shuffle": 1.4, "copy_current": 1.02}
    record = {
        "schema": 1, "checkpoint": "c", "checkpoint_hash": "h", "model": model, "train_seed": train_seed,
        "dataset": "me/push", "episodes": 6, "frames": 480, "gate_note": None,
        "sources": {
            source: {"error": 0.05 * ratio, "ratio": ratio, "ratio_low": ratio - 0.03, "ratio_high": ratio + 0.03,
                     "chunk_change": abs(ratio - 1), "reading": f"reading of {source}"}
            for source, ratio in rows.items()
        },
        "token_accuracy": None, "skill": [0.1, 0.2, 0.25, 0.3],
        "rollout_error": [{"step": i, "prophet": 0.1 * i, "copy": 0.15 * i} for i in range(1, 9)],
    } | changes  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def write_study(root: Path, n_seeds: int = 2, n_scenes: int = 20, evil: str = "", video: bytes | None = None) -> Path:
    """A study's folder: A and F, F with arms and a Prophet; `evil` is put wherever data may hold text."""
    arms = {"intact": 0.75, "shuffle_within_task": 0.45, "copy_current": 0.5, "gate_closed": 0.5, "zero": 0.4}
    tasks = [*TASKS[:2], evil or TASKS[2]]
    for train_seed in range(n_seeds):
        for model, rates, gate in (("A_k4" + evil, {"intact": 0.5}, None), ("F_k4" + evil, arms, -0.12)):
            name = f"{model.removesuffix(evil)}-{train_seed}"
            train, evaluation = root / f"train-{name}", root / f"eval-{name}"
            write_job(
                train, "train", model, train_seed, ["lerobot-train", "--policy.type=world_F", f"--job_name={evil}"]
            )
            write_training(train / "metrics.jsonl", gate=gate or 0.0, seed=train_seed)
            write_job(evaluation, "eval", model, train_seed, ["wm-eval", f"--model={model}"])
            tiers = {tasks[0]: "easy", tasks[1]: "easy", tasks[2]: "hard" + evil}
            options = {
                "tasks": tasks,
                "n_scenes": n_scenes,
                "gate": gate,
                "tiers": tiers,
                "renderer": "egl" + evil,
                "video": video,
            }
            write_eval(evaluation / "eval", model, train_seed, rates, **options)
    write_intervention(
        root / "intervene-F_k4-0" / "intervene" / "interventions.json", "F_k4" + evil, 0, dataset="me/push" + evil
    )
    write_job(root / "intervene-F_k4-0", "intervene", "F_k4" + evil, 0, ["wm-intervene", "--n_frames=80"])
    prophet = root / "prophet-P" / "prophet"
    write_job(prophet.parent, "prophet", "P" + evil, None, ["wm-prophet", "--seed=1"])
    prophet.mkdir()
    (prophet / "config.json").write_text(json.dumps({"type": "prophet", "n_future_steps": 4}))
    curve = [
        {"step": step, "loss": 0.5, "prophet_skill": 0.2, **{f"prophet_skill_{i}": step / 1e4 * i for i in range(1, 5)}}
        for step in (500, 1000, 1500)
    ]
    (prophet / "curve.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curve))
    return root


def make_imagined(task: str = "push", n_steps: int = 2, size_px: int = 8, seed: int = 0) -> Imagined:
    """Two moments, of which the second has the task "reach", with pictures of noise."""
    rng = np.random.default_rng(seed)

    def picture() -> np.ndarray:
        return rng.integers(0, 255, (size_px, size_px, 3), dtype=np.uint8)

    steps = [
        ImaginedStep(
            offset=4 * k, found=picture(), found_where=f"episode {k}, frame 7", real=picture(), cosine=0.9 - 0.05 * k,
            copy_cosine=0.8 - 0.1 * k,
        )
        for k in range(1, n_steps + 1)
    ]  # fmt: skip
    moments = [ImaginedMoment(task=name, episode=3, frame=21, now=picture(), steps=steps) for name in (task, "reach")]
    return Imagined(
        moments=moments, offsets=[step.offset for step in steps], cosine=[step.cosine for step in steps],
        copy_cosine=[step.copy_cosine for step in steps], n_frames=480, n_episodes=6, n_searched=8400, fps=80.0,
        model="F",
    )  # fmt: skip
