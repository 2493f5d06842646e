"""`wm-compare`: compare models and arms on the same scenes, and say whether a memory is used and needed.

wm-compare outputs/eval/A outputs/eval/F --baseline=A_k4 --candidates=F_k4
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

from world_modality_core.io.commands import run_command
from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import write_text

REFUSED = 2


@dataclass
class CompareConfig:
    """Options of `wm-compare`."""

    # Folders of evaluations, studies or records, or episodes.parquet files; names before the first option are taken as
    # folders.
    folders: list[str] = field(default_factory=list)
    # Model that the candidates are compared with.
    baseline: str = ""
    # Models to judge, with commas between them; all but the baseline and the matched one if not given.
    candidates: str = ""
    # Arms to compare with intact, with commas between them; all if not given.
    arms: str = ""
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
            raise ConfigError(
                f"plot={self.plot!r} needs matplotlib: pip install 'lerobot_policy_world_modality[report]'"
            )


def run(cfg: CompareConfig) -> None:
    """Compare, print, and write what was asked for; or plan.

    Raises:
        ConfigError: an option can't be used.
        EpisodesError: a folder can't be read.
        NotComparableError: episodes must not be compared.
    """
    cfg.validate()
    # pandas and scipy take longer to import than wrong options take to be refused.
    from world_modality_core.studies.evidence.compare import compare
    from world_modality_core.studies.evidence.compare_table import brief, format_report
    from world_modality_core.studies.evidence.episode_records import read_episodes
    from world_modality_core.studies.evidence.plan_text import PlanOptions, make_plan

    names = {
        "baseline": cfg.baseline,
        "candidates": _split(cfg.candidates),
        "arms": _split(cfg.arms),
        "matched": cfg.matched,
        "alpha": cfg.alpha,
        "common_scenes": cfg.common_scenes,
    }
    if cfg.plan:
        pilot = compare(read_episodes(cfg.folders), **names) if cfg.folders else None
        wanted = PlanOptions(cfg.difference, cfg.rate, cfg.discordance, cfg.power, cfg.alpha, cfg.n)
        print(make_plan(wanted, pilot))
        return
    report = compare(
        read_episodes(cfg.folders), **names, n_planned=cfg.n if cfg.sequential else None, margin=cfg.margin
    )
    print(brief(report) if cfg.brief else format_report(report, cfg.markdown), end="")
    if cfg.json:
        Path(cfg.json).parent.mkdir(parents=True, exist_ok=True)
        write_text(cfg.json, json.dumps({"options": asdict(cfg), **report.to_dict()}, indent=1) + "\n")
    if cfg.plot:
        # matplotlib is an extra.
        from world_modality_core.studies.evidence.compare_plot import save_plot

        save_plot(report, Path(cfg.plot))


def folders_as_option(arguments: list[str]) -> list[str]:
    """Names before the first option become `--folders`."""
    n_names = next((i for i, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    names = arguments[:n_names]
    return ([f"--folders={json.dumps(names)}"] if names else []) + arguments[n_names:]


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def main() -> int:
    """Console script `wm-compare`: exits with 2 if it refuses."""
    arguments = folders_as_option(sys.argv[1:])
    return run_command("wm-compare", CompareConfig, run, arguments, remedy="begins anew", status=REFUSED)


if __name__ == "__main__":
    sys.exit(main())
