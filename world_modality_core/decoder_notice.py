"""One line, instead of a hundred, where LeRobot can't decode videos by torchcodec.

LeRobot tries to import torchcodec each time a dataset is opened. Without FFmpeg's shared libraries that fails, and
LeRobot logs torchcodec's whole exception text, tracebacks for each of five FFmpeg versions. It decodes by pyav then.
"""

from __future__ import annotations

import copy
import logging
import multiprocessing

NOTICE = "LeRobot decodes videos by pyav: torchcodec can't be loaded here; most often `apt-get install ffmpeg` mends it"


class DecoderNotice(logging.Filter):
    """Lets LeRobot's warning about torchcodec through once a process, as `NOTICE`, and not in worker processes."""

    LOGGER = "lerobot.utils.import_utils"
    """That of `get_safe_default_video_backend`, the only one that warns of it."""

    def __init__(self) -> None:
        super().__init__()
        self._given = False

    def filter(self, record: logging.LogRecord) -> bool | logging.LogRecord:
        """Give the record to log in this one's place, or False for none; other records as they are."""
        if "'torchcodec'" not in record.getMessage():
            return True
        if self._given or multiprocessing.parent_process() is not None:
            return False
        self._given = True
        short = copy.copy(record)
        short.msg, short.args = NOTICE, None
        return short
