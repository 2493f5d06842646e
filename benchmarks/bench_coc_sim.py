"""Episodes a minute of `coc-label --backend=sim`: played again, checked, turned into steps, written and synced.

Each repeat starts with a new backend, so that building the scenes counts, and with an empty label file. Without --root,
episodes are recorded first, which is not timed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from provenance import provenance
from report import report

from coc_tools.backends.sim import SimLabeller
from coc_tools.config import KeyframesConfig
from coc_tools.episodes import EpisodeReader
from coc_tools.pipeline import label_episodes
from coc_tools.prompts import load_prompt
from coc_tools.request import RequestBuilder
from coc_tools.store import LabelFile
from lerobot_policy_world_modality.record.cli import record
from lerobot_policy_world_modality.record.record_options import RecordConfig, RecordEnv, RecordOutput

TASKS = "push-v3,reach-v3,pick-place-v3,drawer-open-v3,window-open-v3,button-press-topdown-v3,door-open-v3"
TARGET = 200


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--root", type=Path, help="a recording of wm-record; one is made if not given")
    cli.add_argument("--tasks", default=TASKS, help="to record")
    cli.add_argument("--n_episodes", type=int, default=30, help="to record, per task")
    cli.add_argument("--repeats", type=int, default=5)
    cli.add_argument("--json", type=Path, help="also write the figures here")
    args = cli.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = args.root or record(
            RecordConfig(
                tasks=args.tasks,
                n_episodes=args.n_episodes,
                action_noise=0.1,
                output=RecordOutput("bench/recorded", f"{folder}/data"),
                env=RecordEnv(observation_height=32, observation_width=32),
            )
        )
        reader = EpisodeReader("bench/recorded", str(root))
        rates = []
        for repeat in range(args.repeats):
            start = time.perf_counter()
            labeller = SimLabeller(reader)
            builder = RequestBuilder(load_prompt("coc_v1"), KeyframesConfig(), reader.cameras)
            with LabelFile(Path(folder) / f"{repeat}.jsonl") as labels:
                summary = label_episodes(reader, range(len(reader)), builder, labeller, labels, show_progress=False)
            labeller.close()
            rates.append(60 * summary.n_labelled / (time.perf_counter() - start))
            assert summary.n_labelled == len(reader), summary.failures
        settings = vars(args) | {"n_labelled": len(reader)}
    report(
        f"sim labels of {len(reader)} episodes, over {TARGET} episodes a minute",
        {"episodes a minute": rates},
        ratio=[rate / TARGET for rate in rates],
        target=">= 1",
        settings=settings,
    )
    if args.json is not None:
        args.json.write_text(json.dumps(json.loads(args.json.read_text()) | provenance(), indent=2))


if __name__ == "__main__":
    main()
