"""What `wm-prophet` does: open, split, train, and show what came out."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import torch

from world_modality_core.io.devices import check_device
from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import writing
from world_modality_core.prophet.data import CompanionFrames, default_source, open_companions
from world_modality_core.prophet.episode_split import Split, split_frames
from world_modality_core.prophet.training import ProphetTraining
from world_modality_core.prophet.training_options import ProphetTrainingConfig


def train_prophet(cfg: ProphetTrainingConfig) -> Path:
    """Train a Prophet, or finish the one that a killed run left.

    Returns:
        The Prophet's folder.

    Raises:
        ConfigError: before any work, if it cannot be done as asked for.
        UserError: if the loss isn't finite.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "wm-prophet runs as one process (a step takes milliseconds on a GPU); start it without launcher"
        )
    check_device(cfg.device)
    device = torch.device(cfg.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    companions = open_companions(cfg.companion_names)
    history = {"history_stride": cfg.history_stride} if cfg.n_obs_steps > 1 else {}
    companions[0].spec.check_strides(history | {"future_stride": cfg.future_stride})
    sources = None
    if cfg.reads_states:
        sources = cfg.source_names if cfg.sources else [default_source(companion) for companion in companions]
    frames = CompanionFrames(companions, sources)
    split = split_frames(frames, cfg)
    training = ProphetTraining(cfg, frames, split, device)
    print(_plan(cfg, training, split, sources))
    training.run()
    print(skill_table(training.curve[-1], cfg, len(split.held_out)))
    if cfg.plot:
        print(f"Curve      {plot_curve(training.curve, cfg)}")
    use = shlex.quote(f"--policy.prophet.init_from={cfg.output_dir}")
    print(f"Prophet: {cfg.output_dir}\n  use it with {use}")
    return Path(cfg.output_dir)


def _plan(cfg: ProphetTrainingConfig, training: ProphetTraining, split: Split, sources) -> str:
    spec, frames = training.frames.companions[0].spec, training.frames
    n_parameters = sum(p.numel() for p in training.model.prophet.parameters())
    inputs = ["latents"] + ["state"] * cfg.prophet.use_state + ["task"] * cfg.prophet.use_language
    counts = [
        f"{companion.root} ({len(learned)} episodes, {len(held)} held out)"
        for companion, learned, held in zip(frames.companions, split.episodes, split.held_out_episodes, strict=True)
    ]
    lines = [
        f"Companions {', '.join(counts)}",
        f"Frames     {len(split.training)} to learn from, {len(split.held_out)} to measure on",
        f"Tasks      {len(frames.tasks)}",
        f"Latents    {spec.family}, {spec.n_tokens} tokens x {spec.dim}",
        f"Prophet    {n_parameters / 1e6:.2f} M parameters, from {' + '.join(inputs)}: {cfg.n_obs_steps} frames every "
        f"{cfg.history_stride} -> {cfg.n_future_steps} frames every {cfg.future_stride}",
        f"Training   {cfg.steps} steps of {cfg.batch_size} frames on {training.device}"
        + (", targets shuffled within the task (control)" if cfg.targets == "shuffled" else ""),
    ]
    if sources:
        lines.append(f"States     from {', '.join(str(source) for source in sources)}")
    return "\n".join(lines)


def skill_table(line: dict[str, float], cfg: ProphetTrainingConfig, n_frames: int) -> str:
    """The last line of the curve for people: skill over copying the last latent, per future step."""
    if "prophet_skill" not in line:
        return f"Step {line['step']}: loss {line['loss']:.4f}; no skill, since eval_split=0 holds nothing out"
    steps = range(1, cfg.n_future_steps + 1)
    rows = [
        ["frames ahead", *(str(i * cfg.future_stride) for i in steps), "all"],
        ["skill", *(f"{line[f'prophet_skill_{i}']:+.3f}" for i in steps), f"{line['prophet_skill']:+.3f}"],
    ]
    table = "\n".join(f"{row[0]:<14}" + "".join(f"{cell:>8}" for cell in row[1:]) for row in rows)
    return (
        f"Step {line['step']}, {n_frames} held-out frames: cosine {line['prophet_cosine']:.3f}, of copying the last "
        f"latent {line['copy_cosine']:.3f}\n{table}\n(1 is perfect, 0 no better than copying the last latent)"
        + (
            f"\nRobot's states: skill {line['state_skill']:+.3f} over staying where it is"
            if "state_skill" in line
            else ""
        )
    )


def plot_curve(curve: list[dict[str, float]], cfg: ProphetTrainingConfig) -> Path:
    """Draw skill per future step over training into `curve.png`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for i in range(1, cfg.n_future_steps + 1):
        points = [(line["step"], line[f"prophet_skill_{i}"]) for line in curve if f"prophet_skill_{i}" in line]
        axes.plot(*zip(*points, strict=True), label=f"{i * cfg.future_stride} frames ahead") if points else None
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set_xlabel("step")
    axes.set_ylabel("skill over copying the last latent")
    axes.legend()
    path = Path(cfg.output_dir) / "curve.png"
    with writing(path) as aside:
        figure.savefig(aside, format="png", dpi=150)
    return path
