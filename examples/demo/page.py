"""Put a demo run into one HTML file that needs nothing else: no network, no scripts from elsewhere, no other file."""

from __future__ import annotations

import argparse
import itertools
import json
import os
from pathlib import Path

import av
import numpy as np
import pandas as pd

from page_data import PageData, Video
from results import Result, read_results
from stages import duration, read_stamp
from world_modality_core.studies.evidence.verdicts import Verdict
from world_modality_core.studies.report.charts import Chart, Line, line_chart
from world_modality_core.studies.report.film import Imagined, held_out_chart
from world_modality_core.studies.report.records import read_metrics
from world_modality_core.studies.report.templates import template_environment

STAGES = ["record", "precompute", "train", "eval", "train_blind", "eval_blind", "compare", "report"]
N_PICTURES = 6


def choose_videos(results: list[Result]) -> list[Video]:
    """The first success and the first failure of each task, as far as they were filmed."""
    videos = []
    for result in results:
        filmed = list(zip(result.videos, result.successes, strict=False))
        for wanted, word in ((True, "success"), (False, "failure")):
            path = next((path for path, success in filmed if success is wanted and path.exists()), None)
            if path is not None:
                videos.append(Video(f"{result.task}, {word}", path))
    return videos


def _curve(metrics: list[dict[str, float]], key: str, label: str) -> Line:
    points = [(m["step"], m[key]) for m in metrics if m.get(key) is not None]
    return Line(label, [x for x, _ in points], [y for _, y in points])


def draw_charts(metrics: list[dict[str, float]], imagined: Imagined | None) -> list[Chart]:
    """The page's charts; a chart without data is left out."""
    losses = [_curve(metrics, "loss_action", "action"), _curve(metrics, "loss_world", "world (1 − cosine)")]
    step = "training step"
    charts = [
        line_chart("Losses", losses, step, "loss", zero=True),
        line_chart("Gate of the memory", [_curve(metrics, "world_gate", "gate")], step, "tanh(gate)", reference=0.0),
    ]
    if imagined is not None:
        last = len(imagined.offsets)
        skill = [
            _curve(metrics, "prophet_skill_1", f"{imagined.offsets[0]} ahead"),
            _curve(metrics, f"prophet_skill_{last}", f"{imagined.offsets[-1]} ahead"),
        ]
        charts += [
            line_chart("Prophet's skill over copying the present, in training", skill, step, "skill", reference=0.0),
            held_out_chart(imagined),
        ]
    return [chart for chart in charts if chart is not None]


def read_demonstrations(root: Path) -> list[tuple[str, list[np.ndarray]]]:
    """Of the first recorded episode of each task, some pictures."""
    episodes = pd.concat(pd.read_parquet(path) for path in sorted((root / "meta" / "episodes").rglob("*.parquet")))
    info = json.loads((root / "meta" / "info.json").read_text())
    camera = next(name for name, feature in info["features"].items() if feature["dtype"] == "video")
    shown = []
    for episode in episodes[~episodes["tasks"].map(lambda tasks: tasks[0]).duplicated()].to_dict("records"):
        columns = (f"videos/{camera}/{each}" for each in ("chunk_index", "file_index", "from_timestamp"))
        chunk, file, first = (episode[column] for column in columns)
        path = root / info["video_path"].format(video_key=camera, chunk_index=chunk, file_index=file)
        first, last = round(first * info["fps"]), round(first * info["fps"]) + episode["length"] - 1
        wanted = {round(n) for n in np.linspace(first, last, N_PICTURES)}
        with av.open(str(path)) as container:
            decoded = itertools.islice(enumerate(container.decode(video=0)), last + 1)
            pictures = [frame.to_ndarray(format="rgb24") for n, frame in decoded if n in wanted]
        shown.append((episode["tasks"][0], pictures))
    return shown


def build_page(data: PageData) -> str:
    """The page as HTML."""
    charts = draw_charts(data.metrics, data.imagined)
    template = template_environment(Path(__file__).parent).get_template("page.html.jinja")
    return template.render(data=data, charts=charts, imagined=data.imagined)


def _time(stamp: dict) -> str:
    if not stamp:
        return "to come"
    return duration(stamp["seconds"]) if stamp["done"] else "runs now"


def collect(folder: Path, so_far: bool) -> PageData:
    """Read a demo run; once it is finished, let its policy foresee the episodes that training held out."""
    stamps = {name: read_stamp(folder, name) for name in STAGES}
    stages = [(name, stamp.get("what", ""), stamp.get("command", ""), _time(stamp)) for name, stamp in stamps.items()]
    done = {name for name, stamp in stamps.items() if stamp.get("done")}
    data = PageData(stages, is_done=not so_far)
    if "record" in done:
        data.demonstrations = read_demonstrations(folder / "dataset")
    if "train" in done:
        data.metrics = read_metrics(folder / "train_metrics.jsonl")
    if "eval" in done:
        data.results = read_results(folder / "eval")
        data.no_memory = read_results(folder / "eval", "gate_closed")
        data.videos = choose_videos(data.results)
    if "eval_blind" in done:
        data.blind = read_results(folder / "eval_blind")
    if "compare" in done:
        verdicts = json.loads((folder / "compare.json").read_text())["verdicts"]
        verdicts = [Verdict(**{name: value for name, value in each.items() if name != "p_holm"}) for each in verdicts]
        data.verdict = "; ".join(f"{verdict.model}: {verdict.statement}" for verdict in verdicts)
    if not so_far:
        from imagined import predict_latents  # brings torch and LeRobot, which the page itself does not need

        checkpoint = folder / "train" / "checkpoints" / "last" / "pretrained_model"
        device = json.loads((checkpoint / "config.json").read_text())["device"]
        data.imagined = predict_latents(checkpoint, folder / "dataset", "demo/metaworld", folder / "companion", device)
    return data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("outputs/demo"))
    parser.add_argument("--so_far", action="store_true", help="what there is of a run that goes on")
    given = parser.parse_args()
    page = build_page(collect(given.folder, given.so_far))
    aside = given.folder / "index.html.tmp"
    aside.write_text(page, encoding="utf-8")
    os.replace(aside, given.folder / "index.html")
    if not given.so_far:
        print(f"wrote {given.folder / 'index.html'} ({len(page) / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
