"""Filmstrips of imagined futures: what they hold, and their record.

A prediction is a latent, which nobody can look at: a strip shows the recorded frame whose latent is nearest to it,
above the frame that really came. The record is a folder:

    imagined.json   everything but the pictures, and their names
    *.jpg           the pictures
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import checked, read_json, write_text, writing
from world_modality_core.studies.report.charts import Chart, Line, line_chart
from world_modality_core.studies.report.media import jpeg
from world_modality_core.studies.report.schemas import ImaginedRecord

SCHEMA_VERSION = 1
RECORD_FILE = "imagined.json"

# A picture in memory, or its file.
Picture = np.ndarray | Path


@dataclass
class Step:
    """One future step of a moment.

    Attributes:
        offset: Frames ahead.
        found: (h, w, 3) uint8 recorded frame whose latent is nearest to the predicted one, or its file.
        found_where: Its episode and frame, in words.
        real: (h, w, 3) uint8 frame that really came, or its file.
        cosine: Predicted to real latent.
        copy_cosine: Current to real latent.
    """

    offset: int
    found: Picture
    found_where: str
    real: Picture
    cosine: float
    copy_cosine: float


@dataclass
class Moment:
    """One frame of a held-out episode and what was foreseen there."""

    task: str
    episode: int
    frame: int
    now: Picture
    steps: list[Step]


@dataclass
class Imagined:
    """Moments, and the mean over all held-out frames.

    Attributes:
        moments: The pictures.
        offsets: Frames ahead, k values.
        cosine: Mean cosine of predicted to real latents, per offset.
        copy_cosine: Mean cosine of current to real latents, per offset.
        n_frames: Held-out frames that the means are over.
        n_episodes: Held-out episodes.
        n_searched: Recorded frames that the nearest one was searched among.
        fps: Frames per second.
        model: Label of the model that foresaw.
    """

    moments: list[Moment]
    offsets: list[int]
    cosine: list[float]
    copy_cosine: list[float]
    n_frames: int
    n_episodes: int
    n_searched: int
    fps: float
    model: str = ""


def held_out_chart(imagined: Imagined) -> Chart | None:
    """How near predicted and present latents are to the real ones, over the frames ahead."""
    offsets = [float(offset) for offset in imagined.offsets]
    lines = [
        Line("predicted", offsets, imagined.cosine),
        Line("copy of the present", offsets, imagined.copy_cosine),
    ]
    return line_chart(
        "Held-out episodes: how near a latent is to the real one", lines, "frames ahead", "cosine", whole_x=True
    )


def write_imagined(imagined: Imagined, folder: str | Path) -> Path:
    """Write the record; pictures first, so that a record that is there is whole.

    Returns:
        Its `imagined.json`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    n = 0

    def stored(pixels: np.ndarray) -> str:
        nonlocal n
        n += 1
        with writing(folder / f"{n:04d}.jpg") as aside:
            aside.write_bytes(jpeg(pixels))
        return f"{n:04d}.jpg"

    moments = [
        replace(
            moment,
            now=stored(moment.now),
            steps=[replace(step, found=stored(step.found), real=stored(step.real)) for step in moment.steps],
        )
        for moment in imagined.moments
    ]
    path = folder / RECORD_FILE
    write_text(path, json.dumps({"schema": SCHEMA_VERSION, **asdict(replace(imagined, moments=moments))}, indent=1))
    return path


def read_imagined(path: str | Path) -> Imagined:
    """Read a record; pictures stay files.

    Args:
        path: Its `imagined.json`.

    Raises:
        DamagedFileError: if it can't be read.
        ConfigError: if it has another schema, or names a picture that isn't in its folder.
    """
    path = Path(path)
    record = read_json(path, dict)
    if record.get("schema") != SCHEMA_VERSION:
        raise ConfigError(
            f"{path} has schema {record.get('schema')!r}, this version reads {SCHEMA_VERSION}: write it anew"
        )
    record = checked(ImaginedRecord, record, path)

    def picture(name: str) -> Path:
        # A folder that was copied from elsewhere may hold links; a record names files of its own folder only.
        file = path.parent / name
        is_name = Path(name).name == name and "\0" not in name and len(name) < 200
        if not is_name or file.is_symlink() or not file.is_file():
            raise ConfigError(f"{path} names the picture {name[:100]!r}, which is not in its folder")
        return file

    moments = [
        Moment(**{
            **moment,
            "now": picture(moment["now"]),
            "steps": [
                Step(**{**step, "found": picture(step["found"]), "real": picture(step["real"])})
                for step in moment["steps"]
            ],
        })
        for moment in record["moments"]
    ]  # fmt: skip
    imagined = Imagined(**{**record, "moments": moments})
    if not len(imagined.offsets) == len(imagined.cosine) == len(imagined.copy_cosine):
        raise ConfigError(f"{path}: offsets, cosine and copy_cosine are not equally many; write it anew")
    return imagined
