"""The page: its numbers are those of the records, it needs nothing else, and data can't become markup."""

from __future__ import annotations

import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from lerobot.utils.io_utils import write_video

from tests.studies.report.synthetic import TASKS, write_eval, write_study
from world_modality_core.studies.evidence.compare import compare
from world_modality_core.studies.evidence.episode_records import read_episodes
from world_modality_core.studies.matrix.expand import Job
from world_modality_core.studies.matrix.export import export
from world_modality_core.studies.matrix.study import Study
from world_modality_core.studies.report.cli import make_parser, report

EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">&<b>"


class Parsed(HTMLParser):
    """Tables with their rows, headings, tags, what they would load, and handlers in attributes."""

    def __init__(self, html: str):
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.headings: dict[str, str] = {}
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.handlers: list[str] = []
        self.ids: list[str] = []
        self._section, self._heading, self._in_cell = "", False, False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.loads += [
            values[name] for name in ("src", "href", "srcset", "data", "poster", "xlink:href") if name in values
        ]
        self.handlers += [name for name in values if name.startswith("on")]
        if tag == "section":
            self._section = values["id"]
        if tag == "h2":
            self._heading = True
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self._in_cell = True
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        self._heading &= tag not in ("h2", "a")
        self._in_cell &= tag not in ("td", "th")

    def handle_data(self, data):
        if self._heading:
            self.headings[self._section] = (
                (self.headings.get(self._section, "") + data).strip().removesuffix("#").strip()
            )
        if self._in_cell:
            self.tables[-1][-1][-1] += data

    def rows(self, first_head: str) -> list[list[str]]:
        """Rows of all tables whose first column has that head."""
        return [row for table in self.tables if table[0][0] == first_head for row in table[1:]]


def write(folder: Path, output: Path, *options: str) -> str:
    return report(make_parser().parse_args([str(folder), f"--output={output}", *options])).read_text()


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    rng = np.random.default_rng(0)
    write_video(path, [rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(4)], 10)
    return path.read_bytes()


@pytest.fixture(scope="module")
def study(tmp_path_factory, video) -> Path:
    return write_study(tmp_path_factory.mktemp("study") / "study", n_seeds=3, video=video)


@pytest.fixture(scope="module")
def html(study, tmp_path_factory) -> str:
    return write(study, tmp_path_factory.mktemp("page") / "r.html", "--baseline=A_k4", "--max_videos=6")


def said(successes) -> str:
    return f"{successes.sum()} of {len(successes)}"


def counts_in(cell: str) -> str:
    return re.search(r"\d+ of \d+", cell)[0]


def test_successes_are_those_of_the_records(study, html):
    episodes, page = read_episodes(study), Parsed(html)
    intact = episodes[episodes["arm"] == "intact"].groupby("model")["success"]
    summary = {row[0]: row[2:] for row in page.rows("model, as trained")}
    assert len(summary) == 2
    for model, successes in intact:
        success, description = summary[model]
        assert success.startswith(f"{100 * successes.mean():.0f} % ") and success.endswith(said(successes))
        assert description == "policy type: world_F"
    for model, successes in intact:
        dot = re.search(rf'aria-label="{model}, intact: {successes.sum()} of .*?<circle cx="([\d.]+)%', html, re.S)
        assert float(dot[1]) == pytest.approx(100 * successes.mean(), abs=0.05)
    shown = {(row[0], counts_in(row[2])) for row in page.rows("arm")}
    counts = {(arm, said(s)) for (_, arm), s in episodes.groupby(["model", "arm"])["success"]}
    assert shown == counts and len(counts) == 6
    per_task = {(row[0], row[1], counts_in(row[3])) for row in page.rows("task")}
    wanted = episodes.groupby(["model", "task", "arm"])["success"]
    assert per_task == {(task, arm, said(s)) for (_, task, arm), s in wanted}
    assert {row[0] for row in page.rows("tier")} == {"easy", "hard"}


def test_training_seeds_are_told_apart(study, html):
    episodes = read_episodes(study)
    rows = episodes[(episodes["model"] == "F_k4") & (episodes["arm"] == "zero")]
    rates = rows.groupby("train_seed")["success"].mean()
    text = ", ".join(f"{100 * rate:.0f}" for rate in rates)
    assert [row[3] for row in Parsed(html).rows("arm") if row[0] == "zero"] == [text] and len(rates) == 3


def test_differences_are_those_of_compare(study, html):
    found = compare(read_episodes(study), baseline="A_k4")
    tables = [table for table in Parsed(html).tables if table[0][-1] == "p, Holm's p"]
    rows = {row[0]: row[2:] for table in tables for row in table[1:]}
    for c in found.comparisons:
        result, counts, p = c.parts[0].result, c.parts[0].counts, c.evidence.p
        points, pairs, p_values = rows[f"F_k4: intact − {c.second.arm}" if c.kind == "arm" else "F_k4 − A_k4"]
        wanted = f"{100 * result.difference:+.1f} {100 * result.low:+.1f} to {100 * result.high:+.1f}"
        if c.runs:
            wanted += f" {100 * c.runs.low:+.1f} to {100 * c.runs.high:+.1f} across training seeds"
        assert points == wanted
        assert pairs == f"{counts.n} {counts.wins} won, {counts.losses} lost"
        assert p_values.startswith("< 0.0001 " if p < 1e-4 else f"{p:.2g} ")
    assert len(found.comparisons) == 5


def test_the_summary_says_the_verdicts_in_words(study, html):
    found = compare(read_episodes(study), baseline="A_k4")
    text = unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", html)))
    for verdict in found.verdicts:
        assert f"{verdict.model}: {verdict.statement}" in text
        assert all(reason in text for reason in verdict.reasons)
    assert "F_k4: evidence that the memory is read" in text and "F_k4 against A_k4: higher success" in text
    headings = Parsed(html).headings
    assert headings["differences"] == "Paired differences" and "negative" not in headings["verdicts"]


def test_a_negative_result_says_so_in_the_heading(tmp_path):
    same = {arm: 0.5 for arm in ("intact", "shuffle_within_task", "copy_current", "gate_closed")}
    for seed in (0, 1):
        write_eval(tmp_path / f"A{seed}", "A", seed, {"intact": 0.5})
        write_eval(tmp_path / f"F{seed}", "F", seed, same, gate=0.2)
    headings = Parsed(write(tmp_path, tmp_path / "r.html", "--baseline=A")).headings
    assert headings["differences"] == "Paired differences (negative)"
    assert headings["verdicts"].endswith("(negative)")
    text = (tmp_path / "r.html").read_text()
    assert "F: no evidence that the memory is read (negative)" in text and "points or more to be detected" in text


def test_without_a_baseline_the_first_card_says_what_the_page_can_not_tell(tmp_path):
    arms = {"intact": 0.9, "shuffle_within_task": 0.3, "copy_current": 0.3}
    for seed in (0, 1):
        write_eval(tmp_path / f"A{seed}", "A", seed, {"intact": 0.5})
        write_eval(tmp_path / f"F{seed}", "F", seed, arms, gate=0.2)
    text = write(tmp_path, tmp_path / "r.html")
    first = re.search(r'<ul class="findings">\s*<li class="(\w+)"[^>]*><strong>([^<]*)', text)
    assert first[1] == "open" and unescape(first[2]) == "All models: does the memory help: this page can't tell"
    # The study's own file may name the controls, those that were evaluated.
    (tmp_path / "study.yaml").write_text("# Does it?\nbaseline: A\nmatched: A_wide\n")
    text = write(tmp_path, tmp_path / "r.html")
    assert "can&#39;t tell" not in text and "F against A" in text
    assert str(tmp_path) not in text


def test_every_section_is_there_with_an_anchor(html):
    page = Parsed(html)
    anchors = ["found", "success", "differences", "verdicts", "videos", "training", "attention", "prophet",
               "interventions", "runs"]  # fmt: skip
    assert list(page.headings) == anchors
    links = {load for load in page.loads if load.startswith("#")}
    assert {f"#{anchor}" for anchor in anchors} <= links
    assert {link[1:] for link in links} <= set(page.ids) and len(set(page.ids)) == len(page.ids)
    for text in ("lerobot-train --policy.type=world_F", "0123abc", "2.11.0", "12 min 34 s", "reading of zero", "P"):
        assert text in html, text
    assert "Attention over 4 future steps" in html and "Gate of the memory" in html


def test_the_page_needs_nothing_else(html):
    page = Parsed(html)
    assert page.tags.count("script") == 1 and not set(page.tags) & {"iframe", "object", "embed"}
    assert page.tags.count("video") == 6
    assert page.loads and all(load.startswith(("data:", "#")) for load in page.loads)
    assert not re.search(r"url\((?!#)|@import|fetch\(|https?:", html)


def test_data_can_not_become_markup(tmp_path, video):
    study = write_study(tmp_path / "study", n_seeds=2, n_scenes=6, evil=EVIL, video=video)
    html = write(study, tmp_path / "r.html", f"--baseline=A_k4{EVIL}", f"--title={EVIL}")
    page = Parsed(html)
    assert page.tags.count("script") == 1 and not set(page.tags) & {"img", "b", "iframe", "object"}
    assert not page.handlers
    assert EVIL not in html and html.count("&lt;/script&gt;") > 30
    assert page.tags.count("video") > 0


def test_what_can_not_be_compared_is_named_and_the_rest_is_shown(tmp_path):
    write_eval(tmp_path / "A", "A", 0, {"intact": 0.5})
    write_eval(tmp_path / "F", "F", 0, {"intact": 0.8, "zero": 0.3})
    write_eval(tmp_path / "G", "G", 0, {"intact": 0.8}, tasks=TASKS[:2])
    html = write(tmp_path, tmp_path / "r.html", "--baseline=A")
    assert "1 comparison refused" in html and "G/intact and A/intact can&#39;t be compared" in html
    names = {row[0] for row in Parsed(html).rows("first − second")}
    assert {"F − A", "F: intact − zero"} <= names and "G − A" not in names
    common = write(tmp_path, tmp_path / "c.html", "--baseline=A", "--common_scenes")
    assert "refused" not in common and "G − A" in {row[0] for row in Parsed(common).rows("first − second")}


def test_an_exported_study_gives_the_same_page(study, html, tmp_path):
    """`wm-matrix --export` writes other files than a study has; the videos and nothing else are lost."""
    entries = {"study": "s", "root": str(study), "seeds": [0, 1, 2], "models": {"A_k4": {}, "F_k4": {}}}
    source = tmp_path / "s.yaml"
    source.write_text("# Is the memory\n# used?\nstudy: s\n")
    records = [json.loads(path.read_text()) for path in sorted(study.glob("*/job.json"))]
    jobs = [
        Job(r["name"], r["kind"], r["model"], r["train_seed"], tuple(r["command"]), study / r["name"]) for r in records
    ]
    export(Study.model_validate(entries), jobs, source, tmp_path / "s", {})
    exported, page = Parsed(write(tmp_path / "s", tmp_path / "r.html", "--baseline=A_k4")), Parsed(html)
    assert exported.tables == page.tables and len(page.tables) > 10
    assert exported.tags.count("path") == page.tags.count("path") > 50
    assert {**page.headings, "videos": ""} == {**exported.headings, "videos": ""} and "videos" in page.headings
    text = (tmp_path / "r.html").read_text()
    assert "Is the memory used?" in text and text.count("<pre>") == html.count("<pre>") == len(jobs)


def test_videos_can_be_left_out(study, tmp_path):
    assert "<video" not in write(study, tmp_path / "r.html", "--baseline=A_k4", "--no_videos")


def test_a_single_evaluation_is_enough(tmp_path):
    write_eval(tmp_path / "eval", "A", 0, {"intact": 0.5}, n_scenes=4)
    page = Parsed(write(tmp_path / "eval", tmp_path / "r.html"))
    assert list(page.headings) == ["found", "success", "runs"]


def test_prophets_and_interventions_without_episodes(study, tmp_path):
    page = write(study / "prophet-P", tmp_path / "r.html")
    assert list(Parsed(page).headings) == ["found", "training", "prophet", "runs"]
    assert "nothing can be said about success" in page
    page = write(study / "intervene-F_k4-0", tmp_path / "i.html")
    assert list(Parsed(page).headings) == ["found", "prophet", "interventions", "runs"]


def test_skill_and_ratios_are_those_of_the_records(html):
    page = Parsed(html)
    assert ["P", "on held-out episodes (wm-prophet)", "0.150 0.300 0.450 0.600"] in page.rows("whose")
    ratios = {row[0]: row[2] for row in page.rows("memory")}
    assert ratios["zero"] == "1.310 1.280 to 1.340" and ratios["oracle"] == "0.930 0.900 to 0.960"
