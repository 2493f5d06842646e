"""Pictures and videos as data URIs, so that a page holds them itself."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import av
import numpy as np
from PIL import Image

from world_modality_core.io.files import reading


def data_uri(kind: str, content: bytes) -> str:
    """Bytes of a media type as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def picture_uri(picture: np.ndarray | Path) -> str:
    """A picture as a data URI.

    Args:
        picture: (h, w, 3) uint8, or a JPEG or PNG file.

    Raises:
        DamagedFileError: if the file is no picture.
    """
    if isinstance(picture, Path):
        with reading(picture, "a picture"):
            picture = np.asarray(Image.open(picture).convert("RGB"))
    return data_uri("image/jpeg", jpeg(picture))


def jpeg(pixels: np.ndarray) -> bytes:
    """An (h, w, 3) uint8 picture as the bytes of a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def video_uri(path: Path) -> str:
    """A video file as the data URI of an MP4 that browsers play."""
    return data_uri("video/mp4", playable(path))


def playable(path: Path) -> bytes:
    """An MP4 that browsers play: the file itself if it is H.264 in 4:2:0, or a copy that is.

    Raises:
        DamagedFileError: if the file is no video.
    """
    with reading(path, "video", "give --no_videos, or run its evaluation again"):
        return _playable(path)


def _playable(path: Path) -> bytes:
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
