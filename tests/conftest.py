"""Shared fixtures: a tiny source dataset and its companion, made by the real recorder and the real `wm-precompute`."""

from __future__ import annotations

import os

# Before torch, faiss or a tokenizer is imported: tests run side by side and offline.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MUJOCO_GL", "egl")

import random  # noqa: E402
import socket  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import NamedTuple  # noqa: E402

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from filelock import FileLock  # noqa: E402

import tests.fork_server  # noqa: E402, F401  # its hook: what every fork of a test's process needs

# The same examples in every run; others with `--hypothesis-profile=default`, as `make nightly` has it.
hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.load_profile("same")


@pytest.hookimpl(tryfirst=True)  # before fixtures, which draw too
def pytest_runtest_setup() -> None:
    """Let what a test draws not depend on the tests that ran before it in its process."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


class TinyCompanion(NamedTuple):
    """Where the shared source dataset and its companion are; do not write there."""

    source_repo_id: str
    source_root: Path
    companion_root: Path


@pytest.fixture(scope="session")
def tiny_companion(tmp_path_factory, worker_id) -> TinyCompanion:
    """A dataset and its companion: 4 episodes (12, 17, 14, 20 frames), 2 cameras, 2 tasks, action (4,), state (4,).

    Latents: p = 2 tokens (one per camera) of d = 8 by PCA; 8 codes, one per frame. Shared by all xdist workers.
    """
    from tests.fixtures_datasets import make_dataset
    from world_modality_core.encoders.spec import EncoderSpec
    from world_modality_core.latents.companion import open_companion
    from world_modality_core.precompute.precompute_options import (
        OutputConfig,
        PrecomputeConfig,
        SourceConfig,
        TokensConfig,
    )
    from world_modality_core.precompute.steps import precompute

    base = tmp_path_factory.getbasetemp()
    base = base if worker_id == "master" else base.parent
    tiny = TinyCompanion("tests/source", base / "tiny_source", base / "tiny_companion")
    with FileLock(base / "tiny.lock"):
        if not tiny.companion_root.exists():
            make_dataset(tiny.source_root, tiny.source_repo_id)
            cfg = PrecomputeConfig(
                dataset=SourceConfig(tiny.source_repo_id, str(tiny.source_root)),
                output=OutputConfig("tests/source_world", str(tiny.companion_root)),
                encoder=EncoderSpec(family="efficientnet_lite0", height_px=32, width_px=32, pca_dim=8),
                tokens=TokensConfig(n_codes=8),
                device="cpu",
                batch_size=8,
                num_workers=0,
            )
            precompute(cfg)
            assert open_companion(root=tiny.companion_root).table.n_frames  # its cache too: others may copy the folder
    return tiny


@pytest.fixture
def port() -> Iterator[int]:
    """A port that nobody else is given: a socket that never listens has it, which a server of torch may share."""
    with socket.socket() as ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        ours.bind(("127.0.0.1", 0))
        yield ours.getsockname()[1]


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """One headless Chromium for all tests of pages."""
    from tests.browser import CHROMIUM, Browser

    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    browser = Browser(tmp_path_factory.mktemp("chromium") / "profile")
    yield browser
    browser.close()


@pytest.fixture
def browser(chromium):
    """That Chromium as on a laptop in daylight; what went wrong in its pages is in `errors`."""
    chromium.look(1280, "light")
    chromium.errors.clear()
    yield chromium
    chromium.send("Page.navigate", url="about:blank")  # a page of a server asks on after it has ended
