"""The ways in that nobody here can walk: what they name is there, and they agree with each other."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from lerobot_policy_world_modality.envs.mujoco_gl import HOW_TO_GET_A_RENDERER
from world_modality_core.io.home import REPOSITORY, how_to_install

REPO = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
# LIBERO has an environment of its own, for want of a MuJoCo that suits Meta-World's records too.
USER_EXTRAS = set(PROJECT["optional-dependencies"]) - {"dev", "docs", "libero"}


def pinned(constraints: Path = REPO / "constraints.txt") -> dict[str, str]:
    lines = constraints.read_text().splitlines()[1:]
    return dict(line.split("==") for line in lines)


def test_conda_installs_every_extra_at_the_tested_versions():
    environment = yaml.safe_load((REPO / "environment.yml").read_text())
    conda = {re.split(r"[=<>]", text)[0]: text for text in environment["dependencies"] if isinstance(text, str)}
    assert {"python", "pip", "ffmpeg"} <= set(conda)
    assert PROJECT["requires-python"] == f">={conda['python'].split('=')[1]}"
    pip = next(part["pip"] for part in environment["dependencies"] if isinstance(part, dict))
    assert pip[0] == "--constraint constraints.txt"
    assert set(re.fullmatch(r"--editable \.\[([\w,]+)\]", pip[1])[1].split(",")) == USER_EXTRAS


def test_the_image_is_made_as_ci_makes_its_environment():
    text = (REPO / "Dockerfile").read_text()
    assert set(re.search(r"ARG EXTRAS=([\w,]+)", text)[1].split(",")) == USER_EXTRAS
    command = re.search(r"make env (.*)", text)[1]
    command = command.replace("${EXTRAS}", "report").replace("/usr/local/bin/python3", sys.executable)
    planned = subprocess.run(["bash", "-c", f"make -n env {command}"], cwd=REPO, capture_output=True, text=True)
    assert planned.returncode == 0, planned.stderr
    assert "--constraint constraints.txt" in planned.stdout and '".[report]"' in planned.stdout
    assert "/opt/venv/bin/python -m pip install" in planned.stdout
    stages = re.split(r"^FROM .* AS ", text, flags=re.MULTILINE)
    assert "USER 1000" in stages[-1].splitlines() and 'VOLUME ["/home/user/.cache/huggingface"]' in stages[-1]
    assert not re.search(r"(?i)token|password|secret|--build-arg \w*key", text)
    assert {".git", ".venv", "outputs", ".env"} <= set((REPO / ".dockerignore").read_text().splitlines())


def test_a_bare_machine_gets_what_readme_names_and_errors_ask_for():
    packages = re.search(r"^apt-get install ([^#\n]+)", (REPO / "README.md").read_text(), flags=re.MULTILINE)[1].split()
    renderer = re.search(r"apt-get install -y ([^`]+)`", HOW_TO_GET_A_RENDERER)[1].split()
    assert packages == ["git", "make", "python3-venv", *renderer]
    assert set(renderer) - {"libopengl0"} | {"libgl1"} <= set((REPO / "Dockerfile").read_text().split())


def test_pins_satisfy_what_the_project_asks_for():
    pins = pinned()
    assert list(pins) == sorted(pins)
    extras = PROJECT["optional-dependencies"]
    asked = [*PROJECT["dependencies"], *sum((extras[name] for name in extras if name != "libero"), [])]
    for required in map(Requirement, asked):
        assert required.specifier.contains(pins[required.name.lower()]), required


def test_an_environment_with_libero_has_the_tested_versions_but_for_mujoco(tmp_path):
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(REPO / name, tmp_path)
    made = "build/constraints-libero.txt"
    subprocess.run(["make", "-s", made], cwd=tmp_path, check=True)
    pins, tested = pinned(tmp_path / made), pinned()
    assert {name for name in pins if pins[name] != tested[name]} == {"mujoco"} and list(pins) == list(tested)
    for required in map(Requirement, PROJECT["optional-dependencies"]["libero"]):
        assert required.specifier.contains(pins[required.name.lower()]), required
    for extras, constraints in (("libero,embedded", made), ("metaworld,embedded", "constraints.txt")):
        command = ["make", "-n", "env", f"EXTRAS={extras}", f"PYTHON={sys.executable}"]
        planned = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert f"--constraint {constraints} " in planned.stdout


@pytest.fixture
def nightly(monkeypatch):
    monkeypatch.syspath_prepend(str(REPO / ".ci"))
    import nightly

    return nightly


def test_nightly_lets_lerobot_go_beyond_our_bound_and_nothing_else(nightly):
    lerobot, *others = nightly.newest((REPO / "pyproject.toml").read_text())
    assert {"dataset", "training", "smolvla", "metaworld"} <= Requirement(lerobot).extras
    assert not Requirement(lerobot).specifier
    assert next(r for r in PROJECT["optional-dependencies"]["metaworld"] if r.startswith("mujoco")) in others
    assert not [text for text in others if text.startswith("lerobot")]


def test_nightly_takes_a_checkout(nightly, tmp_path):
    lerobot, *_ = nightly.newest((REPO / "pyproject.toml").read_text(), str(tmp_path))
    assert lerobot.endswith(f"] @ file://{tmp_path}")


def test_nightly_tells_what_broke(nightly, tmp_path):
    (tmp_path / "test_three.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "@pytest.mark.parametrize('i', range(7))\n"
        "def test_bad(i): raise ImportError('cannot import name X')\n"
        "def test_other(): assert 1 == 2\n"
    )
    record = tmp_path / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junit-xml={record}", "--rootdir=."]
    subprocess.run([*command, "test_three.py"], cwd=tmp_path, capture_output=True)
    text, n_broken = nightly.summary(record)
    assert n_broken == 8
    assert "1 passed, 8 failure, 0 error, 0 skipped" in text
    assert text.index("7 x ImportError: cannot import name X") < text.index("1 x assert 1 == 2")
    assert "and 2 more" in text


def test_make_image_builds_what_the_dockerfile_asks_for():
    """Building it takes half an hour and 20 GB: `make image`. Here, that the script reads the Dockerfile as it is."""
    script, text = (REPO / ".ci/image.sh").read_text(), (REPO / "Dockerfile").read_text()
    subprocess.run(["bash", "-n", REPO / ".ci/image.sh"], check=True)
    pattern = re.search(r"from=\$\((sed .*)\)\n", script)[1]
    named = subprocess.run(["bash", "-c", pattern], cwd=REPO, capture_output=True, text=True, check=True).stdout.strip()
    assert named == re.search(r"FROM (python:\S+)", text)[1].replace("${PYTHON}", "3.12")
    if shutil.which("buildah") is None:
        pytest.skip("needs buildah (apt-get install buildah)")
    # buildah reads the whole Dockerfile before it looks for the base image, which isn't pulled.
    for device in ("cpu", "cuda"):
        command = ["buildah", "build", "--pull-never", "--storage-driver=vfs", "--isolation=chroot"]
        command += ["--build-arg", f"DEVICE={device}", "."]
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=300)
        assert done.returncode and f"{named}: image not known" in done.stderr


def test_one_address_everywhere():
    """Pages, metadata, site and error messages name the same place, and what can be pasted installs from there."""
    assert PROJECT["urls"] == {"Repository": REPOSITORY, "Issues": f"{REPOSITORY}/issues"}
    assert f"repo_url: {REPOSITORY}\n" in (REPO / "mkdocs.yml").read_text()
    assert f'repository-code: "{REPOSITORY}"\n' in (REPO / "CITATION.cff").read_text()
    pages = [REPO / "README.md", *(REPO / "docs").rglob("*.md")]
    lines = {line for page in pages for line in re.findall(r"git\+([^\s'`\"]+)", page.read_text())}
    assert lines == {REPOSITORY}
    code = [path for name in ("coc_tools", "world_modality_core", "lerobot_policy_world_modality", "wm_tools")
            for path in (REPO / name).rglob("*.py")]  # fmt: skip
    by_hand = [str(p) for p in code if "pip install 'lerobot_policy" in p.read_text() and p.name != "home.py"]
    assert not by_hand
    requirement = Requirement(re.search("'(.*)'", how_to_install("report,embedded"))[1])
    assert (requirement.extras, requirement.url) == ({"report", "embedded"}, f"git+{REPOSITORY}")
