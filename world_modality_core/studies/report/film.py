"""Filmstrips of imagined futures: what they hold, and their record.

A prediction is a latent, which nobody can look at: a strip shows the recorded frame whose latent is nearest to it,
above the frame that really came. The record is a folder:

    imagined.json   everything but the pictures, and their names
    *.jpg           the pictures
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import checked, read_json, write_text, writing
from world_modality_core.studies.report.charts import Chart, Line, line_chart
from world_modality_core.studies.report.media import jpeg
from world_modality_core.studies.report.schemas import Finite, StepNumber

SCHEMA_VERSION = 1
RECORD_FILE = "imagined.json"

Picture = Any
"""An (h, w, 3) uint8 array or its file; in `imagined.json` the file's name."""


class ImaginedStep(BaseModel):
    """One future step of a moment."""

    # Frames ahead.
    offset: StepNumber
    # The recorded frame whose latent is nearest to the predicted one, and its episode and frame in words.
    found: Picture
    found_where: str
    # The frame that really came.
    real: Picture
    # Of the predicted and of the present latent to the real one.
    cosine: Finite
    copy_cosine: Finite


class ImaginedMoment(BaseModel):
    """One frame of a held-out episode and what was predicted from it."""

    task: str
    episode: int
    frame: int
    now: Picture
    steps: list[ImaginedStep]


class Imagined(BaseModel):
    """Moments, and the mean over all held-out frames."""

    moments: list[ImaginedMoment]
    # Frames ahead, k values, and for each the mean cosine of predicted and of present to real latents.
    offsets: list[StepNumber]
    cosine: list[Finite]
    copy_cosine: list[Finite]
    # Held-out frames and episodes that the means are over, and recorded frames that the nearest was searched among.
    n_frames: int
    n_episodes: int
    n_searched: int
    fps: Annotated[float, Field(gt=0, le=1e6)]
    # Label of the model that predicted.
    model: str = ""


def held_out_chart(imagined: Imagined) -> Chart | None:
    """How near predicted and present latents are to the real ones, over the frames ahead."""
    lines = [
        Line("predicted", imagined.offsets, imagined.cosine),
        Line("copy of the present", imagined.offsets, imagined.copy_cosine),
    ]
    return line_chart(
        "Held-out episodes: how near a latent is to the real one", lines, "frames ahead", "cosine", whole_x=True
    )


def write_imagined(imagined: Imagined, folder: str | Path) -> Path:
    """Write the record; pictures first, so that a record that can be read is whole.

    Returns:
        Its `imagined.json`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = (f"{n:04d}.jpg" for n in range(1, 10_000))

    def store(pixels: Picture) -> str:
        name = next(names)
        with writing(folder / name) as aside:
            aside.write_bytes(jpeg(pixels))
        return name

    path = folder / RECORD_FILE
    write_text(path, json.dumps({"schema": SCHEMA_VERSION, **_with_pictures(imagined, store)}, indent=1))
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

    def find(name: Picture) -> Path:
        # A folder that was copied from elsewhere may hold links; a record names files of its own folder only.
        is_name = isinstance(name, str) and Path(name).name == name and "\0" not in name and len(name) < 200
        if not is_name or (path.parent / name).is_symlink() or not (path.parent / name).is_file():
            raise ConfigError(f"{path} names the picture {str(name)[:100]!r}, which is not in its folder")
        return path.parent / name

    imagined = Imagined(**_with_pictures(checked(Imagined, record, path), find))
    if not len(imagined.offsets) == len(imagined.cosine) == len(imagined.copy_cosine):
        raise ConfigError(f"{path}: offsets, cosine and copy_cosine are not equally many; write it anew")
    return imagined


def _with_pictures(imagined: Imagined, change: Callable[[Picture], Picture]) -> dict[str, Any]:
    """The fields, with pictures changed into names of files, or names into files."""
    record = imagined.model_dump()
    for moment in record["moments"]:
        for holder, key in ((moment, "now"), *((step, key) for step in moment["steps"] for key in ("found", "real"))):
            holder[key] = change(holder[key])
    return record
