"""The record as a picture."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

from world_modality_core.io.files import writing  # noqa: E402


def draw(record: dict, path: Path) -> Path:
    """Draw ratios, the forecast's skill per step, and the open-loop rollout, as far as the record has them.

    Args:
        record: As of `interventions.json`.
        path: PNG file.

    Returns:
        The file.
    """
    predicted = "tokens" if record["tokens"] else "latents"
    panels = [(_ratios, record["sources"])]
    panels += [(_forecast, (predicted, record[predicted]))] if record[predicted] else []
    panels += [(_rollout, record["rollout"])] if record["rollout"] else []
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 4), squeeze=False, layout="constrained")
    for axis, (show, rows) in zip(axes[0], panels, strict=True):
        show(axis, rows)
    gate = "" if record["gate"] is None else f", |gate| {record['gate']:.3g}"
    figure.suptitle(f"{record['model']}: {record['frames']} frames of {record['episodes']} episodes{gate}")
    with writing(path) as aside:
        figure.savefig(aside, format="png", dpi=120)
    plt.close(figure)
    return path


def _ratios(axis: Axes, sources: dict[str, dict]) -> None:
    names = list(sources)[::-1]
    for place, name in enumerate(names):
        row = sources[name]
        if row["ratio_low"] is not None:
            axis.plot([row["ratio_low"], row["ratio_high"]], [place, place], color="tab:blue")
        axis.plot(row["ratio"], place, "o", color="tab:blue")
    axis.axvline(1, color="gray", linewidth=0.8)
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel("action error over that with its own memory")


def _forecast(axis: Axes, kind_rows: tuple[str, list[dict]]) -> None:
    kind, rows = kind_rows
    key = "value" if kind == "tokens" else "skill"
    steps = [row["step"] for row in rows]
    axis.plot(steps, [row[key] for row in rows], "o-")
    if all(row[f"{key}_low"] is not None for row in rows):
        axis.fill_between(steps, [row[f"{key}_low"] for row in rows], [row[f"{key}_high"] for row in rows], alpha=0.2)
    if kind == "tokens":
        axis.plot(steps, [row["copy"] for row in rows], "--", color="gray", label="current tokens")
        axis.legend()
    else:
        axis.axhline(0, color="gray", linewidth=0.8)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("future step")
    axis.set_ylabel("top-1 accuracy of world tokens" if kind == "tokens" else "skill over copying")


def _rollout(axis: Axes, rows: list[dict]) -> None:
    steps = [row["step"] for row in rows]
    axis.plot(steps, [row["value"] for row in rows], "o-", label="Prophet, open loop")
    axis.plot(steps, [row["copy"] for row in rows], "--", color="gray", label="current frame")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("future step")
    axis.set_ylabel("1 - cosine to the recorded latent")
    axis.legend()
