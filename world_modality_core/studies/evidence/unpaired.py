"""Plain `eval_info.json` of `lerobot-eval`: successes without scenes, so that nothing can be paired."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from math import sqrt
from pathlib import Path
from typing import Any

from scipy import stats

from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import checked, read_json
from world_modality_core.studies.evidence.checkpoint import label_of
from world_modality_core.studies.evidence.plan import smallest_effect
from world_modality_core.studies.evidence.wilson import wilson_interval
from world_modality_core.studies.evidence.wording import DifferenceAnswer, TwoSides, answer_of, detectable, population

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


def compare_unpaired(
    files: Sequence[Path], baseline: str, candidates: Sequence[str], alpha: float
) -> tuple[dict[str, DifferenceAnswer], str]:
    """Compare evaluations with a baseline, episode counts against episode counts.

    Fisher's exact test and Newcombe's interval of two independent proportions (1998, Statistics in Medicine 17:873-890,
    method 10).

    Args:
        files: What `find_lerobot_evals` found.
        baseline: Label of the evaluation that the others are compared with: its folder's name.
        candidates: Labels of the others; all if not given.
        alpha: Level of each test.

    Returns:
        Label -> what may be said, and what it costs that nothing is paired.

    Raises:
        ConfigError: if there is no such evaluation, fewer than two, two by the same name, one without episodes, other
            tasks, or tasks in other shares: what is harder would count more for one side.
    """
    labels = [label_of(file.parent) for file in files]
    if len(set(labels)) < len(labels) or len(labels) < 2:
        raise ConfigError(
            f"folders: found evaluations of lerobot-eval ({LEROBOT_INFO}) named {labels}; expected two or more, by "
            "different names. lerobot-eval pins no scenes, so nothing can be paired: wm-eval takes the same options"
        )
    others = list(candidates) or [label for label in labels if label != baseline]
    for name, values in (("baseline", [baseline]), ("candidates", others)):
        for value in values:
            if value not in labels or values.count(value) > 1:
                raise ConfigError(f"{name}={value!r}: name one of {', '.join(labels)}, the folders of lerobot-eval")
    read = dict(zip(labels, map(read_successes, files), strict=True))
    shares = {label: _shares(label, read[label]) for label in (baseline, *others)}
    for label in others:
        if shares[label] != shares[baseline]:
            raise ConfigError(
                f"{label} was evaluated in {_counts(read[label])}, {baseline} in {_counts(read[baseline])}: evaluate "
                "both in the same tasks, as often in each"
            )
    found = {label: _answer(label, read[label], baseline, read[baseline], alpha, len(others)) for label in others}
    return found, _cost(read[baseline], alpha)


def _shares(label: str, tasks: dict[str, list[bool]]) -> dict[str, Fraction]:
    n = sum(map(len, tasks.values()))
    if not n:
        raise ConfigError(f"{label} has no episodes: its evaluation stopped early")
    return {task: Fraction(len(of_task), n) for task, of_task in tasks.items()}


def _counts(tasks: dict[str, list[bool]]) -> str:
    return ", ".join(f"{task} ({len(of_task)} episodes)" for task, of_task in sorted(tasks.items()))


def _answer(label: str, mine: dict, baseline: str, its: dict, alpha: float, family: int) -> DifferenceAnswer:
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
    return answer_of(sides, alpha)


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
