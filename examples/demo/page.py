"""Put a demo run into one HTML file that needs nothing else: no network, no scripts from elsewhere, no other file."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from page_data import PageData, Video
from results import Result, read_results
from stages import duration, read_stamp
from world_modality_core.studies.report.charts import Chart, Line, line_chart
from world_modality_core.studies.report.film import Imagined, held_out_chart
from world_modality_core.studies.report.records import read_metrics
from world_modality_core.studies.report.templates import template_environment

STAGES = ["record", "precompute", "train", "eval", "train_blind", "eval_blind"]


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


def draw_charts(metrics: list[dict[str, float]], imagined: Imagined) -> list[Chart]:
    """The page's charts; a chart without data is left out."""
    last = len(imagined.offsets)
    skill = [
        _curve(metrics, "prophet_skill_1", f"{imagined.offsets[0]} ahead"),
        _curve(metrics, f"prophet_skill_{last}", f"{imagined.offsets[-1]} ahead"),
    ]
    losses = [_curve(metrics, "loss_action", "action"), _curve(metrics, "loss_world", "world (1 − cosine)")]
    step = "training step"
    charts = [
        line_chart("Losses", losses, step, "loss", zero=True),
        line_chart("Gate of the memory", [_curve(metrics, "world_gate", "gate")], step, "tanh(gate)", reference=0.0),
        line_chart("Prophet's skill over copying the present, in training", skill, step, "skill", reference=0.0),
        held_out_chart(imagined),
    ]
    return [chart for chart in charts if chart is not None]


def build_page(data: PageData) -> str:
    """The page as HTML."""
    charts = draw_charts(data.metrics, data.imagined)
    template = template_environment(Path(__file__).parent).get_template("page.html.jinja")
    return template.render(data=data, charts=charts, imagined=data.imagined)


def collect(folder: Path) -> PageData:
    """Read a finished demo run, and let its policy foresee the episodes that training held out."""
    from imagined import predict_latents  # brings torch and LeRobot, which the page itself does not need

    results = read_results(folder / "eval")
    blind = read_results(folder / "eval_blind") if read_stamp(folder, "eval_blind").get("done") else []
    stamps = {name: read_stamp(folder, name) for name in STAGES}
    stages = [
        (name, stamp["what"], stamp["command"], duration(stamp["seconds"])) for name, stamp in stamps.items() if stamp
    ]
    checkpoint = folder / "train" / "checkpoints" / "last" / "pretrained_model"
    device = json.loads((checkpoint / "config.json").read_text())["device"]
    imagined = predict_latents(checkpoint, folder / "dataset", "demo/metaworld", folder / "companion", device)
    metrics = read_metrics(folder / "train_metrics.jsonl")
    return PageData(results, blind, metrics, choose_videos(results), imagined, stages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("outputs/demo"))
    folder = parser.parse_args().folder
    page = build_page(collect(folder))
    aside = folder / "index.html.tmp"
    aside.write_text(page, encoding="utf-8")
    os.replace(aside, folder / "index.html")
    print(f"wrote {folder / 'index.html'} ({len(page) / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
