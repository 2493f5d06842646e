"""What several tests of faults need."""

import os

import pytest


@pytest.fixture
def no_ffmpeg(tmp_path, monkeypatch):
    """Processes started from now on find FFmpeg's libraries damaged, so that the real torchcodec can't be loaded."""
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    for version in range(56, 61):  # of FFmpeg 4 to 8
        (libraries / f"libavutil.so.{version}").touch()
    others = os.environ.get("LD_LIBRARY_PATH")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{libraries}:{others}" if others else str(libraries))
