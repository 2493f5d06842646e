"""The template engine of our pages: everything that comes from data is escaped."""

from __future__ import annotations

from pathlib import Path

import jinja2
from markupsafe import Markup

from world_modality_core.studies.report.media import picture_uri, video_uri

HERE = Path(__file__).parent


def template_environment(folder: Path = HERE) -> jinja2.Environment:
    """Templates of a folder; this package's own are `world_modality/...` to them.

    Args:
        folder: Where the page's template is.
    """
    shared = jinja2.PrefixLoader({"world_modality": jinja2.FileSystemLoader(HERE)})
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([shared, jinja2.FileSystemLoader(folder)]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["picture_uri"] = picture_uri
    environment.filters["video_uri"] = video_uri
    environment.filters["breakable"] = breakable
    return environment


def breakable(text: str) -> Markup:
    """Text that may also be broken after an underscore."""
    return Markup("_<wbr>").join(text.split("_"))
