"""What a labelling model is shown and given to read of one episode."""

from __future__ import annotations

import json
from dataclasses import dataclass

from lerobot.annotations.steerable_pipeline.frames import to_contact_sheet_blocks

from coc_tools.backends import LabelRequest, ShownImage
from coc_tools.config import KeyframesConfig
from coc_tools.episodes import Episode, EpisodeReader, SignalDimension
from coc_tools.keyframes import keyframes
from coc_tools.prompts import PromptFile
from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import read_json
from world_modality_core.latents.companion import Companion, open_companion


@dataclass
class RequestBuilder:
    """Makes the requests of a run.

    Attributes:
        prompt: The prompt.
        config: Which frames.
        cameras: Camera keys; empty for a backend that needs no images.
        gripper: Whose changes are events; None for none.
        objects: Names that labels may use: a list for all tasks, or per task; None for any.
        companion: Companion of the dataset, or None.
    """

    prompt: PromptFile
    config: KeyframesConfig
    cameras: list[str]
    gripper: SignalDimension | None = None
    objects: list[str] | dict[str, list[str]] | None = None
    companion: Companion | None = None

    def build(self, episode: Episode) -> LabelRequest:
        """Read what is needed of an episode and make its request."""
        images = self._images(episode) if self.cameras else []
        objects = self.objects.get(episode.task) if isinstance(self.objects, dict) else self.objects
        return LabelRequest(episode, self.prompt.text, data_block(episode, images, objects), images, objects)

    def _images(self, episode: Episode) -> list[ShownImage]:
        latents = None
        if self.companion is not None:
            latents = self.companion.table.latents[episode.start : episode.stop]
        positions = keyframes(episode, self.config, self.gripper, latents)
        times = [round(float(t), 3) for t in episode.timestamps[positions]]
        return [
            image
            for camera in self.cameras
            for image in shown_images(camera, episode.frames(camera, positions), times, self.config)
        ]


def shown_images(camera: str, frames: list, times: list[float], config: KeyframesConfig) -> list[ShownImage]:
    """Frames of one camera as the images to show: contact sheets with the times on them, or one image per frame."""
    if not config.use_sheets:
        return [ShownImage(camera, (time,), frame) for time, frame in zip(times, frames, strict=True)]
    n = min(config.n_per_sheet, len(frames))
    sheets = to_contact_sheet_blocks(
        frames, times, columns=min(config.n_columns, n), frames_per_sheet=n, frame_width=config.frame_width_px
    )
    groups = [tuple(times[i : i + n]) for i in range(0, len(times), n)]
    return [ShownImage(camera, group, sheet["image"]) for group, sheet in zip(groups, sheets, strict=True)]


def data_block(episode: Episode, images: list[ShownImage], objects: list[str] | None) -> str:
    """The data of an episode as JSON.

    Texts of the dataset (task, earlier annotations) stand in it as JSON strings with `<` and `>` escaped, so that they
    can neither end the block nor be read as a model's control tokens (`<|im_end|>`, `<image>`).
    """
    data: dict = {"task": episode.task, "length_s": episode.length_s, "fps": episode.fps}
    if images:
        data["images"] = [{"camera": image.camera, "times_s": list(image.timestamps)} for image in images]
    if objects is not None:
        data["objects"] = objects
    notes = [
        {"style": row["style"], "time_s": round(float(row["timestamp"]), 3), "text": row["content"]}
        for row in episode.language_rows
        if row["style"] in ("subtask", "plan") and row["content"]
    ]
    if notes:
        data["notes"] = notes
    return quoted(data)


def quoted(value) -> str:
    """JSON in which no character can open or close a tag or a control token."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c").replace(">", "\\u003e")


def choose_cameras(wanted: list[str], reader: EpisodeReader) -> list[str]:
    """The cameras to show: those wanted, or all colour cameras.

    Raises:
        ConfigError: if one is unknown, or there is none.
    """
    unknown = [key for key in wanted if key not in reader.cameras]
    if unknown:
        raise ConfigError(f"keyframes.cameras={wanted}: {unknown} not in {reader.meta.repo_id!r}: {reader.cameras}")
    if not reader.cameras:
        raise ConfigError(
            f"{reader.meta.repo_id!r} has no colour camera to show to a model; its features are "
            f"{sorted(reader.meta.features)}. Without images only --backend=sim can label"
        )
    return list(wanted) or reader.cameras


def choose_gripper(config: KeyframesConfig, reader: EpisodeReader) -> SignalDimension | None:
    """The signal whose changes are events; None where frames are not chosen by events, or there are no actions.

    Raises:
        ConfigError: if the dataset has no such feature or dimension.
    """
    if config.kind != "events":
        return None
    return reader.dimension(config.gripper_key, config.gripper_dim, "keyframes.gripper_")


def load_objects(path: str | None) -> list[str] | dict[str, list[str]] | None:
    """Read the file of `--objects`.

    Raises:
        ConfigError: if it is neither a list of names nor a mapping of tasks to such lists.
    """
    if path is None:
        return None
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"objects={path!r}: cannot be read as JSON ({error})") from error
    lists = list(value.values()) if isinstance(value, dict) else [value]
    if not all(isinstance(names, list) and names and all(isinstance(n, str) for n in names) for names in lists):
        raise ConfigError(f"objects={path!r}: expected a list of names, or {{task: list of names}}")
    return value


def open_latents(folder: str | None, reader: EpisodeReader) -> Companion | None:
    """Open the companion whose latents help to find events, and check that it belongs to the dataset.

    Raises:
        CompanionError: if it can't be opened, or its source is another dataset.
    """
    if folder is None:
        return None
    companion = open_companion(root=folder)
    companion.check_source(reader.meta)
    return companion
