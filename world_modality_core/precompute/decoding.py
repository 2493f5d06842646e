"""Decoding the videos and images of a dataset, whose sizes and modes are checked before anything is decoded."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from world_modality_core.io.errors import UserError
from world_modality_core.io.files import open_parquet, reading

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video import VideoFrame, VideoStream

# LeRobot's own default (`LeRobotDataset.tolerance_s`).
TOLERANCE_S = 1e-4
# Decoders round heights and widths up, by at most one block of the largest size that a codec has.
DECODER_MARGIN_PX = 128
# What Pillow's modes are.
MODES = {"L": "8-bit gray", "I;16": "16-bit gray", "RGBA": "RGB with alpha"}
REPAIR = "copy or download this file of the source dataset again, then give the same command again"


def _check_size(found: tuple[int, int], size: tuple[int, int], where: str) -> None:
    """Refuse a picture of another size than declared before it is decoded: a small file can hold gigabytes."""
    if found != size:
        raise UserError(
            f"{where}: {found[0]} x {found[1]} px (height x width), but meta/info.json declares {size[0]} x {size[1]}; "
            f"{REPAIR}"
        )


def decode_image(data: bytes, size: tuple[int, int], where: str, modes: Sequence[str] = ("RGB",)) -> Image.Image:
    """Decode an image of a dataset, in RGB.

    Args:
        data: The file's content.
        size: (height, width) that the dataset declares.
        where: What it is, for the message.
        modes: Pillow's modes that are taken. A policy is shown frames as LeRobot decodes them, gray as one channel and
            RGBA as four, which no world encoder reads; so what it learns from is RGB too.

    Raises:
        UserError: if it has another size or mode.
    """
    image = Image.open(io.BytesIO(data))  # reads the header
    _check_size((image.height, image.width), size, where)
    if image.mode not in modes:
        raise UserError(
            f"{where} is {MODES.get(image.mode, image.mode)}, not RGB with 8 bits a channel; record or convert the "
            "dataset again, or choose other cameras"
        )
    return image.convert("RGB")


def video_frames(
    path: Path, size: tuple[int, int], timestamps: np.ndarray, episode: int = 0, tolerance_s: float = TOLERANCE_S
) -> Iterator[np.ndarray]:
    """Decode the frames nearest to some increasing timestamps: one seek, then front to back.

    Gives the frames of LeRobot's `decode_video_frames_pyav`, without keeping an episode in memory. Where a key frame
    lies between two timestamps, what is before it is not decoded.

    Args:
        path: Video file; it may hold many episodes.
        size: (height, width) that the dataset declares.
        timestamps: Seconds in the file, increasing.
        episode: Named in the error.
        tolerance_s: Seconds by which a frame may miss its timestamp.

    Yields:
        (h, w, 3) uint8.

    Raises:
        UserError: if the frames have another size, or a timestamp has no frame within the tolerance.
        DamagedFileError: if the file is no video.
    """
    with reading(path, "video", REPAIR), av.open(str(path)) as container:
        stream = container.streams.video[0]
        # Workers run side by side; a decoder that takes all cores as well would only get in the encoder's way.
        stream.codec_context.thread_count = 1
        _check_size((stream.codec_context.height, stream.codec_context.width), size, str(path))
        # Frames within the stream may say otherwise than its header.
        most = (size[0] + DECODER_MARGIN_PX) * (size[1] + DECODER_MARGIN_PX)
        stream.codec_context.options = {"max_pixels": str(most)}
        container.seek(round(timestamps[0] / stream.time_base) - 1, backward=True, any_frame=False, stream=stream)
        wanted = timestamps[0]
        decoded = _decoded(container, stream, lambda: wanted)
        before, after = None, next(decoded, None)
        for wanted in timestamps:
            while after is not None and float(after.pts * stream.time_base) < wanted:
                before, after = after, next(decoded, None)
            near = [frame for frame in (before, after) if frame is not None]
            errors = [abs(float(frame.pts * stream.time_base) - wanted) for frame in near]
            if not near or min(errors) >= tolerance_s:
                raise UserError(
                    f"{path}: episode {episode} has no frame at {wanted:.4f} s (within {tolerance_s} s); the video and "
                    "the timestamps of this dataset do not fit together (--tolerance_s allows for more)"
                )
            yield near[int(np.argmin(errors))].to_ndarray(format="rgb24")


def _decoded(container: InputContainer, stream: VideoStream, wanted: Callable[[], float]) -> Iterator[VideoFrame]:
    """Decoded frames, in order; those before the last key frame at or before the time that is wanted now are left out.

    Args:
        container: The file.
        stream: Its video.
        wanted: Tells the time, in seconds.
    """
    waiting: list[Packet] = []  # decoded as soon as it is known that no key frame comes first
    for packet in container.demux(stream):
        until_s = wanted() + TOLERANCE_S
        is_late = packet.pts is None or float(packet.pts * stream.time_base) > until_s
        if packet.is_keyframe and waiting and not is_late:
            waiting.clear()
            stream.codec_context.flush_buffers()
        waiting.append(packet)
        if is_late:
            for each in waiting:
                yield from (frame for frame in each.decode() if frame.pts is not None)
            waiting.clear()


class ImageColumn:
    """Frames of parquet image columns; remembers what it read last, which often holds the next episode too."""

    def __init__(self) -> None:
        self._files: dict[Path, tuple[pq.ParquetFile, np.ndarray]] = {}
        self._rows: dict[str, tuple[tuple[Path, int], pa.ChunkedArray]] = {}

    def frames(self, path: Path, size: tuple[int, int], camera: str, indices: np.ndarray) -> Iterator[np.ndarray]:
        """Decode the images of frames (increasing `index`): (h, w, 3) uint8 each."""
        if path not in self._files:
            file = open_parquet(path)
            counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            start = file.read_row_group(0, columns=["index"])["index"][0].as_py()
            self._files = {path: (file, start + np.cumsum([0, *counts]))}
        file, starts = self._files[path]
        for group in range(file.num_row_groups):
            rows = indices[slice(*np.searchsorted(indices, starts[group : group + 2]))] - starts[group]
            if not len(rows):
                continue
            if self._rows.get(camera, (None,))[0] != (path, group):
                with reading(path, "parquet", REPAIR):
                    table = file.read_row_group(group, columns=[camera], use_threads=False)  # other workers decode
                    self._rows[camera] = ((path, group), table[camera])
            for row in rows.tolist():
                with reading(path, f"images of {camera}", REPAIR):
                    data = self._rows[camera][1][row]["bytes"].as_py()
                    image = np.asarray(decode_image(data, size, f"{path}, an image of {camera}"))
                yield image
