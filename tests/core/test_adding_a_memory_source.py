"""The code of docs/adding_a_memory_source.md, put where the page says: everything else follows."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[2]
CHECK = """
import json, torch
from world_modality_core.configs import MemoryConfig
from world_modality_core.memory.sources import *
from world_modality_core.memory.sources import ARM_SOURCES, TESTED_SOURCES, TRAINING_SOURCES
source = MemorySource("next_step")
predicted = torch.arange(2 * 3 * 4.0).view(1, 2, 3, 1, 4)
memory = make_memory(source, MemoryInputs((1, 2, 3, 1, 4), torch.device("cpu"), predicted=predicted))
print(json.dumps({
    "is_in": [source in places for places in (TRAINING_SOURCES, TESTED_SOURCES, ARM_SOURCES)],
    "is_right": torch.equal(memory.tokens.view(2, 3, 4), predicted[0, :, :1, 0].expand(2, 3, 4)),
    "rollout_source": MemoryConfig(source=source).rollout_source,
}))
"""


def test_a_source_is_one_entry_and_its_function(tmp_path):
    page = (REPO / "docs/adding_a_memory_source.md").read_text()
    function, entry = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    shutil.copytree(REPO / "world_modality_core", tmp_path / "world_modality_core")
    path = tmp_path / "world_modality_core/memory/sources.py"
    text = path.read_text()
    for anchor, block in (("@dataclass(frozen=True)\nclass SourceTraits", function), ("    stale = (", entry)):
        assert text.count(anchor) == 1
        text = text.replace(anchor, f"{block}\n{anchor}")
    path.write_text(text)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == {"is_in": [True] * 3, "is_right": True, "rollout_source": "next_step"}
