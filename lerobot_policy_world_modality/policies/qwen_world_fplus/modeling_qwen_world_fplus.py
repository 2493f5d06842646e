"""qwen_world_fplus: a Qwen VLM that acts from the states of its action tokens (docs/qwen_world_fplus.md).

    images, instruction, <ACT_0> ... <ACT_{h-1}>  ->  backbone  ->  states at <ACT_i>  (+ robot's state, gated)
        ->  gated cross-attention to the world memory  ->  MSE or flow head  ->  action chunk

Nothing that is generated as text reaches an action: text follows the action tokens, which attend to nothing after them.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from pathlib import Path
from typing import Any

import torch
from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.policies import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_STATE
from lerobot.utils.device_utils import resolve_safetensors_device
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lerobot_policy_world_modality.hub.on_hub import OnHub
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
from lerobot_policy_world_modality.policies.qwen_world_fplus.world_parts import QwenWorld, StepCount
from lerobot_policy_world_modality.policies.shared.latent_reader import (
    LatentReader,
    WorldBatch,
    open_training_companion,
    policy_spec,
)
from lerobot_policy_world_modality.policies.shared.memory_filling import predict_futures
from lerobot_policy_world_modality.policies.shared.prophet_start import check_starts, start_prophet
from lerobot_policy_world_modality.policies.shared.training_log import TrainingLog
from world_modality_core.configs import MemorySource
from world_modality_core.prophet.logged_values import LoggedValues
from world_modality_core.prophet.losses import masked_mean


class QwenWorldFPlusPolicy(OnHub, PreTrainedPolicy):
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
        companion = None
        if dataset_meta is not None:
            config.fps = float(dataset_meta.fps)
        if dataset_meta is not None and config.has_world:
            companion = open_training_companion(config, dataset_meta)
            config.encoder = policy_spec(config, companion)
        elif config.has_world and not config.encoder.is_resolved:
            raise ValueError(
                "qwen_world_fplus without a checkpoint or a dataset does not know its world latents' shape; load it "
                "with --policy.path=CHECKPOINT, or train it with lerobot-train and --policy.companion.root=FOLDER"
            )
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
        self._no_split_modules = list(self.backbone._no_split_modules)  # what FSDP shards
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
        self.world: QwenWorld | StepCount = StepCount()
        self.latent_reader: LatentReader | None = None
        if config.has_world:
            # Backbone and head have drawn their initial weights: with one seed, E0 to E4 start from the same ones.
            with torch.random.fork_rng(devices=[]):
                self._build_world(companion, d)
        if companion is not None:
            start_prophet(config, self.world.prophet, self.world.space, dataset_stats or dataset_meta.stats)
        self._step = 0
        self.register_load_state_dict_post_hook(lambda policy, _: policy._read_step())
        self._log = TrainingLog(config.metrics_file, config.metrics_every)
        self.reset()

    def _build_world(self, companion, d: int) -> None:
        config = self.config
        use_language = config.prophet.use_language
        self.latent_reader = LatentReader(
            config,
            None,
            companion,
            n_history=config.n_history_steps,
            use_state=config.prophet.use_state,
            use_language=use_language,
            fps=config.fps if config.frame_clock == "wall" else None,
        )
        if use_language and config.language.dim == 0:
            config.language.dim = self.latent_reader.sentences(torch.device("cpu")).dim
        config.prophet.d_model = config.prophet.d_model or 256
        self.world = QwenWorld(config, d)
        if companion is not None:
            self.world.space.fill(companion.mean, companion.std, companion.pca, None)
        self.latent_reader.space = self.world.space

    # Training.

    def forward(
        self, batch: dict[str, Tensor], reduction: str = "mean", source: MemorySource | str | None = None
    ) -> tuple[Tensor, LoggedValues]:
        """Compute the training loss.

        Args:
            batch: A preprocessed batch with images, `action` (b, h, a), `action_is_pad` (b, h), `index` (b,), `task`.
            reduction: "mean", or "none" for LeRobot's sample weighting.
            source: Memory source, for offline interventions; None for the training source.

        Returns:
            Loss, () or (b,), and the values to log (docs/qwen_world_fplus.md).

        Raises:
            ValueError: if `reduction` is unknown, or something that the loss needs is missing.
        """
        config = self.config
        if reduction not in ("mean", "none"):
            raise ValueError(f"reduction={reduction!r}: expected 'mean' or 'none'")
        labels = self._labels_of(batch)
        world_batch = self._recorded_batch(batch)
        states, loss_text = self._see(batch, labels)
        states = self._inform(states, batch, world_batch, source)
        error = self.action_head.error(states, batch[ACTION])
        is_pad = batch.get("action_is_pad")
        is_pad = torch.zeros(error.shape[:2], dtype=torch.bool, device=error.device) if is_pad is None else is_pad
        loss = loss_action = masked_mean(error.mean(-1), is_pad, dim=-1)  # (b,)
        values = {}
        if self.latent_reader is not None:
            loss_world, values = self.world.objectives(states, world_batch)
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
        if self.training:
            self._log.watch(self._watched)
            self._log.take(logged)
        return (loss.mean() if reduction == "mean" else loss), logged

    def update(self) -> None:
        """Count an optimiser step; LeRobot's trainer calls this after each."""
        self._step += 1
        self.world.train_step.add_(1)
        self._log.write(self._step)

    def get_optim_params(self) -> list[dict[str, Any]]:
        """Parameter groups by learning rate and weight decay; logs the table of what trains."""
        logging.info("what trains:\n" + training_table(self, self.config))
        return optimizer_parameters(self, self.config)

    # Rollout.

    def reset(self) -> None:
        """Forget the episode; LeRobot calls this before each one."""
        self._queue: deque[Tensor] = deque()
        self._n_plans = 0
        self._prefix: Prefix | None = None
        if self.latent_reader is not None:
            self.latent_reader.frames.clear()

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """Return the next action of the plan, planning anew every `n_action_steps`.

        Args:
            batch: The current observation of b environments: images (b, c, h, w), state (b, s), `task`.

        Returns:
            (b, a) normalised action.
        """
        self.eval()
        if not self._queue:
            chunk = self.predict_action_chunk(batch, **kwargs)
            self._queue.extend(chunk[:, : self.config.n_action_steps].unbind(1))
        else:
            self._remember_frame(batch)
        return self._queue.popleft()

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], noise: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Remember the current frame and plan from it.

        Args:
            batch: As for `select_action`.
            noise: (b, h, a) that the flow head starts from; drawn if None.

        Returns:
            (b, h, a) normalised actions.
        """
        self.eval()
        self._remember_frame(batch)
        self._n_plans += 1
        world_batch = None
        if self.config.use_memory:
            world_batch = self.latent_reader.live(
                batch, self.device, latents=self.config.needs_live_history, tokens=False
            )
        with self._autocast():
            states, _ = self._see(batch, None, remembers=self.config.lambda_text > 0)
            states = self._inform(states, batch, world_batch, self.config.memory.rollout_source)
            return self.action_head.sample(states, noise)

    @torch.no_grad()
    def explain(self, batch: dict[str, Tensor] | None = None, max_tokens: int | None = None) -> list[str]:
        """Say why, after the act. Actions are the same whether or not anybody asks.

        Args:
            batch: An observation to plan from first. None: about the last plan, whose images and prompt are not read
                again.
            max_tokens: Most tokens; `text.max_tokens` by default.

        Returns:
            A text for each of the b environments.

        Raises:
            RuntimeError: if there is no last plan to explain.
        """
        self.eval()
        text = self.config.text
        with self._autocast():
            if batch is not None:
                self._see(batch, None, remembers=True)
            if self._prefix is None:
                raise RuntimeError(
                    "there is no plan to explain: none was made since reset, or the policy was trained with "
                    "lambda_text=0 and keeps none; give explain an observation"
                )
            first_act, end = int(self.inputs.act_ids[0]), self.inputs.tokenizer.eos_token_id
            said = generate(self.backbone, self._prefix, first_act, end, max_tokens or text.max_tokens)
        return [self.inputs.tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in said]

    @torch.no_grad()
    def plan_recorded(
        self, batch: dict[str, Tensor], source: MemorySource | str | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """Plan from recorded frames, with the memory of any source; for offline interventions.

        Args:
            batch: A preprocessed batch of the dataset, with `index` (b,).
            source: Memory source, `oracle` included; None for the training source.
            noise: (b, h, a) that the flow head starts from; drawn if None.

        Returns:
            (b, h, a) normalised actions.
        """
        self.eval()
        with self._autocast():
            states, _ = self._see(batch, None)
            states = self._inform(states, batch, self._recorded_batch(batch, everything=True), source)
            return self.action_head.sample(states, noise)

    @torch.no_grad()
    def predict_latents(self, batch: dict[str, Tensor]) -> Tensor:
        """Predict future latents of recorded frames: (b, k, p, d) as the companion stores them."""
        world_batch = self._recorded_batch(batch, everything=True)
        return self.world.space.restore(predict_futures(self.world.prophet, world_batch).best())

    @property
    def device(self) -> torch.device:
        """Where the policy is."""
        return self.world.train_step.device

    # How the parts go together.

    def _see(
        self, batch: dict[str, Tensor], labels: list[list[int] | None] | None, remembers: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Run the backbone: states at the action tokens (b, h, d), and the text loss (b,) where there are labels."""
        if self._awaits_weights:
            raise RuntimeError(
                "weights='checkpoint' says that the backbone's weights are in a checkpoint, and none was loaded; use "
                "from_pretrained, or weights='pretrained' for a new run"
            )
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
            acting, loss_text = self._read(sequences, joint is not None, remembers)
        if labels is not None and not is_joint:
            loss_text = self._separate_text_loss(batch, labels)
        return acting, loss_text

    def _read(self, sequences: Sequences, has_text: bool, remembers: bool = False) -> tuple[Tensor, Tensor | None]:
        """One pass of the backbone: states at the action tokens (b, h, d), and the text loss (b,) if there is text."""
        out = self.backbone.model(**sequences.model_inputs(), use_cache=remembers)
        states = out.last_hidden_state
        if remembers:
            is_joint = self.config.text.mode == "joint_after_act"
            self._prefix = prefix_of(sequences, states, out.past_key_values, is_joint)
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
            states = self.proprioception(states, batch[OBS_STATE])
        if self.latent_reader is None:
            return states
        source = self.config.memory.source if source is None else MemorySource(source)
        return self.world.inform(
            states, world_batch, source, self._step, self._step if self.training else self._n_plans
        )

    def _labels_of(self, batch: dict[str, Tensor]) -> list[list[int] | None] | None:
        if self.config.lambda_text == 0:
            return None
        if self.labels is None:
            raise ValueError(
                "lambda_text is positive, but this policy was loaded without its dataset's labels; give `dataset_meta` "
                "to from_pretrained (lerobot-train does)"
            )
        return self.labels(batch["index"])

    def _recorded_batch(self, batch: dict[str, Tensor], everything: bool = False) -> WorldBatch | None:
        if self.latent_reader is None:
            return None
        config = self.config
        return self.latent_reader.recorded(
            batch,
            self.device,
            history=everything or config.needs_history,
            future=everything or config.needs_future,
            tokens=False,
        )

    def _remember_frame(self, batch: dict[str, Tensor]) -> None:
        if self.latent_reader is not None and self.config.needs_live_history:
            self.latent_reader.remember(batch)

    @property
    def _watched(self) -> dict[str, nn.Module]:
        watched = {"act_rows": self.backbone.get_input_embeddings().act_rows, "head": self.action_head}
        return watched | ({} if self.latent_reader is None else self.world.watched)

    def _autocast(self) -> contextlib.AbstractContextManager:
        # In training accelerate does this, told by the same field.
        if self.config.dtype != "bfloat16":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _read_step(self) -> None:
        self._step = int(self.world.train_step)

    # Checkpoints.

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """As LeRobot's, without a backbone that can be had from where it came from."""
        if not self.config.holds_backbone:
            state_dict = self.state_dict() if state_dict is None else state_dict
            state_dict = {name: value for name, value in state_dict.items() if not is_of_hub(name)}
        super()._save_pretrained(save_directory, state_dict)

    @classmethod
    def _load_as_safetensor(
        cls, model: QwenWorldFPlusPolicy, model_file: str, map_location: str, strict: bool
    ) -> QwenWorldFPlusPolicy:
        missing, unexpected = load_model(
            model, model_file, strict=False, device=resolve_safetensors_device(map_location)
        )
        missing = sorted(name for name in missing if model.config.holds_backbone or not is_of_hub(name))
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
