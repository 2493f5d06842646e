"""Commands of documentation pages, run as they stand there but for what a test has no time for."""

import re
import shlex
import sys
import tomllib
from pathlib import Path

from tests import fork_server

REPO = Path(__file__).parents[2]
SCRIPTS = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["scripts"]
PROGRAMS = ("lerobot-record", "lerobot-train", "lerobot-rollout", "lerobot-eval")
LEROBOT = {name: f"lerobot.scripts.{name.replace('-', '_')}" for name in PROGRAMS}

# What the console script hands over to.
PLUGIN = "lerobot_policy_world_modality"
MODULES = {"wm-eval": f"{PLUGIN}.evaluation.cli", "wm-record": f"{PLUGIN}.record.cli"}


def documented(page: str, changed: dict[str, str]) -> list[list[str]]:
    """The commands of a page's code blocks, in order.

    Args:
        page: Its name below docs/.
        changed: Option -> the value in place of the documented one, and options that are typed beside it.
    """
    blocks = re.findall(r"```bash\n(.*?)```", (REPO / "docs" / page).read_text(), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line) for line in lines if line.partition(" ")[0] in {*SCRIPTS, *LEROBOT}]
    commands = [[argument.replace("$USER", "me") for argument in command] for command in commands]
    return [[word for argument in command for word in _changed(argument, changed)] for command in commands]


def _changed(argument: str, changed: dict[str, str]) -> list[str]:
    name, equals, value = argument.partition("=")
    if not equals or name not in changed:
        return [argument]
    first, *more = changed[name].split()
    return [f"{name}={first}", *more]


def run(command: list[str], home: Path) -> str:
    program, *arguments = command
    module = LEROBOT.get(program) or MODULES.get(program) or SCRIPTS[program].partition(":")[0]
    typed = [sys.executable, "-m", module, *arguments]
    done = fork_server.run(typed, cwd=home, capture_output=True, timeout=300)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    return done.stdout
