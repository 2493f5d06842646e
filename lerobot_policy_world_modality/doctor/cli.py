"""`wm-doctor`: does this installation work? Versions, discovery, rendering, encoders, a round of every policy type."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

DISTRIBUTION = "lerobot_policy_world_modality"
REPORTED_PACKAGES = ["lerobot", "torch", "transformers", "accelerate", "faiss-cpu", "metaworld", "mujoco"]
POLICY_TYPES = ["world_A", "world_B", "world_B_cont", "world_C", "world_F"]
ENVIRONMENT_TYPE = "metaworld_light"

# Renders a lit box and prints the milliseconds of the second frame; the first one compiles shaders.
_RENDER = """
import time, mujoco
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 3'/><geom type='box' size='.3 .3 .3' rgba='1 0 0 1'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 64, 64)
for _ in range(2):
    start = time.perf_counter()
    renderer.update_scene(data)
    frame = renderer.render()
    spent = time.perf_counter() - start
assert frame.std() > 1, "the frame is blank"
print(f"{spent * 1e3:.1f}")
"""

# As lerobot-eval builds it, up to the frame after the first action; prints the contrast of that frame.
_METAWORLD = """
import numpy as np
import lerobot_policy_world_modality
from lerobot.envs.factory import make_env_config, make_env
env = make_env(make_env_config("metaworld_light", task="reach-v3"))["reach-v3"][0]
env.reset(seed=[0])
observation = env.step(np.zeros((1, 4), dtype=np.float32))[0]
print("RESULT", int(np.ptp(observation["pixels"])))
"""
_MIN_CONTRAST = 8


@dataclass
class Row:
    """One line of the table.

    Attributes:
        check: What was looked at.
        status: "ok", "warn" (something optional is missing) or "FAIL".
        found: What was found.
        remedy: What to do about it; empty if nothing is to be done.
    """

    check: str
    status: str
    found: str
    remedy: str = ""


def extra(name: str) -> str:
    """How to install one of the distribution's extras."""
    return f"pip install '{DISTRIBUTION}[{name}]'"


def check_versions() -> list[Row]:
    """Python and the packages that matter, held against what the distribution requires of LeRobot."""
    from packaging.requirements import Requirement

    rows = [Row("python", "ok", sys.version.split()[0])]
    wanted = {r.name: r.specifier for r in map(Requirement, metadata.requires(DISTRIBUTION) or []) if not r.marker}
    for name in [DISTRIBUTION, *REPORTED_PACKAGES]:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            remedy = extra("metaworld") if name in ("metaworld", "mujoco") else f"pip install {name}"
            rows.append(Row(name, "warn", "not installed", remedy))
            continue
        bad = name in wanted and not wanted[name].contains(version, prereleases=True)
        rows.append(Row(name, "FAIL" if bad else "ok", version, f"install {name}{wanted[name]}" if bad else ""))
    return rows


def check_device(device: str) -> list[Row]:
    """The device that was asked for."""
    import torch

    if device != "cuda":
        return [Row("device", "ok", f"cpu, {torch.get_num_threads()} threads")]
    if torch.cuda.is_available():
        return [Row("device", "ok", f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")]
    return [Row("device", "FAIL", "no CUDA device", "check `nvidia-smi` and that torch was built for your driver")]


def check_discovery() -> list[Row]:
    """Whether LeRobot finds the plugin, as its commands do at their start."""
    from lerobot.configs import PreTrainedConfig
    from lerobot.envs.configs import EnvConfig
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    known = {*PreTrainedConfig.get_known_choices(), *EnvConfig.get_known_choices()}
    missing = [name for name in [*POLICY_TYPES, ENVIRONMENT_TYPE] if name not in known]
    if missing:
        remedy = (
            f"`python -c 'import {DISTRIBUTION}'` shows the error that LeRobot only logs; then reinstall the package"
        )
        return [Row("discovery", "FAIL", f"LeRobot does not know {', '.join(missing)}", remedy)]
    return [Row("discovery", "ok", ", ".join([*POLICY_TYPES, ENVIRONMENT_TYPE]))]


def check_renderers() -> list[Row]:
    """Which OpenGL renders a MuJoCo frame without a display, each tried in a process of its own."""
    from lerobot_policy_world_modality.envs.mujoco_gl import HOW_TO_GET_A_RENDERER

    if importlib.util.find_spec("mujoco") is None:
        return [Row("renderer", "warn", "MuJoCo is not installed: no simulation", extra("metaworld"))]
    found, works = [], False
    for name in ("egl", "osmesa"):
        environment = {**os.environ, "MUJOCO_GL": name, "PYOPENGL_PLATFORM": name}
        done = subprocess.run([sys.executable, "-c", _RENDER], env=environment, capture_output=True, text=True)
        works |= done.returncode == 0
        found.append(f"{name} {done.stdout.strip()} ms a frame" if done.returncode == 0 else f"no {name}")
    return [Row("renderer", "ok" if works else "FAIL", ", ".join(found), "" if works else HOW_TO_GET_A_RENDERER)]


def check_metaworld() -> list[Row]:
    """Whether Meta-World resets, steps and shows something, in a process of its own."""
    from packaging.requirements import Requirement

    from lerobot_policy_world_modality.envs.mujoco_gl import HOW_TO_GET_A_RENDERER

    if importlib.util.find_spec("metaworld") is None:
        return [Row("meta-world", "warn", "Meta-World is not installed", extra("metaworld"))]
    done = subprocess.run([sys.executable, "-c", _METAWORLD], capture_output=True, text=True)
    result = [line.split() for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if done.returncode == 0 and result and int(result[0][1]) >= _MIN_CONTRAST:
        return [Row("meta-world", "ok", "reach-v3 resets, steps and is not blank")]
    if done.returncode == 0 and result:
        return [Row("meta-world", "FAIL", "the frame after a reset is blank", HOW_TO_GET_A_RENDERER)]
    # A newer MuJoCo than Meta-World knows can be installed by hand, and breaks it.
    wanted = [r for r in map(Requirement, metadata.requires(DISTRIBUTION) or []) if r.name == "mujoco"]
    named = f"pip install '{wanted[0].name}{wanted[0].specifier}'" if wanted else extra("metaworld")
    said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return [Row("meta-world", "FAIL", said[:200], f"{named}; and see the row `renderer`")]


def check_video() -> list[Row]:
    """Which decoder LeRobot will read videos with."""
    from lerobot.utils.import_utils import get_safe_default_video_backend

    backend = get_safe_default_video_backend()
    if backend == "torchcodec":
        return [Row("video decoder", "ok", backend)]
    remedy = "apt-get install ffmpeg; if that changes nothing, `python -c 'import torchcodec'` shows what is missing"
    return [Row("video decoder", "warn", f"{backend}; torchcodec can't be loaded", remedy)]


def check_encoders(device: str) -> list[Row]:
    """Which world encoders and sentence encoders are at hand without a download."""
    import torch
    from huggingface_hub import try_to_load_from_cache

    from world_modality_core.encoders import make_world_encoder
    from world_modality_core.encoders.dinov2 import Dinov2
    from world_modality_core.encoders.sentence_encoder import EMBEDDED_MODEL, SentenceEncoder
    from world_modality_core.encoders.spec import EncoderSpec
    from world_modality_core.encoders.vjepa2 import VJepa2
    from world_modality_core.io.errors import ConfigError

    rows = []
    try:
        spec = EncoderSpec(family="efficientnet_lite0", cameras=["image"])
        encoder = make_world_encoder(spec, device=device)
        latent = encoder.encode({"image": torch.rand(1, 3, 128, 128)})
        rows.append(Row("encoder efficientnet_lite0", "ok", f"latent {tuple(latent.shape[1:])}"))
    except ConfigError as error:
        rows.append(Row("encoder efficientnet_lite0", "warn", str(error), extra("embedded")))
    for family, encoder_class in (("dinov2", Dinov2), ("vjepa2", VJepa2)):
        model = encoder_class.default_model_id
        cached = isinstance(try_to_load_from_cache(model, "model.safetensors"), str)
        found = f"{model} is cached" if cached else f"{model} is not in the local cache"
        rows.append(
            Row(f"encoder {family}", "ok" if cached else "warn", found, "" if cached else f"hf download {model}")
        )
    try:
        rows.append(Row("sentence encoder", "ok", f"{EMBEDDED_MODEL}, {SentenceEncoder(device=device).dim}-d"))
    except ConfigError:
        remedy = f"{extra('embedded')}, or --policy.language.model_id=HUB_ID"
        rows.append(Row("sentence encoder", "warn", f"{EMBEDDED_MODEL} is not installed", remedy))
    return rows


def check_policies(device: str) -> list[Row]:
    """Train, save, load and act once with every policy type, tiny, on data made up on the spot."""
    from lerobot_policy_world_modality.doctor.policy_round import make_tiny_data, policy_round

    rows = []
    with tempfile.TemporaryDirectory(prefix="wm-doctor-") as folder:
        data = make_tiny_data(Path(folder), device)
        for policy_type in POLICY_TYPES:
            name = f"policy {policy_type}"
            rows += _guarded(name, lambda n=name, t=policy_type: [Row(n, "ok", policy_round(t, data, device))])
    return rows


def _guarded(check: str, run: Callable[[], list[Row]]) -> list[Row]:
    """Turn an exception into a row, so that the other checks still run, and keep what libraries print to ourselves."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return run()
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = (str(error).strip().splitlines() or [""])[0]
        found = f"{type(error).__name__}: {reason} ({Path(where.filename).name}:{where.lineno})"
        return [Row(check, "FAIL", found, "see the error; `pip check` finds packages that don't fit together")]


def diagnose(device: str) -> list[Row]:
    """Run all checks.

    Args:
        device: "cpu" or "cuda".

    Returns:
        The table.
    """
    checks = {
        "versions": check_versions,
        "device": lambda: check_device(device),
        "discovery": check_discovery,
        "renderer": check_renderers,
        "meta-world": check_metaworld,
        "video decoder": check_video,
        "encoders": lambda: check_encoders(device),
        "policies": lambda: check_policies(device),
    }
    rows = []
    for name, check in checks.items():
        rows += _guarded(name, check)
        if name == "device" and rows[-1].status == "FAIL":
            break  # nothing below can run there
    return rows


def format_table(rows: list[Row]) -> str:
    """The rows as text, remedies below the rows that have one."""
    width = max(len(row.check) for row in rows)
    lines = []
    for row in rows:
        lines.append(f"{row.status:<5} {row.check:<{width}}  {row.found}")
        if row.remedy:
            lines.append(f"{'':<5} {'':<{width}}  -> {row.remedy}")
    n_failed, n_warned = (sum(row.status == status for row in rows) for status in ("FAIL", "warn"))
    verdict = f"{n_failed} of {len(rows)} checks failed" if n_failed else f"all {len(rows)} checks passed"
    return "\n".join([*lines, "", verdict + (f", {n_warned} with a warning" if n_warned else "")])


def main() -> int:
    """Print the table; exit code 1 if a row is FAIL."""
    parser = argparse.ArgumentParser(prog="wm-doctor", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where to run encoders and policies")
    parser.add_argument("--env", choices=["libero"], help="look at this simulator only, and reset it once")
    parser.add_argument("--fix", action="store_true", help="with --env: put first what it needs where it looks for it")
    parser.add_argument("--assets", type=Path, help="with --fix: LIBERO's folder `assets`, if it is here already")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    arguments = parser.parse_args()
    if (arguments.fix and not arguments.env) or (arguments.assets and not arguments.fix):
        parser.error("--assets needs --fix, and --fix needs --env=libero: nothing else is mended from here")
    if not arguments.fix:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # looks at what is here; downloads nothing
    if arguments.env:
        from lerobot_policy_world_modality.doctor.libero_checks import check_libero, fix_libero

        mended = _guarded("fix", lambda: fix_libero(arguments.assets)) if arguments.fix else []
        rows = [*mended, *_guarded("renderer", check_renderers), *_guarded("libero", check_libero)]
    else:
        rows = diagnose(arguments.device)
    print(json.dumps([asdict(row) for row in rows], indent=2) if arguments.json else format_table(rows))
    return int(any(row.status == "FAIL" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
