"""The choice of the offscreen renderer."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lerobot_policy_world_modality.envs import mujoco_gl

pytest.importorskip("mujoco")
pytestmark = pytest.mark.sim


@pytest.fixture
def headless(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MUJOCO_GL", "to be restored")
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr(sys, "platform", "linux")


@pytest.mark.parametrize(("works", "chosen"), [({"egl", "osmesa"}, "egl"), ({"osmesa"}, "osmesa")])
def test_egl_first_then_osmesa(headless, monkeypatch, works, chosen):
    monkeypatch.setattr(mujoco_gl, "_opens_a_context", lambda backend: backend in works)
    assert mujoco_gl.choose_mujoco_gl() == chosen
    assert os.environ["MUJOCO_GL"] == chosen


def test_neither_is_one_line_with_the_packages(headless, monkeypatch):
    monkeypatch.setattr(mujoco_gl, "_opens_a_context", lambda backend: False)
    with pytest.raises(RuntimeError, match="libegl1 libgl1-mesa-dri libopengl0.*libosmesa6") as caught:
        mujoco_gl.choose_mujoco_gl()
    assert "\n" not in str(caught.value)
    assert "MUJOCO_GL" not in os.environ


def test_the_users_choice_and_a_display_are_left_alone(headless, monkeypatch):
    monkeypatch.setattr(mujoco_gl, "_opens_a_context", lambda backend: pytest.fail("probed"))
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    assert mujoco_gl.choose_mujoco_gl() == "glfw"
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setenv("DISPLAY", ":0")
    assert mujoco_gl.choose_mujoco_gl() == ""
    assert "MUJOCO_GL" not in os.environ


def test_unset_on_this_machine_renders_even_when_mujoco_was_imported_before_the_choice():
    program = (
        "import mujoco\n"  # binds mujoco.GLContext to GLFW, which cannot work here
        "from lerobot_policy_world_modality.envs.light_renderer import LightRenderer\n"
        'model = mujoco.MjModel.from_xml_string(\'<mujoco><worldbody><camera name="c" pos="0 0 2"/>\'\n'
        '    \'<geom type="box" size=".2 .2 .2" rgba="1 0 0 1"/></worldbody></mujoco>\')\n'
        "data = mujoco.MjData(model)\n"
        "mujoco.mj_forward(model, data)\n"
        "print(LightRenderer(model, data, 32, 32, 'c').render().max())\n"
    )
    env = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY")}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100
    assert done.stderr == ""  # nothing is left over at exit


def test_a_choice_that_cannot_render_says_so_in_one_line():
    program = f"import runpy\nrunpy.run_path({mujoco_gl.__file__!r})['choose_mujoco_gl']()"
    env = {**os.environ, "MUJOCO_GL": "nonsense"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    last_line = done.stderr.strip().splitlines()[-1]
    assert "RendererError: MUJOCO_GL=nonsense cannot render here" in last_line
    assert "libegl1 libgl1-mesa-dri libopengl0" in last_line
