"""Parts of the page: charts, clips, filmstrips, media, records, and the command's messages."""

from __future__ import annotations

import json
import math
import re
import sys

import av
import numpy as np
import pandas as pd
import pytest

from tests.studies.report.synthetic import episode, make_imagined, write_eval, write_study
from world_modality_core.io.errors import ConfigError
from world_modality_core.studies.evidence.comparable import ModelArm
from world_modality_core.studies.report import film, media
from world_modality_core.studies.report.charts import HEIGHT, Line, line_chart, scale_around
from world_modality_core.studies.report.cli import main, make_parser, report
from world_modality_core.studies.report.clips import choose_clips
from world_modality_core.studies.report.records import read_metrics, read_records


def drawn_lines(svg: str) -> list[list[tuple[float, float]]]:
    """The points of each line, in the order of the series."""
    paths = re.findall(r'<path d="([^"]*)" style="fill: none; stroke: var\(--series-\d\)', svg)
    return [[(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path)] for path in paths]


def test_lines_are_drawn_where_their_values_are():
    chart = line_chart("t", [Line("a", [0, 5, 10], [0, 1, 2]), Line("b", [0, 10], [2, 0])], "x", "y")
    rising, falling = drawn_lines(chart.svg)
    assert rising[1] == pytest.approx(np.mean([rising[0], rising[2]], axis=0), abs=0.11)
    assert rising[0][1] > rising[2][1] + 100  # y runs down
    assert falling[0] == (rising[0][0], rising[2][1]) and falling[1] == (rising[2][0], rising[0][1])
    assert chart.legend == [("s1", "a"), ("s2", "b")]


def test_long_lines_are_thinned_to_their_ends():
    x = list(range(1001))
    (points,) = drawn_lines(line_chart("t", [Line("", x, [(v % 7) * 1.0 for v in x])], "x", "y").svg)
    assert len(points) == 80
    (ends,) = drawn_lines(line_chart("t", [Line("", [0, 1000], [0, 6])], "x", "y").svg)
    assert (points[0][0], points[-1][0]) == (ends[0][0], ends[1][0])


@pytest.mark.parametrize("y", [[1.0, 1.0], [0.0, 0.0], [-1e-9, 1e-9], [1e9, 2e9], [-1e30, 1e30]])
def test_any_range_can_be_drawn(y):
    (points,) = drawn_lines(line_chart("t", [Line("", [0.0, 1.0], y)], "x", "y").svg)
    assert len(points) == 2 and all(0 <= v <= HEIGHT for _, v in points)


def test_values_that_are_not_finite_are_left_out():
    (points,) = drawn_lines(line_chart("t", [Line("", [0, 1, 2], [1.0, math.nan, 3.0])], "x", "y").svg)
    assert len(points) == 2
    assert line_chart("t", [Line("", [0.0], [math.inf])], "x", "y") is None
    assert line_chart("t", [], "x", "y") is None


def test_labels_of_charts_are_escaped_and_stay_text():
    chart = line_chart("<b>", [Line("<i> $x", [0.0, 1.0], [0.0, 1.0])], "<u>$a_1$", "<s>")
    assert not re.search(r"<[bius]>", chart.svg) and ">&lt;u&gt;$a_1$</text>" in chart.svg
    assert 'aria-label="&lt;b&gt;: &lt;s&gt; over &lt;u&gt;$a_1$; last values: &lt;i&gt; $x 1"' in chart.svg


def test_charts_follow_the_page_and_can_stand_side_by_side():
    lines = [Line(str(i), [0.0, 1.0, 2.0], [0.0, 1.0, i], [0.0, 0.5, i - 1], [0.0, 1.5, i + 1]) for i in range(8)]
    charts = [line_chart(title, lines, "x", "y", reference=0.5) for title in ("one", "two")]
    for chart in charts:
        colors = set(re.findall(r"(?:fill|stroke): ([^;\"]*)", chart.svg))
        assert colors == {"none", "var(--quiet)", "var(--grid)", *(f"var(--series-{i})" for i in range(1, 9))}
        assert not re.search(r"<style|https?:|font", chart.svg)
    ids = [re.findall(r' id="([^"]*)"', chart.svg) for chart in charts]
    assert ids[0] and len({*ids[0], *ids[1]}) == len(ids[0]) + len(ids[1])
    assert line_chart("one", lines, "x", "y", reference=0.5) == charts[0]


def test_a_column_s_dots_share_a_scale_with_round_ticks():
    assert scale_around([-0.37]).ticks == pytest.approx((-0.4, -0.2, 0.0, 0.2, 0.4))
    assert scale_around([1.31, math.nan], center=1.0).ticks == pytest.approx((0.6, 0.8, 1.0, 1.2, 1.4))
    assert scale_around([]).ticks == pytest.approx((-0.1, -0.05, 0.0, 0.05, 0.1))
    scale = scale_around([-0.1, 0.2])
    assert [scale.percent(value) for value in (-0.1, 0.1, 0.2, 7.0)] == ["25.0%", "75.0%", "100.0%", "100.0%"]


# --- clips ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def filmed(tmp_path):
    """Ten scenes, two arms that differ in six of them, all filmed in 100 bytes each."""
    rows = []
    for arm in ("intact", "zero"):
        for seed in range(10):
            success = seed < 6 if arm == "intact" else seed in (0, 1, 6, 7)
            name = f"{arm}-{seed}.mp4"
            (tmp_path / name).write_bytes(b"0" * 100)
            rows.append(episode("F", 0, arm, "push", seed, success, video=name))
    folders = {("F", 0, arm): tmp_path for arm in ("intact", "zero")}
    return pd.DataFrame(rows), folders


SIDES = [(ModelArm("F", "intact"), ModelArm("F", "zero"))]


def test_clips_are_of_scenes_in_which_arms_disagree(filmed):
    pairs = choose_clips(filmed[0], SIDES, filmed[1], 12, 10**6)
    assert [pair.seed for pair in pairs] == [2, 6, 3, 7, 4, 5]  # those that either side won take turns
    for pair in pairs:
        first, second = pair.clips
        assert (first.outcome, second.outcome) in (("success", "failure"), ("failure", "success"))
        assert (first.path.stem, second.path.stem) == (f"intact-{pair.seed}", f"zero-{pair.seed}")


def test_no_rollout_is_shown_twice(filmed):
    episodes, folders = filmed
    again = episodes[episodes["arm"] == "zero"].assign(arm="random")
    pairs = choose_clips(
        pd.concat([episodes, again], ignore_index=True), [*SIDES, (SIDES[0][0], ModelArm("F", "random"))],
        {**folders, ("F", 0, "random"): folders["F", 0, "zero"]}, 12, 10**6,
    )  # fmt: skip
    paths = [clip.path for pair in pairs for clip in pair.clips]
    assert len(pairs) == 6 and len(set(paths)) == len(paths)
    assert {pair.clips[1].side for pair in pairs} == {"F, zero", "F, random"}


@pytest.mark.parametrize(("max_videos", "max_bytes", "n"), [(4, 10**6, 2), (5, 10**6, 2), (0, 10**6, 0), (12, 450, 2)])
def test_clips_are_limited_in_number_and_bytes(filmed, max_videos, max_bytes, n):
    assert len(choose_clips(filmed[0], SIDES, filmed[1], max_videos, max_bytes)) == n


def test_videos_that_are_gone_or_elsewhere_are_left_out(filmed, tmp_path):
    episodes, folders = filmed
    (tmp_path / "intact-2.mp4").unlink()
    outside = tmp_path.parent / "outside.mp4"
    outside.write_bytes(b"0")
    episodes.loc[episodes["seed"] == 3, "video"] = "../outside.mp4"
    assert sorted(pair.seed for pair in choose_clips(episodes, SIDES, folders, 12, 10**6)) == [4, 5, 6, 7]
    assert choose_clips(episodes, SIDES, {}, 12, 10**6) == []


# --- filmstrips and media ---------------------------------------------------------------------------------------------


@pytest.fixture
def imagined() -> film.Imagined:
    return make_imagined("push <b>")


def test_imagined_futures_are_written_read_and_shown(imagined, tmp_path):
    path = film.write_imagined(imagined, tmp_path / "imagined")
    read = film.read_imagined(path)
    assert (read.model, read.offsets, read.moments[0].task) == ("F", [4, 8], "push <b>")
    assert [step.found_where for step in read.moments[0].steps] == ["episode 1, frame 7", "episode 2, frame 7"]
    assert len({step.found for step in read.moments[0].steps} | {step.real for step in read.moments[0].steps}) == 4
    html = report(make_parser().parse_args([str(tmp_path), f"--output={tmp_path / 'r.html'}"])).read_text()
    assert html.count("<img") == 10 and "push &lt;b&gt;" in html and "cosine 0.85, copy 0.70" in html


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "gone.jpg"])
def test_a_record_names_pictures_of_its_own_folder_only(imagined, tmp_path, name):
    (tmp_path / "secret.jpg").write_bytes(b"0")
    path = film.write_imagined(imagined, tmp_path / "imagined")
    record = json.loads(path.read_text())
    record["moments"][0]["now"] = name
    path.write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="names the picture"):
        film.read_imagined(path)


def test_a_record_of_another_schema_is_refused(imagined, tmp_path):
    path = film.write_imagined(imagined, tmp_path / "imagined")
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(ConfigError, match="schema 2"):
        film.read_imagined(path)


def test_videos_of_other_codecs_are_converted(tmp_path):
    path = tmp_path / "old.mp4"
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for _ in range(6):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 255, (32, 48, 3), dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    converted = tmp_path / "new.mp4"
    converted.write_bytes(media.playable(path))
    with av.open(str(converted)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert len(list(container.decode(stream))) == 6
    assert media.playable(converted) == converted.read_bytes()  # is taken as it is


# --- records and messages ---------------------------------------------------------------------------------------------


def test_metrics_keep_the_last_of_repeated_steps_and_survive_a_cut_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 1, "loss_action": 3.0}, {"step": 2, "loss_action": 2.0}, {"step": 2, "loss_action": 1.0}]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 3, "lo')
    assert [m["loss_action"] for m in read_metrics(path)] == [3.0, 1.0]


def test_records_of_a_study_are_all_found(tmp_path):
    records = read_records([str(write_study(tmp_path, n_seeds=2, n_scenes=4))])
    assert len(records.episodes) == 2 * 6 * 3 * 4
    assert set(records.curves["model"]) == {"A_k4", "F_k4"} and set(records.curves["train_seed"]) == {0, 1}
    assert set(records.prophet_curves["model"]) == {"P"} and len(records.interventions) == 1
    # An evaluation that a job ran is not listed a second time.
    assert sorted(run.kind for run in records.runs) == ["eval"] * 4 + ["intervene", "prophet"] + ["train"] * 4


@pytest.mark.parametrize("name", ["interventions.json", "jobs.json"])
def test_records_of_another_schema_are_refused(tmp_path, name):
    (tmp_path / name).write_text('{"schema": 7, "jobs": []}')
    with pytest.raises(ConfigError, match=rf"{name} has schema 7, this version reads 1"):
        read_records([str(tmp_path)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is no folder"),
        (["{}", "--baseline=Z"], "baseline='Z' is no model of these episodes; they are of A"),
        (["{}", "--matched=Z"], "matched='Z' is no model"),
        (["{}", "--max_videos=-1"], "--max_videos=-1: expected at least 0"),
        (["{}", "--max_videos=-1"], "--max_videos=-1: expected at least 0"),
        (["{}/empty"], "nothing to report"),
    ],
)
def test_wrong_options_end_with_one_line_and_leave_no_page(tmp_path, monkeypatch, arguments, message):
    write_eval(tmp_path / "eval", "A", 0, {"intact": 0.5}, n_scenes=2)
    (tmp_path / "empty").mkdir()
    output = tmp_path / "r.html"
    arguments = [argument.replace("{}", str(tmp_path)) for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["wm-report", *arguments, f"--output={output}"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert str(stop.value).startswith("wm-report: ") and message in str(stop.value)
    assert "\n" not in str(stop.value) and not list(tmp_path.glob("r.html*"))


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("world_modality_core.studies.report.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(
        ConfigError,
        match=r"jinja2 is not installed: pip install 'lerobot_policy_world_modality\[report\] @ git\+https://",
    ):
        report(make_parser().parse_args([str(tmp_path)]))


def test_a_row_for_the_table_of_results(tmp_path, capsys):
    write_study(tmp_path / "study1", n_seeds=2, n_scenes=10)
    given = [str(tmp_path / "study1"), "--row", "--baseline=A_k4", "--title=Does it | help?"]
    assert report(make_parser().parse_args(given)) is None
    row = capsys.readouterr().out.strip()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert row.count("\n") == 0 and len(cells) == 6
    assert cells[:3] == ["study1", "Does it / help?", "360 episodes"]
    assert "F_k4: evidence that the memory is read" in cells[4] and "F_k4 against A_k4" in cells[3]


def test_comparisons_that_were_refused_are_told_where_nobody_looks_at_the_page(tmp_path, capsys):
    write_eval(tmp_path / "F0", "F", 0, {"intact": 0.8, "zero": 0.3})
    write_eval(tmp_path / "F1", "F", 1, {"intact": 0.8})
    folders = [str(tmp_path / "F0"), str(tmp_path / "F1")]
    report(make_parser().parse_args([*folders, "--row"]))
    row = capsys.readouterr().out
    assert "1 comparison refused: F/intact and F/zero" in row and "no other arm was run" not in row
    report(make_parser().parse_args([*folders, f"--output={tmp_path / 'page.html'}"]))
    assert "1 comparison refused, the page says why: F/intact and F/zero" in capsys.readouterr().out
