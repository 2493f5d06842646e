"""How the benchmarks print and store what they measured."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import numpy as np
import torch


def report(title: str, measured: dict[str, list[float]], ratio: list[float], target: str, settings: dict) -> None:
    """Print median and spread (min, max) of each quantity and of the ratio; write them to `settings["json"]` if set.

    Args:
        title: What is compared.
        measured: Quantity with its unit -> one value per repeat.
        ratio: One ratio per repeat.
        target: The figure to reach, as text.
        settings: The command's arguments.
    """
    rows = {name: _summary(values) for name, values in {**measured, "ratio": ratio}.items()}
    print(f"\n{title}  (target {target})")
    print(f"  {'':<34}{'n':>5}{'median':>12}{'min':>12}{'max':>12}")
    for name, row in rows.items():
        print(f"  {name:<34}{row['n']:>5}{row['median']:>12.4g}{row['min']:>12.4g}{row['max']:>12.4g}")
    path = settings.pop("json", None)
    if path is not None:
        record = {
            "title": title,
            "target": target,
            "settings": {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()},
            "figures": rows,
            "machine": {"cpu": platform.processor() or platform.machine(), "torch_threads": torch.get_num_threads()},
        }
        path.write_text(json.dumps(record, indent=2))


def _summary(values: list[float]) -> dict:
    return {"n": len(values), "median": float(np.median(values)), "min": min(values), "max": max(values)}
