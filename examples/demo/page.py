"""Put a demo run into one HTML file that needs nothing else: no network, no scripts from elsewhere, no other file."""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
from pathlib import Path

import av
import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from charts import Line, line_chart
from page_data import Imagined, PageData, Video
from results import Result, read_results
from stages import duration, read_stamp

STAGES = ["record", "precompute", "train", "eval", "train_blind", "eval_blind"]


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Lines of a metrics file; of a step that was trained twice (after an interruption) the last."""
    by_step = {}
    for line in path.read_text().splitlines():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:  # cut off by a kill
            continue
        by_step[values["step"]] = values
    return [by_step[step] for step in sorted(by_step)]


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


def playable(path: Path) -> bytes:
    """An MP4 that browsers play: the file itself if it is H.264 in 4:2:0, or a copy that is."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        if stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p":
            return path.read_bytes()
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        rate = stream.average_rate
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "23"})
        stream.pix_fmt = "yuv420p"
        stream.height, stream.width = (size // 2 * 2 for size in frames[0].shape[:2])
        for pixels in frames:
            pixels = np.ascontiguousarray(pixels[: stream.height, : stream.width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def picture_uri(pixels: np.ndarray) -> str:
    """An (h, w, 3) uint8 picture as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=88)
    return _data_uri("image/jpeg", buffer.getvalue())


def _curve(metrics: list[dict[str, float]], key: str, label: str) -> Line:
    points = [(m["step"], m[key]) for m in metrics if m.get(key) is not None]
    return Line(label, [x for x, _ in points], [y for _, y in points])


def draw_charts(metrics: list[dict[str, float]], imagined: Imagined) -> dict[str, str]:
    """The page's charts by title, as SVG elements; a chart without data is left out."""
    last = len(imagined.offsets)
    wanted = {
        "Losses": ("loss", [("loss_action", "action"), ("loss_world", "world (1 − cosine)")]),
        "Gate of the memory": ("tanh(gate)", [("world_gate", "gate")]),
        "Prophet's skill over copying the present, in training": (
            "skill",
            [
                ("prophet_skill_1", f"{imagined.offsets[0]} ahead"),
                (f"prophet_skill_{last}", f"{imagined.offsets[-1]} ahead"),
            ],
        ),
    }
    charts = {}
    for number, (title, (y_label, keys)) in enumerate(wanted.items()):
        lines = [line for line in (_curve(metrics, key, label) for key, label in keys) if line.x]
        if lines:
            charts[title] = line_chart(lines, "training step", y_label, f"curve{number}")
    offsets = [float(offset) for offset in imagined.offsets]
    lines = [
        Line("predicted", offsets, imagined.cosine),
        Line("copy of the present", offsets, imagined.copy_cosine),
    ]
    charts["Held-out episodes: how near a latent is to the real one"] = line_chart(
        lines, "frames ahead", "cosine", "held_out"
    )
    return charts


def build_page(data: PageData) -> str:
    """The page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["picture_uri"] = picture_uri
    environment.filters["video_uri"] = lambda video: _data_uri("video/mp4", playable(video.path))
    charts = {title: Markup(svg) for title, svg in draw_charts(data.metrics, data.imagined).items()}
    return environment.get_template("page.html.jinja").render(data=data, charts=charts, imagined=data.imagined)


def collect(folder: Path) -> PageData:
    """Read a finished demo run, and let its policy foresee the episodes that training held out."""
    from imagined import imagine  # brings torch and LeRobot, which the page itself does not need

    results = read_results(folder / "eval")
    blind = read_results(folder / "eval_blind") if read_stamp(folder, "eval_blind").get("done") else []
    stamps = {name: read_stamp(folder, name) for name in STAGES}
    stages = [
        (name, stamp["what"], stamp["command"], duration(stamp["seconds"])) for name, stamp in stamps.items() if stamp
    ]
    checkpoint = folder / "train" / "checkpoints" / "last" / "pretrained_model"
    device = json.loads((checkpoint / "config.json").read_text())["device"]
    imagined = imagine(checkpoint, folder / "dataset", "demo/metaworld", folder / "companion", device)
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
