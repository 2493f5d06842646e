"""What `wm-push` uploads of a checkpoint, companion, labelled dataset, labels or a monitor, with the card of each."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterable
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

import pandas as pd
from lerobot.configs import PreTrainedConfig
from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.datasets.language import LANGUAGE_PERSISTENT
from safetensors import safe_open

from coc_tools.card import labelled_card, labels_card
from lerobot_policy_world_modality.hub.model_card import CardFacts, companion_at_hand, gate_values, policy_card
from lerobot_policy_world_modality.hub.on_hub import forget_disk, needed_weights
from lerobot_policy_world_modality.hub.trusted_files import checkpoint_files, open_checkpoint
from world_modality_core.io.errors import ConfigError
from world_modality_core.io.hub_transfer import CARD_FILE, dataset_files, own_files, push_dataset, push_folder
from world_modality_core.latents.companion import INFO_FILE, open_companion
from world_modality_core.latents.fingerprint import SOURCE_FILE
from world_modality_core.monitor.monitor_card import monitor_card
from world_modality_core.monitor.saved_monitor import MONITOR_FILE, TENSORS_FILE, Monitor
from world_modality_core.precompute.cards import companion_card, copy_card, known_license
from world_modality_core.studies.evidence.checkpoint import TRAIN_CONFIG, checkpoint_hash
from world_modality_core.studies.evidence.compare import INTACT, compare
from world_modality_core.studies.evidence.compare_table import format_report
from world_modality_core.studies.evidence.episode_records import read_episodes, read_eval_infos
from world_modality_core.studies.evidence.wilson import wilson_interval

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"


def push(given: argparse.Namespace) -> str:
    """Upload what the options name, or print its card.

    Returns:
        The card.

    Raises:
        ConfigError: before anything is uploaded, naming the option and the remedy.
    """
    path = given.path
    is_policy = (path / CONFIG).is_file()
    if (given.eval or given.baseline or given.matched) and not is_policy:
        raise ConfigError(
            f"--eval, --baseline and --matched are for a checkpoint's card, and path={str(path)!r} is none"
        )
    if is_policy:
        return _push_policy(given)
    if (path / "meta/info.json").is_file():
        files = dataset_files(path)
        card = _dataset_card(given)
        _print_left_out(path, [file for room in ("data", "meta", "videos") for file in (path / room).rglob("*")], files)
        return _done(given, card, lambda: push_dataset(given.repo_id, path, card, **_where(given)))
    if (path / MONITOR_FILE).is_file():
        card = monitor_card(Monitor.load(path, "path"), given.repo_id, given.license)
        files = own_files(path, [MONITOR_FILE, TENSORS_FILE])
        _print_left_out(path, path.rglob("*"), files)
        upload = partial(push_folder, given.repo_id, path, repo_type="model", card=card, files=files, **_where(given))
        return _done(given, card, upload)
    if path.suffix == ".jsonl" and path.is_file():
        files = own_files(path.parent, [escape(path.name)])
        card = labels_card(path, given.repo_id, given.license)
        return _done(
            given,
            card,
            lambda: push_folder(
                given.repo_id, path.parent, repo_type="dataset", card=card, files=files, **_where(given)
            ),
        )
    raise ConfigError(
        f"path={str(path)!r} is neither a checkpoint (config.json), a LeRobotDataset (meta/info.json), a monitor "
        "(monitor.json) nor a .jsonl of labels; for a checkpoint name its folder `pretrained_model`"
    )


def _where(given: argparse.Namespace) -> dict[str, Any]:
    return {"private": given.private, "branch": given.branch}


def _done(given: argparse.Namespace, card: str, upload) -> str:
    if given.dry_run:
        print(card)
    else:
        print(f"Uploaded {upload()}")
    return card


def _print_left_out(folder: Path, files: Iterable[Path], uploaded: Iterable[str]) -> None:
    """Name the files that stay here, although they lie among those that are uploaded."""
    names = {path.relative_to(folder).as_posix() for path in files if path.is_file()} - {*uploaded, CARD_FILE}
    if names:
        print(f"wm-push: not part of what is uploaded: {', '.join(map(repr, sorted(names)))}")


def _dataset_card(given: argparse.Namespace) -> str:
    """The card of a companion, of a copy that wm-precompute made, or of a dataset with labels."""
    root = given.path
    license = given.license or known_license(root)
    if (root / INFO_FILE).is_file() and not (root / SOURCE_FILE).is_file():
        return companion_card(open_companion(root=root), given.repo_id, license)
    for kind in ("merged", "stripped"):
        of = root.with_name(root.name.removesuffix(f"_{kind}"))
        if (root / SOURCE_FILE).is_file() and of != root and (of / INFO_FILE).is_file():
            return copy_card(kind, open_companion(root=of), given.repo_id, license)
    meta = LeRobotDatasetMetadata(root.name, root=root)
    if LANGUAGE_PERSISTENT not in meta.features:
        raise ConfigError(
            f"path={str(root)!r} is a LeRobotDataset without world latents or labels; upload it with LeRobotDataset"
            "(...).push_to_hub()"
        )
    return labelled_card(root, meta, given.repo_id, license)


def _push_policy(given: argparse.Namespace) -> str:
    folder = open_checkpoint(given.path)
    uploaded = checkpoint_files(folder)
    config = PreTrainedConfig.from_pretrained(folder)
    files = {name: json.loads((folder / name).read_text()) for name in (CONFIG, TRAIN_CONFIG, ADAPTER_CONFIG)
             if (folder / name).is_file()}  # fmt: skip
    companion, needs = companion_at_hand(config), needed_weights(*files.values())
    changed = {name: text for name, values in files.items() if (text := _without_disk(values))}
    forget_disk(config)
    weights = folder / ("model.safetensors" if (folder / "model.safetensors").exists() else "adapter_model.safetensors")
    with safe_open(weights, "pt") as tensors:
        gates = gate_values({name: tensors.get_tensor(name) for name in tensors.keys() if name.endswith("gate.value")})
    facts = CardFacts(
        given.repo_id,
        gates,
        files.get(TRAIN_CONFIG, {}),
        companion,
        adapter_of=files.get(ADAPTER_CONFIG, {}).get("base_model_name_or_path"),
        needs=needs,
        license=given.license or config.license,
        tags=list(config.tags or []),
    )
    if given.eval:
        _add_results(facts, checkpoint_hash(folder), given)
    card = policy_card(config, facts)
    _print_left_out(folder, folder.rglob("*"), uploaded)
    for need in needs:
        print(f"wm-push: {need} is a folder of this disk: nobody else can load the checkpoint; upload that folder too "
              "and train with its name on the Hub")  # fmt: skip
    return _done(
        given,
        card,
        lambda: push_folder(
            given.repo_id, folder, repo_type="model", card=card, files=uploaded, replaced=changed,
            delete=["*.safetensors"], **_where(given),
        ),
    )  # fmt: skip


def _without_disk(values: dict) -> str | None:
    """A JSON file's new text; None where it names nothing of this disk and stays byte for byte."""
    return json.dumps(values, indent=4) if forget_disk(values) else None


def _add_results(facts: CardFacts, sha256: str, given: argparse.Namespace) -> None:
    """Compare what was evaluated, if this checkpoint was.

    Raises:
        ConfigError: if the folders hold no episode of this checkpoint.
    """
    episodes = read_episodes(given.eval)
    own = episodes[episodes["checkpoint"] == sha256]
    if own.empty:
        raise ConfigError(
            f"eval={' '.join(given.eval)}: none of its {len(episodes)} episodes was run with this checkpoint (hash "
            f"{sha256[:16]}...); name the folders of its own evaluation"
        )
    model = str(own["model"].iloc[0])
    facts.checkpoint = sha256
    tasks = ",".join(sorted(own["task"].unique()))
    facts.run_env = shlex.join([f"--env.type={own['env'].iloc[0]}", f"--env.task={tasks}"])
    facts.results = _tables(episodes, own, model, given) + "\n\n" + _circumstances(given, model, own)


def _tables(episodes: pd.DataFrame, own: pd.DataFrame, model: str, given: argparse.Namespace) -> str:
    if set(own["arm"]) == {INTACT} and not given.baseline:
        return _success(own) + "\n\nOne arm of one model: this compares it with nothing."
    chosen = {model, given.baseline, given.matched}
    report = compare(
        episodes[episodes["model"].isin(chosen)], baseline=given.baseline, matched=given.matched, candidates=[model]
    )
    return f"\n{format_report(report, markdown=True)}".replace("\n## ", "\n### ").lstrip()


def _success(own: pd.DataFrame) -> str:
    """Success per task, with Wilson intervals of 95 %."""
    groups = [*own.groupby("task")["success"], ("all episodes", own["success"])]
    rows = ["| task | successes | rate % | 95 % interval |", "| --- | --- | --- | --- |"]
    for name, success in groups:
        low, high = wilson_interval(int(success.sum()), len(success))
        rate = f"{100 * success.mean():.1f} | {100 * low:.1f} to {100 * high:.1f}"
        rows.append(f"| {name} | {int(success.sum())}/{len(success)} | {rate} |")
    return "\n".join(rows)


def _circumstances(given: argparse.Namespace, model: str, own: pd.DataFrame) -> str:
    trained = ", ".join(map(str, sorted(own["train_seed"].unique())))
    seeds = f"scenes {own['seed'].min()} to {own['seed'].max()} of each task, training seed {trained}"
    versions = next((info["versions"] for info in read_eval_infos(given.eval) if info["model"] == model), {})
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    frames = f"frames by {own['renderer'].iloc[0]}" if own["renderer"].iloc[0] else "no renderer"
    return f"{len(own)} episodes of this checkpoint, {seeds}, {frames}. {named}"
