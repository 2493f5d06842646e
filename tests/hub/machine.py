"""A machine of somebody: a process with an empty home, a token or none, and a small Hub to talk to."""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
import types
import urllib.request
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

# Something to search for in everything that is written.
TOKEN = "hf_RecognisableTokenOfMine0123456789"
OTHER_TOKEN = "hf_RecognisableTokenOfAnother012345"


def run(script: str, home: Path, url: str, token: str | None, offline: bool = False, **given: Any) -> dict:
    """Run `tests/hub/<script>.py` on a machine.

    Args:
        script: Its name.
        home: The machine's disk: HOME, HF_HOME and the working directory.
        url: The Hub's address.
        token: Its HF_TOKEN.
        offline: Whether HF_HUB_OFFLINE is set.
        given: Arguments of the script's `main`.

    Returns:
        What `main` returned, and "printed": all that it wrote to stdout and stderr.
    """
    home.mkdir(parents=True, exist_ok=True)
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env |= {
        "HOME": str(home), "HF_HOME": str(home / "hf"), "HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HUB_ETAG_TIMEOUT": "120", "HF_HUB_DOWNLOAD_TIMEOUT": "120", "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    env |= {"HF_TOKEN": token} if token else {}
    done = subprocess.run(
        [sys.executable, __file__, script], input=json.dumps(given, default=str), capture_output=True, text=True,
        env=env, cwd=home, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-6000:]
    return json.loads((home / "told.json").read_text()) | {"printed": done.stdout + done.stderr}


def control(**switches: int) -> None:
    """Set switches of the Hub (`server.Hub`)."""
    url = os.environ["HF_ENDPOINT"] + "/control"
    urllib.request.urlopen(urllib.request.Request(url, json.dumps(switches).encode(), method="POST")).read()


def command(main, *arguments: str) -> dict[str, Any]:
    """Call a console script's `main` with arguments.

    Returns:
        "status" (None if it ended by itself), "error" (what it said at its end) and "printed".
    """
    sys.argv[1:] = list(arguments)
    printed, status, error = io.StringIO(), None, ""
    with redirect_stdout(printed), redirect_stderr(printed):
        try:
            main()
        except SystemExit as ended:
            error, status = str(ended.code), 1 if isinstance(ended.code, str) else ended.code
    print(printed.getvalue())
    return {"status": status, "error": error, "printed": printed.getvalue()}


def refusal(call, *arguments: Any, **named: Any) -> str:
    """Kind and text of the error that a call ends with."""
    try:
        call(*arguments, **named)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


if __name__ == "__main__":  # that process: call the script's `main`, and write down what it returns
    # `tests` is no installed package; another distribution's may be.
    package = types.ModuleType("tests")
    package.__path__ = [str(Path(__file__).parents[1])]
    sys.modules["tests"] = package
    main = importlib.import_module(f"tests.hub.{sys.argv[1]}").main
    Path("told.json").write_text(json.dumps(main(**json.loads(sys.stdin.read()))))
