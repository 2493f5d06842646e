"""Dataset cards of labels: a JSONL file of them, or a LeRobotDataset that has them as language rows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from lerobot.datasets import LeRobotDatasetMetadata

from coc_tools.label_lines import iter_lines
from coc_tools.schema import EpisodeLabel, Provenance
from coc_tools.store import StoreError
from world_modality_core.precompute.cards import PACKAGE, PARQUET, code, dataset_card, license_words, table

_WHAT = "Such a label says in short sentences, step by step, what a robot does in an episode and why. "


def labels_card(path: Path, repo_id: str, license: str | None = None) -> str:
    """The card of a label file.

    Args:
        path: JSONL of labels, or of plain texts.
        repo_id: Where it is uploaded to.
        license: Licence of the labelled dataset, if it is known.

    Raises:
        StoreError: if a line is neither, or there is none.
    """
    lines = [content for _, _, content in iter_lines(path)]
    if not lines:
        raise StoreError(f"{path} holds no labels: there is nothing to upload")
    labels = [line for line in lines if isinstance(line, EpisodeLabel)]
    tasks = Counter(label.task for label in labels)
    origins = [label.provenance for label in labels]
    labellers = Counter(map(_labeller, origins))
    prompts = dict.fromkeys(f"{o.prompt_name} v{o.prompt_version}" for o in origins if o.prompt_name)
    rows = [
        ("Episodes", f"{len(lines)}, {sum(len(label.steps) for label in labels)} steps"),
        ("Tasks", ", ".join(f"{code(task)} ({n})" for task, n in tasks.most_common(20))),
        ("Labelled by", ", ".join(f"{who} ({n})" for who, n in labellers.most_common())),
        ("Prompt", ", ".join(map(code, prompts))),
        ("Licence", f"{license_words(license)}; the terms of the labelling model's output bind too"),
    ]
    uri = f"hf://datasets/{repo_id}/{path.name}"
    body = f"""# Chain-of-causality labels

{_WHAT}Each line of {code(path.name)} is the label of one
episode, with its `episode_index`, its task, its length and where it comes from. They fit only the dataset that they
describe; where task or length differ, they are refused. Nobody has checked them unless it says so here.

{table(rows)}

```bash
pip install '{PACKAGE}[coc]'
coc-label --dataset.repo_id=SOURCE --backend=none --labels=labels.jsonl --import_jsonl={uri} \\
    --write.target=copy --write.root=outputs/labelled
lerobot-train --policy.type=qwen_world_fplus --policy.lambda_text=0.1 --policy.text.jsonl={uri} ...
```
"""
    return dataset_card(body, license, [], [{"config_name": "default", "data_files": path.name}])


def labelled_card(root: Path, meta: LeRobotDatasetMetadata, repo_id: str, license: str | None = None) -> str:
    """The card of a dataset whose episodes have labels as language rows (`coc-label --write.target=copy`).

    Args:
        root: Its folder.
        meta: Its metadata.
        repo_id: Where it is uploaded to.
        license: Its licence, if it is known.
    """
    rows = [
        ("Frames", f"{meta.total_frames} in {meta.total_episodes} episodes, {meta.fps} a second"),
        ("Labels", "rows of style `coc` in the column `language_persistent`, on every frame of an episode"),
        ("Licence", f"{license_words(license)}; the terms of the labelling model's output bind too"),
    ]
    body = f"""# {code(repo_id.split("/")[-1])}

A LeRobotDataset with chain-of-causality labels, written by `coc-label`. {_WHAT}Nobody has checked them unless it says
so here.

{table(rows)}

```bash
pip install '{PACKAGE}[coc]'
lerobot-train --dataset.repo_id={repo_id} --policy.type=qwen_world_fplus --policy.lambda_text=0.1 ...
```
"""
    return dataset_card(body, license, ["LeRobot"], PARQUET)


def _labeller(origin: Provenance) -> str:
    revision = f" at {code(origin.revision)}" if origin.revision else ""
    return f"{code(origin.backend)} {code(origin.model)}{revision}"
