"""qwen_world_fplus: a Qwen VLM that acts from the states of its action tokens (docs/qwen_world_fplus.md).

    images, instruction, <ACT_0> ... <ACT_{h-1}>  ->  backbone  ->  states at <ACT_i>  (+ robot's state, gated)
        ->  gated cross-attention to the world memory  ->  MSE or flow head  ->  action chunk

Nothing that is generated as text reaches an action: text follows the action tokens, which attend to nothing after them.
"""

# Annotations are objects here, not strings: LeRobot reads that of `config`.

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.policies import PreTrainedPolicy
from lerobot.utils.device_utils import resolve_safetensors_device
from safetensors import safe_open
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lerobot_policy_world_modality.policies.qwen_world_fplus.backbone import build_backbone, load_backbone_config
from lerobot_policy_world_modality.policies.qwen_world_fplus.coc_text import (
    Labels,
    Prefix,
    generate,
    prefix_of,
    text_loss,
)
from lerobot_policy_world_modality.policies.qwen_world_fplus.configuration_qwen_world_fplus import QwenWorldFPlusConfig
from lerobot_policy_world_modality.policies.qwen_world_fplus.heads import Proprioception, make_action_head
from lerobot_policy_world_modality.policies.qwen_world_fplus.inputs import QwenInputs, Sequences
from lerobot_policy_world_modality.policies.qwen_world_fplus.optimiser import (
    SAVED_WITH_ADAPTERS,
    is_of_hub,
    optimizer_parameters,
    training_table,
)
from lerobot_policy_world_modality.policies.qwen_world_fplus.world_parts import QwenWorld
from lerobot_policy_world_modality.policies.shared.latent_reader import LatentReader
from lerobot_policy_world_modality.policies.shared.planning_policy import (
    PlanningPolicy,
    action_padding,
    check_reduction,
)
from lerobot_policy_world_modality.policies.shared.prophet_start import check_starts
from lerobot_policy_world_modality.policies.shared.training_companion import open_world
from lerobot_policy_world_modality.policies.shared.vectors import action_vectors, state_vectors
from lerobot_policy_world_modality.policies.shared.world_batch import WorldBatch
from world_modality_core.memory.sources import MemorySource
from world_modality_core.prophet.logged_values import LoggedValues
from world_modality_core.prophet.losses import masked_mean


class QwenWorldFPlusPolicy(PlanningPolicy, PreTrainedPolicy):
    """Model F+.

    Args:
        config: The config. In training its encoder and language fields are filled in from the companion.
        dataset_stats: Given by LeRobot; normalisation happens in the processors, so it is not used.
        dataset_meta: Metadata of the training dataset; None at evaluation, where everything is computed live.

    Raises:
        ValueError: if backbone, companion, dataset or labels don't fit, before anything is built that takes long.
    """

    config_class = QwenWorldFPlusConfig
    name = "qwen_world_fplus"

    def __init__(
        self,
        config: QwenWorldFPlusConfig,
        dataset_stats: dict[str, dict[str, Tensor]] | None = None,
        dataset_meta: LeRobotDatasetMetadata | None = None,
        **kwargs: Any,
    ):
        super().__init__(config)
        config.validate_features()
        companion = open_world(config, dataset_meta)
        check_starts(config, companion)
        vlm_config = load_backbone_config(config)
        self.inputs = QwenInputs(config, vlm_config)
        first_id = int(self.inputs.act_ids[0])
        if config.first_act_id not in (0, first_id):
            raise ValueError(
                f"first_act_id={config.first_act_id} in the checkpoint, but the tokenizer of vlm_backbone="
                f"{config.vlm_backbone!r} gives <ACT_0> the id {first_id}: it is another tokenizer. Name the backbone "
                "(and vlm_revision) that the checkpoint was trained with"
            )
        config.first_act_id = first_id
        trains_text = config.lambda_text > 0 and dataset_meta is not None
        self.labels = Labels(config.text, self.inputs, dataset_meta) if trains_text else None

        # Set where the weights are still to come from a checkpoint, so that nobody uses the policy without them.
        self._awaits_weights = config.weights == "checkpoint"
        self.backbone = build_backbone(config, vlm_config, first_id)
        # What FSDP shards: accelerate asks the policy (0.6.1), LeRobot its class (0.6.2 and later).
        self._no_split_modules = type(self)._fsdp_wrap_modules = list(self.backbone._no_split_modules)
        self.inputs.rope_index = self.backbone.model.get_rope_index
        if config.holds_backbone:
            config.weights = "checkpoint"  # of those that are saved from here on
        elif config.vlm_revision is None:
            config.vlm_revision = getattr(vlm_config, "_commit_hash", None)
        d = vlm_config.text_config.hidden_size
        self.action_head = make_action_head(d, config.action_feature.shape[0], config.chunk_size, config.head)
        self.proprioception = None
        if config.use_state:
            self.proprioception = Proprioception(d, config.robot_state_feature.shape[0])
        # Backbone and head have drawn their initial weights: with one seed, E0 to E4 start from the same ones.
        with torch.random.fork_rng(devices=[]):
            self.latent_reader = LatentReader(config, companion)
            self.world = QwenWorld(config, d)
        self._connect_world(companion, dataset_stats or (dataset_meta.stats if dataset_meta else None))
        self.reset()

    # Training.

    def forward(self, batch: dict[str, Tensor], reduction: str = "mean") -> tuple[Tensor, LoggedValues]:
        """Compute the training loss.

        Args:
            batch: A preprocessed batch with images, `action` (b, h, a), `action_is_pad` (b, h), `index` (b,), `task`.
            reduction: "mean", or "none" for LeRobot's sample weighting.

        Returns:
            Loss, () or (b,), and the values to log (docs/qwen_world_fplus.md).

        Raises:
            ValueError: if `reduction` is unknown, or something that the loss needs is missing.
        """
        with self._autocast():
            return self._losses(batch, reduction)

    def _losses(self, batch: dict[str, Tensor], reduction: str) -> tuple[Tensor, LoggedValues]:
        config = self.config
        check_reduction(reduction)
        labels = self._labels_of(batch)
        world_batch = self.recorded_batch(batch)
        states, loss_text = self._see(batch, labels)
        states = self._inform(states, batch, world_batch, None)
        error = self.action_head.error(states, action_vectors(batch, config))
        loss = loss_action = masked_mean(error.mean(-1), action_padding(batch, error), dim=-1)  # (b,)
        loss_world, values = self._objectives(states, world_batch)
        loss = loss + loss_world
        share = torch.ones_like(loss)  # of each sample in the loss
        if labels is not None:
            is_labelled = torch.tensor([float(label is not None) for label in labels], device=loss.device)
            weight = is_labelled * len(labels) / is_labelled.sum().clamp(min=1)
            share = weight if config.text.require_coc else share
            loss = loss * share + config.lambda_text * loss_text * weight
            values |= {"loss_text": (loss_text * weight).mean(), "text_share": is_labelled.mean()}
        if self.proprioception is not None:
            values["state_gate"] = torch.tanh(self.proprioception.gate.value.detach()).mean()
        logged = LoggedValues({"loss_action": (loss_action * share).mean()} | values)
        self._take_log(logged, loss, batch)
        return (loss.mean() if reduction == "mean" else loss), logged

    def get_optim_params(self) -> list[dict[str, Any]]:
        """Parameter groups by learning rate and weight decay; logs the table of what trains."""
        logging.info("what trains:\n" + training_table(self, self.config))
        return optimizer_parameters(self, self.config)

    # Rollout.

    def reset(self) -> None:
        """Forget the episode; LeRobot calls this before each one."""
        super().reset()
        self._last_plan: Sequences | None = None  # what `explain` reads, and the prefix that it makes of it
        self._prefix: Prefix | None = None

    def _plan(self, batch: dict[str, Tensor], noise: Tensor | None = None) -> Tensor:
        world_batch = self._live_batch(batch) if self.config.use_memory else None
        states, _ = self._see(batch, None)
        states = self._inform(states, batch, world_batch, self.config.memory.rollout_source)
        return self.action_head.sample(states, noise)

    def _plan_recorded(
        self, batch: dict[str, Tensor], world_batch: WorldBatch, source: MemorySource | None, noise: Tensor | None
    ) -> Tensor:
        states, _ = self._see(batch, None)
        return self.action_head.sample(self._inform(states, batch, world_batch, source), noise)

    @torch.no_grad()
    def explain(self, batch: dict[str, Tensor] | None = None, max_tokens: int | None = None) -> list[str]:
        """Say why, after the act. Actions are the same whether or not anybody asks.

        Args:
            batch: An observation to explain the plan of. None: the last plan.
            max_tokens: Most tokens; `text.max_tokens` by default.

        Returns:
            A text for each of the b environments.

        Raises:
            RuntimeError: if there is no last plan to explain.
        """
        self.eval()
        self._check_weights()
        text = self.config.text
        if batch is not None:
            self._last_plan, self._prefix = self.inputs(batch, self.device), None
        if self._last_plan is None:
            raise RuntimeError(
                "there is no plan to explain: none was made since reset, or the policy was trained with "
                "lambda_text=0 and keeps none; give explain an observation"
            )
        first_act, end = int(self.inputs.act_ids[0]), self.inputs.tokenizer.eos_token_id
        with self._autocast():
            if self._prefix is None:  # plans keep no cache: few are asked about
                out = self.backbone.model(**self._last_plan.model_inputs(), use_cache=True)
                is_joint = text.mode == "joint_after_act"
                self._prefix = prefix_of(self._last_plan, out.last_hidden_state, out.past_key_values, is_joint)
            said = generate(self.backbone, self._prefix, first_act, end, max_tokens or text.max_tokens)
        return [self.inputs.tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in said]

    def supports_text_generation(self) -> bool:
        """Whether there is anything to hear from `generate_text`; LeRobot's rollouts (0.6.2 and later) ask."""
        return self.config.lambda_text > 0

    def generate_text(self, batch: dict[str, Any]) -> str:
        """Say why, for LeRobot's rollouts (0.6.2 and later); the plan that is acted on stays the last one.

        Args:
            batch: A preprocessed observation of one robot.

        Raises:
            NotImplementedError: if the next subtask is asked for: what this type learned to say is no instruction.
        """
        if batch.get("query_kind") == "next_subtask":
            raise NotImplementedError("qwen_world_fplus says why it acts; it plans no subtasks")
        kept = self._last_plan, self._prefix
        try:
            return self.explain(batch)[0]
        finally:
            self._last_plan, self._prefix = kept

    # How the parts go together.

    def _check_weights(self) -> None:
        if self._awaits_weights:
            raise RuntimeError(
                "weights='checkpoint' says that the backbone's weights are in a checkpoint, and none was loaded; use "
                "from_pretrained, or weights='pretrained' for a new run"
            )

    def _see(self, batch: dict[str, Tensor], labels: list[list[int] | None] | None) -> tuple[Tensor, Tensor | None]:
        """Run the backbone: states at the action tokens (b, h, d), and the text loss (b,) where there are labels."""
        self._check_weights()
        is_joint = self.config.text.mode == "joint_after_act"
        joint = labels if is_joint else None
        b, size = len(batch[self.inputs.cameras[0]]), self.config.micro_batch_size
        if self.training and 0 < size < b:
            parts = []
            for rows in torch.arange(b).split(size):
                sequences = self.inputs(batch, self.device, joint, rows.tolist())
                # Only one part's activations exist at a time: each is computed anew in the backward pass.
                parts.append(checkpoint(self._read, sequences, joint is not None, use_reentrant=False))
            acting = torch.cat([part[0] for part in parts])
            loss_text = None if joint is None else torch.cat([part[1] for part in parts])
        else:
            sequences = self.inputs(batch, self.device, joint)
            acting, loss_text = self._read(sequences, joint is not None)
            if not self.training and self.config.lambda_text > 0:
                self._last_plan, self._prefix = sequences, None
        if labels is not None and not is_joint:
            loss_text = self._separate_text_loss(batch, labels)
        return acting, loss_text

    def _read(self, sequences: Sequences, has_text: bool) -> tuple[Tensor, Tensor | None]:
        """One pass of the backbone: states at the action tokens (b, h, d), and the text loss (b,) if there is text."""
        states = self.backbone.model(**sequences.model_inputs(), use_cache=False).last_hidden_state
        acting = states.gather(1, sequences.act_at[..., None].expand(-1, -1, states.shape[-1]))
        return acting, text_loss(self.backbone, states, sequences) if has_text else None

    def _separate_text_loss(self, batch: dict[str, Tensor], labels: list[list[int] | None]) -> Tensor:
        """A second forward, over the samples that have a label, without action tokens: (b,)."""
        rows = [row for row, label in enumerate(labels) if label is not None]
        # Sharded processes have to run the backbone equally often, labels or not.
        sequences: Sequences = self.inputs(batch, self.device, labels, rows or [0], has_act=False)
        states = self.backbone.model(**sequences.model_inputs(), use_cache=False).last_hidden_state
        loss = text_loss(self.backbone, states, sequences)
        return loss.new_zeros(len(labels)).index_add(0, torch.tensor(rows or [0], device=loss.device), loss)

    def _inform(
        self,
        states: Tensor,
        batch: dict[str, Tensor],
        world_batch: WorldBatch | None,
        source: MemorySource | str | None,
    ) -> Tensor:
        """Let the action states (b, h, d) see the robot's state and the world memory."""
        if self.proprioception is not None:
            states = self.proprioception(states, state_vectors(batch, self.config))
        if self.world.reader is None:
            return states
        memory = self.memory_of(world_batch, source)
        return self.world.reader(states, memory.tokens, memory.is_pad, time=memory.time)

    def _objectives(self, states: Tensor, world_batch: WorldBatch) -> tuple[Tensor | float, dict[str, Tensor]]:
        """Weighted losses per sample (b,) of Prophet and alignment, 0 without any, and what to log."""
        loss_world, values = self._world_objective(world_batch)
        loss_align, align_values = self.world.align(states, world_batch)
        return loss_world + loss_align, values | align_values | self._reader_values(dict.fromkeys(self.readers, ""))

    def _labels_of(self, batch: dict[str, Tensor]) -> list[list[int] | None] | None:
        if self.config.lambda_text == 0:
            return None
        if self.labels is None:
            raise ValueError(
                "lambda_text is positive, but this policy was loaded without its dataset's labels; give `dataset_meta` "
                "to from_pretrained (lerobot-train does)"
            )
        return self.labels(batch["index"])

    @property
    def _watched(self) -> dict[str, nn.Module]:
        watched = {"act_rows": self.backbone.get_input_embeddings().act_rows, "head": self.action_head}
        if self.config.trains_prophet:
            watched["prophet"] = self.world.prophet
        reader = self.world.reader
        return watched if reader is None else watched | {"memory": reader, "gate": reader.gate}

    # Checkpoints.

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """As LeRobot's, without a backbone that can be had from where it came from."""

        def leave_out(module: nn.Module, saved: dict[str, Tensor], prefix: str, metadata: dict) -> None:
            if not self.config.holds_backbone:
                for name in [name for name in saved if is_of_hub(name)]:
                    del saved[name]

        # 0.6.1 gives the gathered weights of a sharded policy; later versions gather them by `state_dict` themselves.
        given = {} if state_dict is None else {"state_dict": dict(state_dict)}
        for each in given.values():
            leave_out(self, each, "", {})
        hook = self.register_state_dict_post_hook(leave_out)
        try:
            super()._save_pretrained(save_directory, **given)
        finally:
            hook.remove()

    @classmethod
    def _load_as_safetensor(
        cls, model: "QwenWorldFPlusPolicy", model_file: str, map_location: str, strict: bool
    ) -> "QwenWorldFPlusPolicy":
        missing, unexpected = load_model(
            model, model_file, strict=False, device=resolve_safetensors_device(map_location)
        )
        missing = sorted(name for name in missing if model.config.holds_backbone or not is_of_hub(name))
        unexpected = _not_tied(model, model_file, unexpected)
        if missing or unexpected:
            raise ValueError(
                f"{model_file} does not fit the policy's config: {len(missing)} weights are missing {missing[:3]}, "
                f"{len(unexpected)} are left over {sorted(unexpected)[:3]}. An option that changes what the policy is "
                "made of (train_backbone, lora.*, head.*, use_memory, use_state, ...) must be the checkpoint's"
            )
        model._awaits_weights = False
        return model

    # Fine-tuning with LeRobot's adapters (`--peft.*`), on a checkpoint of this type.

    def _get_default_peft_targets(self) -> dict[str, Any]:
        """LoRA's usual layers of the language model; what is not the backbone is trained in full and saved."""
        names = "|".join(self.config.lora.targets)
        saved = [name for name in SAVED_WITH_ADAPTERS if name == "act_rows" or getattr(self, name) is not None]
        return {
            "target_modules": rf"backbone\.model\.language_model\.layers\..*\.({names})",
            "modules_to_save": saved,
        }

    def _validate_peft_config(self, peft_config) -> None:
        if self.config.train_backbone == "lora":
            raise ValueError(
                "--peft on a policy with adapters of its own (train_backbone='lora'); go on training those with "
                "--policy.path=CHECKPOINT and without --peft"
            )
        super()._validate_peft_config(peft_config)


def _not_tied(model: nn.Module, model_file: str, names: Iterable[str]) -> list[str]:
    """Names left over of a checkpoint, without those that it holds twice: FSDP gathers tied weights under each name."""
    state = model.state_dict()
    with safe_open(model_file, "pt") as file:
        return [
            name for name in names if name not in state or not torch.equal(file.get_tensor(name), state[name].cpu())
        ]
