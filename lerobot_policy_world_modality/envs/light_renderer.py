"""Cheap offscreen rendering of one MuJoCo model, with its OpenGL context held correctly.

Takes the place of gymnasium's `MujocoRenderer` (same `render(render_mode)` and `close()`), which makes its context
current only when it is created. Two environments in one process therefore draw into each other's context (the second
task's textures and meshes in the first task's picture), and closing either one leaves the other without any
(`GLContext.free` releases the thread): from then on frames are blank, in a twentieth of the time and without an error.
Here every render makes its own context current and leaves none behind, and resources are freed while their own
context is current.
"""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Sequence

import mujoco
import numpy as np

from .mujoco_gl import open_contexts, release_contexts


class LightRenderer:
    """Renders one camera of a model at one size, without shadows, reflections or multisampling.

    Stock Meta-World asks for a 4096 x 4096 shadow map and 4 samples a pixel, which is nearly all of its cost on a CPU.
    The context is opened at the first render, in the process and thread that render, and a frame that was rendered is
    handed out again until `forget()` says that the scene has changed.

    Args:
        model, data: the simulation to draw. Only `model.vis` is changed, which physics does not read.
        height, width: of the images, in pixels.
        camera_name: a camera of the model.

    Raises:
        ValueError: the model has no such camera.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, height: int, width: int, camera_name: str):
        self._model, self._data = model, data
        self._rect = mujoco.MjrRect(0, 0, width, height)
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, camera_name)
        if self._camera.fixedcamid == -1:
            names = ", ".join(model.camera(i).name for i in range(model.ncam))
            raise ValueError(f"camera_name={camera_name!r} is not a camera of this model; it has {names}")
        model.vis.quality.offsamples = 0
        model.vis.quality.shadowsize = 0
        model.vis.global_.offwidth, model.vis.global_.offheight = width, height
        self._free = self._gl = self._context = None
        self._frame: np.ndarray | None = None
        self.marks: Sequence[tuple] = ()  # geoms to draw beside the model's: type, size, position, rgba
        self._ball: tuple[tuple, ...] = ()

    def show_ball(self, position: np.ndarray | None, radius: float = 0.0) -> None:
        """Draw a green ball that is no part of the simulation; None draws none.

        Args:
            position: (3,) metres.
            radius: Metres.
        """
        sphere, green = mujoco.mjtGeom.mjGEOM_SPHERE, [0.1, 0.7, 0.2, 1.0]
        self._ball = () if position is None else ((sphere, np.full(3, radius), position, green),)

    def render(self, render_mode: str | None = "rgb_array") -> np.ndarray:
        """Draw the scene as it is now.

        Returns:
            (height, width, 3) uint8, the first row at the top.
        """
        if render_mode != "rgb_array":
            raise ValueError(f"render_mode={render_mode!r}: only 'rgb_array' is rendered here")
        if self._frame is None:
            self._frame = self._draw()
        return self._frame

    def forget(self) -> None:
        """The scene has changed: render anew when next asked."""
        self._frame = None

    def close(self) -> None:
        """Free the context and what lives in it. A later render opens a new one."""
        if self._free is not None:
            self._free()
            atexit.unregister(self._free)
        self._free = self._gl = self._context = self._frame = None

    def _draw(self) -> np.ndarray:
        if self._gl is None:
            self._open()
        mujoco.mjv_updateScene(
            self._model, self._data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        for shape, size, position, rgba in (*self.marks, *self._ball):
            geom = self._scene.geoms[self._scene.ngeom]
            mujoco.mjv_initGeom(geom, shape, np.array(size), position, np.eye(3).ravel(), np.array(rgba, np.float32))
            self._scene.ngeom += 1
        frame = np.zeros((self._rect.height, self._rect.width, 3), dtype=np.uint8)  # a read that fails is a blank frame
        self._gl.make_current()
        mujoco.mjr_render(self._rect, self._scene, self._context)
        mujoco.mjr_readPixels(frame, None, self._rect, self._context)
        release_contexts()
        return frame[::-1]

    def _open(self) -> None:
        self._gl, self._context = open_contexts(self._model, self._rect.width, self._rect.height)
        self._free = weakref.finalize(self, _free, self._gl, self._context)  # also when this object is dropped
        atexit.register(self._free)  # and at exit, before MuJoCo shuts EGL down; a second call does nothing
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._option = mujoco.MjvOption()
        self._scene = mujoco.MjvScene(self._model, maxgeom=1000)  # gymnasium's number
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = False


def _free(gl_context, context: mujoco.MjrContext) -> None:
    """Under another context the same numbers would name, and destroy, that one's textures and buffers."""
    gl_context.make_current()
    context.free()
    gl_context.free()
