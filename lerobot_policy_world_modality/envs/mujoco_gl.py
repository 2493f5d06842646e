"""Which OpenGL MuJoCo renders with, on a machine without a display.

MuJoCo's own default is GLFW, which needs a display and fails on a server with "an OpenGL platform library has not been
loaded into this process". Here the choice is made once, before the first context is opened, and never against the user.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from contextlib import contextmanager

from world_modality_core.io.errors import UserError

HOW_TO_GET_A_RENDERER = (
    "install one with `apt-get install -y libegl1 libgl1-mesa-dri libopengl0` (then MUJOCO_GL=egl) "
    "or `apt-get install -y libosmesa6` (then MUJOCO_GL=osmesa)"
)


class RendererError(UserError, RuntimeError):
    """Nothing can be rendered on this machine as it is set up; the message says what to install or set."""


def choose_mujoco_gl() -> str:
    """Set MUJOCO_GL when it is unset on a headless Linux machine: egl if it works here, else osmesa. Import MuJoCo.

    Child processes inherit the choice, so the probe (about half a second) runs once per process tree.

    Returns:
        The value of MUJOCO_GL that holds from now on; "" means MuJoCo's own default (a display, or not Linux).

    Raises:
        RendererError: neither EGL nor OSMesa opens a context, or the one that the user chose cannot be loaded; one line
            that names the apt packages.
    """
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    if not chosen and _is_headless_linux():
        chosen = next((backend for backend in ("egl", "osmesa") if _opens_a_context(backend)), "")
        if not chosen:
            raise RendererError(f"no display, and neither EGL nor OSMesa can render here: {HOW_TO_GET_A_RENDERER}.")
        os.environ["MUJOCO_GL"] = chosen
    with _explained(chosen):
        importlib.import_module("mujoco")  # loads the library that MUJOCO_GL names
    return chosen


def open_contexts(model, width: int, height: int) -> tuple:
    """Open an offscreen OpenGL context of the chosen kind, make it current, and load a model's meshes and textures.

    The class is looked up by MUJOCO_GL at this moment: `mujoco.GLContext` is fixed when mujoco is imported, which may
    have been before the choice.

    Returns:
        (GLContext, MjrContext): the second lives in the first.

    Raises:
        RendererError: it cannot be opened; one line that names MUJOCO_GL and the apt packages.
    """
    backend = choose_mujoco_gl()
    module = f"mujoco.{backend}" if backend in ("egl", "osmesa") else "mujoco.gl_context"
    with _explained(backend):
        gl_context = importlib.import_module(module).GLContext(width, height)
        gl_context.make_current()
        mujoco = importlib.import_module("mujoco")
        return gl_context, mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)


def release_contexts() -> None:
    """Leave no EGL context current in this thread.

    Then another thread may use or close it (`lerobot-eval --env.max_parallel_tasks=2` renders in worker threads and
    closes in the main one), and resources that somebody else frees meanwhile are not ours by mistake.
    """
    egl = sys.modules.get("mujoco.egl")
    if egl is not None:
        egl.EGL.eglReleaseThread()


@contextmanager
def _explained(backend: str):
    try:
        yield
    except Exception as err:  # whatever PyOpenGL, ctypes, MuJoCo or the driver raise, several kinds
        raise RendererError(
            f"MUJOCO_GL={backend or '(unset)'} cannot render here ({type(err).__name__}: {err}): "
            f"{HOW_TO_GET_A_RENDERER}."
        ) from err


def _is_headless_linux() -> bool:
    return sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _opens_a_context(backend: str) -> bool:
    """Try it in a child process: PyOpenGL binds to one platform per process, so a failed try here would be final."""
    probe = f"from mujoco.{backend} import GLContext; c = GLContext(16, 16); c.make_current(); c.free()"
    env = {**os.environ, "MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
    return subprocess.run([sys.executable, "-c", probe], env=env, capture_output=True).returncode == 0
