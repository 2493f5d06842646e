"""Pages of filmstrips with the level of each episode below: strange moments of recordings, and evaluated episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import writing
from world_modality_core.io.home import how_to_install


@dataclass(frozen=True)
class Picture:
    """A frame of a strip: (h, w, 3) uint8 pixels, a caption, and whether it is the one to look at."""

    pixels: np.ndarray
    caption: str
    is_marked: bool = False


@dataclass(frozen=True)
class Strip:
    """A filmstrip.

    Attributes:
        heading, text: What is seen.
        pictures: Its frames.
        chart: The episode's level over time.
    """

    heading: str
    text: str
    pictures: list[Picture]
    chart: Any


def check_report_extra() -> None:
    """Refuse work whose page can't be written.

    Raises:
        ConfigError: naming what to install.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed: {how_to_install('report')}") from error


def level_chart(title: str, unit: str, times: np.ndarray, level: np.ndarray, line: float | None) -> Any:
    """A level over time, and where alarms begin, if that is known."""
    from world_modality_core.studies.report.charts import Line, line_chart

    return line_chart(title, [Line("level", times, level)], unit, "level", reference=line)


def write_page(path: Path, title: str, intro: str, strips: Sequence[Strip], charts: Sequence[Any] = ()) -> None:
    """Write a page that needs no other file."""
    from world_modality_core.studies.report.templates import template_environment

    template = template_environment(Path(__file__).parent).get_template("strips.html.jinja")
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as aside, aside.open("w", encoding="utf-8") as file:
        file.writelines(template.generate(title=title, intro=intro, strips=strips, charts=list(charts)))
