"""Plain `eval_info.json` of `lerobot-eval`: successes without scenes, so that nothing can be paired."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

from scipy import stats

from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import checked, read_json
from world_modality_core.studies.evidence.checkpoint import label_of
from world_modality_core.studies.evidence.plan import smallest_effect
from world_modality_core.studies.evidence.wilson import wilson_interval
from world_modality_core.studies.evidence.wording import TwoSides, answer_of, detectable, population

LEROBOT_INFO = "eval_info.json"
# A pilot's pairs of two policies in Meta-World: what pairing is worth is said for it.
_USUAL_DISCORDANCE = 0.3


def find_lerobot_evals(folders: Iterable[str | Path]) -> list[Path]:
    """The `eval_info.json` of each folder, searched through; files are taken as they are."""
    found = []
    for folder in map(Path, folders):
        found += [folder] if folder.name == LEROBOT_INFO else sorted(folder.rglob(LEROBOT_INFO))
    return found


def read_successes(file: Path) -> dict[str, list[bool]]:
    """Task -> success of each of its episodes, in the order in which `lerobot-eval` ran them.

    Raises:
        DamagedFileError: if `lerobot-eval` did not write the file.
    """
    tasks = {}
    for task in checked(list[dict[str, Any]], read_json(file, dict).get("per_task"), file):
        name = f"{task.get('task_group')}_{task.get('task_id')}"
        tasks[name] = checked(list[bool], (task.get("metrics") or {}).get("successes"), file)
    return tasks


def compare_unpaired(files: Sequence[Path], baseline: str, alpha: float) -> str:
    """Compare evaluations with a baseline, episode counts against episode counts.

    Fisher's exact test and Newcombe's interval of two independent proportions (1998, Statistics in Medicine 17:873-890,
    method 10).

    Args:
        files: What `find_lerobot_evals` found.
        baseline: Label of the evaluation that the others are compared with: its folder's name.
        alpha: Level of each test.

    Returns:
        A line each, and what it costs that nothing is paired.

    Raises:
        ConfigError: if there is no such evaluation, fewer than two, two by the same name, or other tasks.
    """
    labels = [label_of(file.parent) for file in files]
    if len(set(labels)) < len(labels) or len(labels) < 2:
        raise ConfigError(
            f"folders: found evaluations of lerobot-eval ({LEROBOT_INFO}) named {labels}; expected two or more, by "
            "different names. lerobot-eval pins no scenes, so nothing can be paired: wm-eval takes the same options"
        )
    if baseline not in labels:
        raise ConfigError(f"baseline={baseline!r}: name one of {', '.join(labels)}, the folders of lerobot-eval")
    read = dict(zip(labels, map(read_successes, files), strict=True))
    others = [label for label in labels if label != baseline]
    lines = []
    for label in others:
        if set(read[label]) != set(read[baseline]):
            raise ConfigError(f"{label} was evaluated in {sorted(read[label])}, {baseline} in {sorted(read[baseline])}")
        lines.append(_line(label, read[label], baseline, read[baseline], alpha, len(others)))
    return "\n".join([*lines, _cost(read[baseline], alpha)])


def _line(label: str, mine: dict, baseline: str, its: dict, alpha: float, family: int) -> str:
    first, second = ([success for task in tasks.values() for success in task] for tasks in (mine, its))
    (k1, n1), (k2, n2) = ((sum(side), len(side)) for side in (first, second))
    p = float(stats.fisher_exact([[k1, n1 - k1], [k2, n2 - k2]]).pvalue)
    (l1, u1), (l2, u2) = (wilson_interval(k, n, 1 - alpha) for k, n in ((k1, n1), (k2, n2)))
    difference = k1 / n1 - k2 / n2
    low = difference - sqrt((k1 / n1 - l1) ** 2 + (u2 - k2 / n2) ** 2)
    high = difference + sqrt((u1 - k1 / n1) ** 2 + (k2 / n2 - l2) ** 2)
    sides = TwoSides(
        first=f"{label} ({k1}/{n1})",
        second=f"{baseline} ({k2}/{n2})",
        difference=difference,
        low=max(low, -1.0),
        high=min(high, 1.0),
        is_ahead=difference > 0,
        p=p,
        p_holm=min(1.0, family * p),  # Bonferroni: Holm's first step
        population=f"{population(2, None, len(mine))}, unpaired",
        detectable=detectable(min(n1, n2), _unpaired_effect(min(n1, n2), (k1 + k2) / (n1 + n2), alpha)),
    )
    return answer_of(sides, alpha).text


def _unpaired_effect(n: int, rate: float, alpha: float, power: float = 0.8) -> float | None:
    """Smallest difference that n episodes of each side see, by the normal approximation."""
    effect = (stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power)) * sqrt(2 * rate * (1 - rate) / n)
    return float(effect) if 0 < effect <= 1 else None


def _cost(baseline: dict[str, list[bool]], alpha: float) -> str:
    n = sum(map(len, baseline.values()))
    unpaired, paired = _unpaired_effect(n, 0.5, alpha), smallest_effect(n, _USUAL_DISCORDANCE, 0.8, alpha)
    if unpaired is None or paired is None:
        gain = "too few episodes to see anything either way"
    else:
        gain = f"{n} episodes of each need about {100 * unpaired:.0f} points to show a difference, as many pairs of "
        gain += f"wm-eval about {100 * paired:.0f} (at a discordance of {100 * _USUAL_DISCORDANCE:.0f} %)"
    return f"Unpaired: lerobot-eval doesn't keep which scene an episode was of. {gain}."
