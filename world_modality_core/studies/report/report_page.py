"""Everything that the page shows, and the page."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from world_modality_core.io.quoting import quoted
from world_modality_core.monitor.judged_page import area_charts, film_strips
from world_modality_core.monitor.judgement import alarm_lines, judge
from world_modality_core.monitor.strips import Strip
from world_modality_core.studies.report.charts import RATE_SCALE, Chart
from world_modality_core.studies.report.clips import ClipPair, choose_clips
from world_modality_core.studies.report.curves import (
    AttentionRow,
    Skill,
    attention_charts,
    attention_rows,
    last_skills,
    prophet_charts,
    skill_charts,
    training_charts,
)
from world_modality_core.studies.report.film import Imagined, held_out_chart
from world_modality_core.studies.report.interventions import CorruptionTest, corruption_tests, intervention_skills
from world_modality_core.studies.report.paired_differences import (
    RULES,
    Compared,
    DifferenceGroup,
    Finding,
    count_answers,
    name_of,
    p_text,
    points,
)
from world_modality_core.studies.report.records import Records
from world_modality_core.studies.report.runs import Run, common_versions
from world_modality_core.studies.report.success import ModelSuccess, success_of
from world_modality_core.studies.report.templates import template_environment

N_OPEN = 3
"""Models whose details are open when the page is: more are folded."""
N_UNFOLDED = 30
"""Rows of a table, or parts of a section, that are not folded."""
N_FINDINGS = 12
"""Findings that are not folded."""
N_STRIPS = 8
"""Watched episodes whose film is shown."""
MAX_VIDEO_BYTES = 12_000_000
"""Of the files; base64 makes a third more of them."""


@dataclass(frozen=True)
class Page:
    """What the template reads; empty lists leave their section out."""

    title: str
    question: str
    note: str
    findings: list[Finding]
    success: list[ModelSuccess]
    groups: list[DifferenceGroup]
    refusals: list[str]
    n_left_out: int
    verdicts: list[Finding]
    clips: list[ClipPair]
    training: list[tuple[str, list[Chart]]]
    attention: list[AttentionRow]
    attention_charts: list[Chart]
    skills: list[Skill]
    skill_charts: list[Chart]
    interventions: list[CorruptionTest]
    alarms: list[tuple[str, list[str]]]
    alarm_charts: list[Chart]
    alarm_strips: list[Strip]
    imagined: list[tuple[Imagined, Chart | None]]
    runs: list[tuple[str, list[Run]]]
    versions: dict[str, list[tuple[str, int]]]
    alpha: float = 0.05
    n_open: int = N_OPEN
    n_findings: int = N_FINDINGS
    n_unfolded: int = N_UNFOLDED
    rules: str = RULES

    @property
    def sections(self) -> dict[str, str]:
        """Anchor -> heading, of the sections that the page has; "(negative)" where nothing was shown."""
        sections = {
            "found": ("What was found", True),
            "success": ("Success by model and arm", self.success),
            "differences": ("Paired differences" + _negative(self.findings_of_models), self.groups or self.refusals),
            "verdicts": ("Is the memory read, and does it help?" + _negative(self.verdicts), self.verdicts),
            "videos": ("Same scene, two outcomes", self.clips),
            "training": ("Training and gates", self.training),
            "attention": ("Attention over future steps", self.attention),
            "prophet": ("The Prophet's skill", self.skills),
            "interventions": ("Corrupted memories, offline", self.interventions),
            "alarms": ("Alarms of a monitor", self.alarms),
            "imagined": ("Imagined futures", self.imagined),
            "runs": ("What was typed, with which versions", self.runs),
        }
        return {anchor: title for anchor, (title, content) in sections.items() if content}

    @property
    def findings_of_models(self) -> list[Finding]:
        """Findings that compare models, which are not verdicts on a memory."""
        return [finding for finding in self.findings if finding not in self.verdicts]

    @property
    def n_refused(self) -> str:
        """How many comparisons were refused."""
        return f"{len(self.refusals)} comparison{'s' if len(self.refusals) != 1 else ''} refused"

    @property
    def counts(self) -> list[str]:
        """How many models had which answer."""
        return count_answers(self.findings)


def _negative(findings: Sequence[Finding]) -> str:
    """What a section's heading says where none of its findings is positive and one is negative."""
    kinds = {finding.kind for finding in findings}
    return " (negative)" if "not" in kinds and "shown" not in kinds else ""


def make_page(records: Records, compared: Compared, title: str, max_videos: int) -> Page:
    """Put together what the page shows.

    Args:
        records: What was read.
        compared: What the episodes say about each other.
        title: The page's heading.
        max_videos: At most so many rollouts; 0 for none.
    """
    episodes = records.episodes
    attention = attention_rows(episodes)
    interventions = corruption_tests(records.interventions)
    skills = [
        *last_skills(records.prophet_curves, "on held-out episodes (wm-prophet)"),
        *intervention_skills(interventions),
        *last_skills(records.curves, "at the end of the policy's training"),
    ]
    runs: dict[str, list[Run]] = {}
    for run in records.runs:
        runs.setdefault(run.kind, []).append(run)
    judged = _judged(records.watched)
    return Page(
        title=title,
        question=records.question,
        note=_note(records),
        findings=[*compared.findings, *compared.verdicts],
        success=success_of(episodes, compared.rates),
        groups=compared.groups,
        refusals=compared.refusals,
        n_left_out=compared.n_left_out,
        verdicts=compared.verdicts,
        clips=choose_clips(episodes, compared.sides, records.video_folders, max_videos, MAX_VIDEO_BYTES),
        training=[*training_charts(records.curves), *prophet_charts(records.prophet_curves)],
        attention=attention,
        attention_charts=attention_charts(attention),
        skills=skills,
        skill_charts=skill_charts(skills),
        interventions=interventions,
        alarms=[(model, alarm_lines(found)) for model, found in judged.items()],
        alarm_charts=area_charts(judged),
        alarm_strips=film_strips(records.watched, N_STRIPS) if max_videos and judged else [],
        imagined=[(imagined, held_out_chart(imagined)) for imagined in records.imagined],
        runs=sorted(runs.items()),
        versions=common_versions(records.runs),
    )


def _judged(watched: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """What a monitor's rows say, of each model and promise that has undisturbed episodes."""
    if watched.empty:
        return {}
    found = {}
    for (model, rate), rows in watched.groupby(["model", "false_alarm_rate"]):
        if (rows["disturbance"] == "").any():
            found[f"{model}, promised {rate:.1%}"] = judge(rows, float(rate))
    return found


def _note(records: Records) -> str:
    parts = []
    if len(episodes := records.episodes):
        counts = {
            "closed-loop episode": len(episodes),
            "model": episodes["model"].nunique(),
            "training run": len(episodes[["model", "train_seed"]].drop_duplicates()),
            "arm": episodes["arm"].nunique(),
            "task": episodes["task"].nunique(),
            "scene": len(episodes[["task", "seed"]].drop_duplicates()),
        }
        parts = [f"{n} {name}{'s' if n != 1 else ''}" for name, n in counts.items()]
    written = f"written by lerobot_policy_world_modality {version('lerobot_policy_world_modality')}"
    # Where it lies on this machine is nobody's business who reads the page.
    folders = [folder if not Path(folder).is_absolute() else Path(folder).name for folder in records.folders]
    return f"{', '.join([*parts, 'from ' + ', '.join(folders)])}; {written}."


def render(page: Page) -> Iterator[str]:
    """The page in pieces, so that it never has to be in memory as a whole."""
    environment = template_environment()
    environment.globals["RATE_SCALE"] = RATE_SCALE
    environment.filters |= {"points": points, "p_text": p_text, "name_of": name_of}
    environment.filters["decimals"] = lambda value: "" if value is None else f"{value:.3f}"
    environment.filters["sha256"] = lambda text: base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode()
    # Plain text of our own, not data.
    script = Markup(environment.get_template("page.js.jinja").render())
    # Names in records may hold what a browser would act upon, in the charts too.
    return map(quoted, environment.get_template("page.html.jinja").generate(page=page, script=script))


def markdown_row(page: Page, study: str, question: str, link: str) -> str:
    """One row of docs/RESULTS.md: study, question, n, result, verdict, link."""
    best = sorted((model for model in page.success if model.intact), key=lambda model: -model.intact.rate)
    result = "; ".join(f"{model.model} {model.intact.successes}/{model.intact.n}" for model in best)
    if page.findings_of_models:
        result += ". " + " ".join(f"{finding.title}: {finding.text}" for finding in page.findings_of_models)
    verdicts = [finding.title for finding in page.verdicts]
    if page.refusals:
        verdicts.append(f"{page.n_refused}: {page.refusals[0]}")
    verdict = "; ".join(verdicts) or "no other arm was run"
    n = sum(arm.rates[0].n for model in page.success for arm in model.arms)
    return _row([study, question, f"{n} episodes", result, verdict, f"[records]({link})"])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(' '.join(cell.replace('|', '/').split()) for cell in cells)} |"
