"""`wm-compare`: compare models and arms on the same scenes, and say whether a memory is used and needed.

wm-compare outputs/eval/A outputs/eval/F --baseline=A --candidates=F
wm-compare trials.csv --baseline=old    # of a real robot: columns policy, trial, success, and if there are: task, score
"""

from __future__ import annotations

import fnmatch
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

from world_modality_core.io.commands import run_command
from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import write_text
from world_modality_core.io.home import how_to_install
from world_modality_core.studies.evidence.wording import WORSE, DifferenceAnswer

REFUSED = 2
Cases = list[tuple[str, str, DifferenceAnswer]]
"""Of each comparison of models: the second, the first, and what may be said."""
SWITCHES = ("plan", "sequential", "common_scenes", "markdown", "brief", "best")


@dataclass
class CompareConfig:
    """Options of `wm-compare`."""

    # Folders of evaluations, studies or records, episodes.parquet files, CSV files of trials, or folders of
    # lerobot-eval; names that stand by themselves are taken as folders.
    folders: list[str] = field(default_factory=list)
    # Model that the candidates are compared with.
    baseline: str = ""
    # Models to judge, with commas between them; all but the baseline and the matched one if not given.
    candidates: str = ""
    # Arms to compare with intact, with commas between them; all if not given.
    arms: str = ""
    # Tasks to compare on, with commas between them, * for any letters; all if not given. Choose before you look.
    tasks: str = ""
    # Model with as many parameters, trained without memory: the control of "needed at test time".
    matched: str = ""
    # Level of each test; the intervals have level 1 - alpha.
    alpha: float = 0.05
    # Test arms so that you may look, and stop, at any time while episodes come in, until the --n pairs that are
    # planned.
    sequential: bool = False
    # Compare on the scenes and training seeds that both sides have, rather than refuse.
    common_scenes: bool = False
    # Difference of success rates, in (0, 1), below which two models count as equally good: also test "not worse" and
    # "as good".
    margin: float | None = None
    # By what an episode is better than another: success; time (success, then fewer steps to it); smoothness (success,
    # then less jerk); reward (their sum). All tests are then of how much more often the first did better.
    outcome: str = "success"
    # Write a JUnit file, one test case for each comparison.
    junit: str | None = None
    # Exit with 1 if a model is shown to be worse than what it was compared with: regressed.
    fail_if: str = ""
    # Say which of the candidates may be the best, those that no other one beats, and nothing else.
    best: bool = False
    # Print three lines.
    brief: bool = False
    # Also write all figures into this file.
    json: str | None = None
    # Print Markdown tables.
    markdown: bool = False
    # Also draw the paired differences into this file (.png or .svg).
    plot: str | None = None
    # Say how many episodes a difference needs, and stop. Folders, if given, are a pilot study. Only for this are the
    # options that follow:
    plan: bool = False
    # Difference of success rates to find, in (0, 1).
    difference: float = 0.1
    # Success rate of the baseline, in (0, 1). Without --discordance and a pilot the two models are taken to succeed
    # independently of each other.
    rate: float = 0.6
    # Share of pairs in which only one of the two succeeds, in (0, 1].
    discordance: float | None = None
    # Probability to find the difference if it is real.
    power: float = 0.8
    # Pairs (scenes x training seeds): also say which difference this many would find. With --sequential: the pairs that
    # are planned.
    n: int | None = None

    def validate(self) -> None:
        """Raises ConfigError naming the option."""
        if not self.folders and not self.plan:
            raise ConfigError("folders is empty: name folders that wm-eval wrote")
        if not 0 < self.alpha < 0.5:
            raise ConfigError(f"alpha={self.alpha}: expected a level between 0 and 0.5, such as 0.05")
        if self.outcome not in ("success", "time", "reward", "smoothness"):
            raise ConfigError(f"outcome={self.outcome!r}: expected success, time, reward or smoothness")
        if self.fail_if not in ("", "regressed"):
            raise ConfigError(f"fail_if={self.fail_if!r}: expected regressed, or leave it out")
        for name in ("fail_if", "junit"):
            if getattr(self, name) and not (self.baseline or self.matched):
                raise ConfigError(f"{name}={getattr(self, name)}: it is about models, so name one with --baseline")
        for mode in ("plan", "best"):
            if getattr(self, mode):
                self.leave_out(f"--{mode}", ("fail_if", "junit", "json", "plot", "margin", "sequential"))
        if self.margin is not None and not 0 < self.margin < 1:
            raise ConfigError(f"margin={self.margin}: expected a difference between 0 and 1, such as 0.1")
        if self.sequential and (self.n is None or self.n < 1):
            raise ConfigError(
                f"n={self.n}: --sequential spends its level over the pairs that are planned; name them with --n=N "
                "(wm-compare --plan says how many a difference needs)"
            )
        if self.plot and Path(self.plot).suffix not in (".png", ".svg"):
            raise ConfigError(f"plot={self.plot!r}: expected a file that ends in .png or .svg")
        if self.plot and find_spec("matplotlib") is None:
            raise ConfigError(f"plot={self.plot!r} needs matplotlib: {how_to_install('report')}")

    def leave_out(self, why: str, names: Sequence[str]) -> None:
        """Raises ConfigError naming the first of the options that was given."""
        given = [name for name in names if getattr(self, name) not in (CompareConfig.__dict__[name], "success")]
        if given:
            raise ConfigError(f"{given[0]}={getattr(self, given[0])} does nothing with {why}: leave it out")


def run(cfg: CompareConfig) -> int:
    """Compare, print, and write what was asked for; or plan.

    Returns:
        1 where `fail_if` says so, else 0.

    Raises:
        ConfigError: an option can't be used.
        EpisodesError: a folder can't be read.
        NotComparableError: episodes must not be compared.
    """
    cfg.validate()
    # pandas and scipy take longer to import than wrong options take to be refused.
    from world_modality_core.studies.evidence.best_of import best_of
    from world_modality_core.studies.evidence.compare import compare
    from world_modality_core.studies.evidence.compare_table import brief, format_report
    from world_modality_core.studies.evidence.plan_text import PlanOptions, make_plan
    from world_modality_core.studies.evidence.unpaired import compare_unpaired

    names = {
        "baseline": cfg.baseline,
        "candidates": _split(cfg.candidates),
        "arms": _split(cfg.arms),
        "matched": cfg.matched,
        "alpha": cfg.alpha,
        "common_scenes": cfg.common_scenes,
    }
    if lerobot_evals := _lerobot_evals(cfg):
        cfg.leave_out(
            "lerobot-eval's eval_info.json, in which nothing is paired",
            ("arms", "tasks", "matched", "sequential", "margin", "best", "outcome", "plot", "json"),
        )
        found, cost = compare_unpaired(lerobot_evals, cfg.baseline, names["candidates"], cfg.alpha)
        print("\n".join([*(answer.text for answer in found.values()), cost]))
        return _for_ci(cfg, [(cfg.baseline, label, answer) for label, answer in found.items()])
    if cfg.plan:
        pilot = compare(_read(cfg), **names) if cfg.folders else None
        wanted = PlanOptions(cfg.difference, cfg.rate, cfg.discordance, cfg.power, cfg.alpha, cfg.n)
        print(make_plan(wanted, pilot))
        return 0
    if cfg.best:
        print(best_of(_read(cfg), names["candidates"], cfg.alpha, cfg.common_scenes, cfg.outcome))
        return 0
    report = compare(
        _read(cfg), **names, n_planned=cfg.n if cfg.sequential else None, margin=cfg.margin, outcome=cfg.outcome
    )
    print(brief(report) if cfg.brief else format_report(report, cfg.markdown), end="")
    if cfg.json:
        output = Path(cfg.json).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, json.dumps({"options": asdict(cfg), **report.to_dict()}, indent=1) + "\n")
    if cfg.plot:
        # matplotlib is an extra.
        from world_modality_core.studies.evidence.compare_plot import save_plot

        save_plot(report, Path(cfg.plot).resolve())
    answers = zip(report.comparisons, report.answers, strict=True)
    return _for_ci(cfg, [(str(c.second), str(c.first), answer) for c, answer in answers if c.kind != "arm"])


def _for_ci(cfg: CompareConfig, cases: Cases) -> int:
    """Write the JUnit file if it was asked for, and give the exit code."""
    if cfg.junit:
        output = Path(cfg.junit).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, _junit(cases))
    return 1 if cfg.fail_if and any(answer.answer == WORSE for *_, answer in cases) else 0


def _read(cfg: CompareConfig):
    """Episodes of evaluations, or trials of a real robot."""
    from world_modality_core.studies.evidence.episode_records import has_episodes, read_episodes
    from world_modality_core.studies.evidence.trial_records import is_table_of_trials, read_trials

    if is_table_of_trials(cfg.folders):
        import pandas as pd

        trials = pd.concat([read_trials(Path(file)) for file in cfg.folders], ignore_index=True)
        return _of_tasks(trials, cfg.tasks)
    empty = [folder for folder in cfg.folders if not has_episodes([folder])]
    if empty and len(empty) < len(cfg.folders):
        raise ConfigError(f"folders: {empty[0]} has no episodes of wm-eval, the others have; give folders of one kind")
    return _of_tasks(read_episodes(cfg.folders), cfg.tasks)


def _of_tasks(episodes, tasks: str):
    """The episodes of some tasks."""
    patterns, known = _split(tasks), sorted(episodes["task"].unique())
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(task, pattern) for task in known):
            raise ConfigError(f"tasks={tasks!r}: no episode is of {pattern!r}; there are {', '.join(known)}")
    chosen = [task for task in known if not patterns or any(fnmatch.fnmatchcase(task, each) for each in patterns)]
    if len(chosen) < len(known):
        print(
            f"wm-compare: on {len(chosen)} of {len(known)} tasks; chosen after a look at the results, they make every "
            "p too small",
            file=sys.stderr,
        )
    return episodes[episodes["task"].isin(chosen)].reset_index(drop=True)


def _lerobot_evals(cfg: CompareConfig) -> list[Path]:
    """Files of lerobot-eval, where there is nothing of wm-eval."""
    from world_modality_core.studies.evidence.episode_records import has_episodes
    from world_modality_core.studies.evidence.unpaired import find_lerobot_evals

    return [] if cfg.plan or has_episodes(cfg.folders) else find_lerobot_evals(cfg.folders)


def _junit(cases: Cases) -> str:
    """A test case for each comparison of models; a failure where one is worse."""
    root = ElementTree.Element("testsuite", name="wm-compare", tests=str(len(cases)))
    root.set("failures", str(sum(answer.answer == WORSE for *_, answer in cases)))
    for second, first, answer in cases:
        case = ElementTree.SubElement(root, "testcase", classname=second, name=first)
        if answer.answer == WORSE:
            ElementTree.SubElement(case, "failure", message=answer.text)
        else:
            ElementTree.SubElement(case, "system-out").text = answer.text
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def folders_as_option(arguments: list[str]) -> list[str]:
    """Names become `--folders`: those before the first option, and those after a switch that takes none."""
    names, others, is_value = [], [], False
    for argument in arguments:
        if argument.startswith("-"):
            others.append(argument)
            is_value = "=" not in argument and argument.lstrip("-") not in SWITCHES
        elif is_value or argument.lower() in ("true", "false"):
            others.append(argument)
            is_value = False
        else:
            names.append(argument)
    return ([f"--folders={json.dumps(names)}"] if names else []) + others


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def main() -> int:
    """Console script `wm-compare`: exits with 2 if it refuses, with 1 if --fail_if says so."""
    arguments = folders_as_option(sys.argv[1:])
    return run_command("wm-compare", CompareConfig, run, arguments, remedy="begins anew", status=REFUSED)


if __name__ == "__main__":
    sys.exit(main())
