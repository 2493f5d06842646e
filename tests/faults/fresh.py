"""A command in a process that has not rendered; see commands.py."""

import importlib.util
import json
import sys
from pathlib import Path

if __name__ == "__main__":
    # By its file: a distribution's own package `tests` may stand before ours.
    spec = importlib.util.spec_from_file_location("commands", Path(__file__).with_name("commands.py"))
    commands = sys.modules["commands"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(commands)
    main, arguments, log, at = json.loads(sys.argv[1])
    commands.become(main, arguments, Path(log), at and commands.At(**at))
