"""smolvla_world: LeRobot's SmolVLA whose action path reads predicted futures (docs/smolvla_world.md).

SmolVLA's own `forward`, sampling and denoising run as they are. What is added happens before them (look at the world,
foresee, fill the memory) and inside layers that were swapped (`smolvla_fusion`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from torch import Tensor, nn

from lerobot_policy_world_modality.hub.on_hub import OnHub
from lerobot_policy_world_modality.policies.shared.base_weights import load_base_weights
from lerobot_policy_world_modality.policies.shared.latent_reader import (
    LatentReader,
    WorldBatch,
    open_training_companion,
    policy_spec,
)
from lerobot_policy_world_modality.policies.shared.memory_filling import (
    WorldSide,
    draws,
    fill_memory,
    gate_parameters,
    hold_gates,
    memory_shape,
    optimizer_groups,
    predict_futures,
    prophet_objective,
    reader_values,
)
from lerobot_policy_world_modality.policies.shared.prophet_start import check_starts, start_prophet
from lerobot_policy_world_modality.policies.shared.training_log import TrainingLog
from lerobot_policy_world_modality.policies.smolvla_world.configuration_smolvla_world import SmolVLAWorldConfig
from lerobot_policy_world_modality.policies.smolvla_world.fusion import MemoryTokens, read_at_layer, read_at_prefix
from world_modality_core.configs import MemorySource
from world_modality_core.memory.gated_attention import GatedCrossAttention
from world_modality_core.memory.injected_layer import MemoryReader, WorldInjectedLinear
from world_modality_core.memory.sources import Memory
from world_modality_core.prophet.logged_values import LoggedValues

# The module that each fusion lives in: trained in full, and saved with an adapter.
SAVED_WITH_ADAPTERS = {
    "f1": "action_out_proj", "f2": "action_time_mlp_out", "f3a": "world_tokens", "f3b": "world_prefix_reader"
}  # fmt: skip


class SmolVLAWorldPolicy(OnHub, SmolVLAPolicy):
    """SmolVLA + Model F memory.

    Args:
        config: The config. In training its encoder and language fields are filled in from the companion.
        dataset_stats: Given by LeRobot; normalisation happens in the processors, so it is not used.
        dataset_meta: Metadata of the training dataset; None at evaluation, where everything is computed live.

    Raises:
        ValueError: if the companion, the dataset or the checkpoint of `init_from` don't fit, before anything is built
            that takes long.
    """

    config_class = SmolVLAWorldConfig
    name = "smolvla_world"
    # FSDP shards what is called as a module. SmolVLA calls the parts of a decoder layer, never the layer itself.
    _no_split_modules = ["SmolVLMEncoderLayer", "LlamaMLP"]

    def __init__(
        self,
        config: SmolVLAWorldConfig,
        dataset_stats: dict[str, dict[str, Tensor]] | None = None,
        dataset_meta: LeRobotDatasetMetadata | None = None,
        **kwargs: Any,
    ):
        if config.init_from and config.pretrained_path:
            raise ValueError(
                f"init_from={config.init_from!r} starts a new run, pretrained_path={str(config.pretrained_path)!r} "
                "goes on from a checkpoint of this type; give one of them"
            )
        companion = None
        if dataset_meta is not None:
            check_tasks(dataset_meta)
            config.fps = float(dataset_meta.fps)
        if dataset_meta is not None and config.has_world:
            companion = open_training_companion(config, dataset_meta)
            config.encoder = policy_spec(config, companion)
        elif config.has_world and not config.encoder.is_resolved:
            raise ValueError(
                "smolvla_world without a checkpoint or a dataset does not know its world latents' shape; load it with "
                "--policy.path=CHECKPOINT, or train it with lerobot-train and --policy.companion.root=FOLDER"
            )
        if config.prophet.use_state and config.robot_state_feature is None:
            raise ValueError("prophet.use_state=true needs a feature `observation.state`, which the dataset hasn't")
        check_starts(config, companion)
        super().__init__(config, **kwargs)
        self._log = TrainingLog(config.metrics_file, config.metrics_every)
        self._step = 0
        # SmolVLA has drawn its initial weights already, and goes on drawing noise from the state that it left.
        with torch.random.fork_rng(devices=[]):
            self._build_world(companion)
        if companion is not None:
            start_prophet(config, self.world.prophet, self.world.space, dataset_stats or dataset_meta.stats)
        if config.init_from:
            load_base_weights(self, config.init_from, config.init_revision)
            config.initialised_from, config.init_from = config.init_from, None
        self.reset()

    def _build_world(self, companion) -> None:
        config = self.config
        use_language = config.prophet.use_language
        if config.has_world:
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
        self.world = WorldSide(config)
        self.world.register_load_state_dict_post_hook(lambda *_: self._read_step())
        if not config.has_world:
            return
        if companion is not None:
            self.world.space.fill(companion.mean, companion.std, companion.pca, None)
        self.latent_reader.space = self.world.space
        self.memory_shape = memory_shape(config)
        n, k, p, d = self.memory_shape
        vlm = self.model.vlm_with_expert
        d_expert, d_prefix = vlm.expert_hidden_size, vlm.config.text_config.hidden_size

        def reader(width: int) -> GatedCrossAttention:
            return GatedCrossAttention(width, d, n * k * p, config.memory.n_heads, config.memory.gate)

        fusion = config.fusion
        if fusion.f1:
            read_at_layer(self.model, "action_out_proj", reader(d_expert), at="input")
        if fusion.f2:
            read_at_layer(self.model, "action_time_mlp_out", reader(d_expert), at="output")
        if fusion.f3a or fusion.f3b:
            tokens = (d, n * k * p, d_prefix, d_expert, config.memory.n_heads, config.memory.gate)
            read_at_prefix(vlm, reader(d_prefix) if fusion.f3b else None, MemoryTokens(*tokens) if fusion.f3a else None)

    # Training.

    def forward(
        self, batch: dict[str, Tensor], noise: Tensor | None = None, time: Tensor | None = None, reduction: str = "mean"
    ) -> tuple[Tensor, LoggedValues]:
        """Compute SmolVLA's flow-matching loss, its action path reading the memory, and the Prophet's.

        Args:
            batch: A preprocessed batch, with `index` (b,).
            noise: (b, h, max_action_dim) noise; drawn if None.
            time: (b,) flow-matching time; drawn if None.
            reduction: "mean", or "none" for LeRobot's sample weighting.

        Returns:
            Loss, () or (b,), and the values to log (docs/metrics.md).
        """
        if not self.config.has_world:
            loss, values = super().forward(batch, noise, time, reduction)
            logged = LoggedValues(floats=_base_values(values))
            self._log.take(logged)
            return loss, logged
        world_batch = self._recorded_batch(batch)
        with self._reading(world_batch, self.config.memory.source):
            loss, values = super().forward(batch, noise, time, reduction)
            logged = LoggedValues(self._fusion_values(), floats=_base_values(values))
        if self.config.trains_prophet:
            loss_world, skill = prophet_objective(self.world.prophet, world_batch)
            logged.add({"loss_world": loss_world.mean()} | skill)
            if self.config.world_weight > 0:
                loss = loss + self.config.world_weight * (loss_world if reduction == "none" else loss_world.mean())
        if self.training:
            self._log.watch({"prophet": self.world.prophet} | self._readers())
            self._log.take(logged)
        return loss, logged

    def update(self) -> None:
        """Count an optimiser step; LeRobot's trainer calls this after each."""
        self._step += 1
        self.world.train_step += 1
        self._log.write(self._step)

    def get_optim_params(self) -> list[dict[str, Any]]:
        """SmolVLA's parameters as SmolVLA trains them; gates with a learning rate of their own and no weight decay."""
        gates = gate_parameters(self.modules())
        kinds: dict[str, list[nn.Parameter]] = {"base": [], "gate": []}
        for parameter in self.parameters():
            if parameter.requires_grad:
                kinds["gate" if id(parameter) in gates else "base"].append(parameter)
        lr = self.config.optimizer_lr * self.config.memory.gate_lr_factor
        return optimizer_groups(kinds, {"base": {}, "gate": {"lr": lr, "weight_decay": 0.0}})

    # Rollout.

    def reset(self) -> None:
        """Forget the episode; LeRobot calls this before each one."""
        super().reset()
        self._n_plans = 0
        if getattr(self, "latent_reader", None) is not None:
            self.latent_reader.frames.clear()

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], noise: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Return the next action of the plan (b, a), planning anew every `n_action_steps`; see SmolVLA's."""
        self._remember_frame(batch)
        with self._autocast():
            return super().select_action(batch, noise, **kwargs)

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], noise: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Remember the current frame and plan from it: (b, h, a) normalised actions. Takes SmolVLA's RTC arguments."""
        self._remember_frame(batch)
        with self._autocast():
            return super().predict_action_chunk(batch, noise, **kwargs)

    @torch.no_grad()
    def plan_recorded(
        self, batch: dict[str, Tensor], source: MemorySource | str | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """Plan from recorded frames, with the memory of any source; for offline interventions.

        Args:
            batch: A preprocessed batch of the dataset, with `index` (b,).
            source: Memory source, `oracle` included; None for the training source.
            noise: (b, h, max_action_dim) noise to start from; drawn if None.

        Returns:
            (b, h, a) normalised actions.
        """
        self.eval()
        source = self.config.memory.source if source is None else MemorySource(source)
        if not self.config.reads_memory:
            with self._autocast():
                return super()._get_action_chunk(self._prepare_batch(batch), noise)
        with self._reading(self._recorded_batch(batch, everything=True), source), self._autocast():
            return super()._get_action_chunk(self._prepare_batch(batch), noise)

    @torch.no_grad()
    def predict_latents(self, batch: dict[str, Tensor]) -> Tensor:
        """Predict future latents of recorded frames: (b, k, p, d) as the companion stores them."""
        world_batch = self._recorded_batch(batch, everything=True)
        return self.world.space.restore(predict_futures(self.world.prophet, world_batch).best())

    def _get_action_chunk(self, batch: dict[str, Tensor], noise: Tensor | None = None, **kwargs: Any) -> Tensor:
        # Where SmolVLA plans, whoever asked: select_action, predict_action_chunk, real-time chunking.
        if not self.config.reads_memory:
            return super()._get_action_chunk(batch, noise, **kwargs)
        self._n_plans += 1
        world_batch = self.latent_reader.live(batch, self._device, latents=self.config.needs_live_history, tokens=False)
        with self._reading(world_batch, self.config.memory.rollout_source):
            return super()._get_action_chunk(batch, noise, **kwargs)

    # Fine-tuning with adapters.

    def wrap_with_peft(self, peft_config=None, peft_cli_overrides: dict | None = None):
        """As LeRobot's; an adapter on `init_from`'s checkpoint names that checkpoint as its base."""
        if self.config.initialised_from and not self.config.pretrained_path:
            self.name_or_path = self.config.initialised_from
        return super().wrap_with_peft(peft_config, peft_cli_overrides)

    def _get_default_peft_targets(self) -> dict[str, Any]:
        """SmolVLA's targets without the swapped layers; those and the world are trained in full and saved."""
        targets = super()._get_default_peft_targets()
        saved = ["world"] + [SAVED_WITH_ADAPTERS[fusion] for fusion in self.config.fusion.names]
        return targets | {
            "target_modules": rf"(?!.*({'|'.join(saved)})$)({targets['target_modules']})",
            "modules_to_save": targets["modules_to_save"] + saved,
        }

    def _validate_peft_config(self, peft_config) -> None:
        if not self.config.initialised_from:
            super()._validate_peft_config(peft_config)

    # How the parts go together.

    @property
    def _device(self) -> torch.device:
        return self.world.train_step.device

    def _remember_frame(self, batch: dict[str, Tensor]) -> None:
        if self.config.needs_live_history:
            self.latent_reader.remember(batch)

    def _recorded_batch(self, batch: dict[str, Tensor], everything: bool = False) -> WorldBatch:
        config = self.config
        return self.latent_reader.recorded(
            batch,
            self._device,
            history=everything or config.needs_history,
            future=everything or config.needs_future,
            tokens=False,
        )

    @contextlib.contextmanager
    def _reading(self, world_batch: WorldBatch, source: MemorySource) -> Iterator[None]:
        """Fill the memory for one forward pass or one sampled chunk, and drop it afterwards."""
        readers = self._memory_holders()
        if readers:
            config = self.config.memory
            hold_gates(self.modules(), self._step < config.gate_warmup_steps)
            count = self._step if self.training else self._n_plans
            generator = draws(config.seed, count, self._device)
            memory: Memory = fill_memory(
                self.world.prophet, world_batch, source, config, self.memory_shape, generator, self._step
            )
            for reader in readers:
                reader.remember(memory)
        try:
            yield
        finally:
            for reader in readers:
                reader.forget()

    def _memory_holders(self) -> list[MemoryReader | MemoryTokens]:
        """The modules that must be given the memory; found anew each time, since adapters wrap and copy modules."""
        return [
            module
            for name, module in self.named_modules()
            if isinstance(module, MemoryReader | MemoryTokens) and "original_module" not in name
        ]

    def _readers(self) -> dict[str, nn.Module]:
        """Each fusion's module that reads, by the fusion's name."""
        found: dict[str, nn.Module] = {}
        for name, module in self.named_modules():
            if "original_module" in name:
                continue
            if isinstance(module, WorldInjectedLinear):
                found["f1" if module.at == "input" else "f2"] = module.world_reader.attention
            elif isinstance(module, MemoryTokens):
                found["f3a"] = module
            elif isinstance(module, MemoryReader) and "world_prefix_reader" in name:
                found["f3b"] = module.attention
        return found

    def _fusion_values(self) -> dict[str, Tensor]:
        values = {}
        for fusion, reader in self._readers().items():
            if isinstance(reader, MemoryTokens):
                values[f"world_gate_{fusion}"] = reader.last_gate
            else:
                values |= reader_values(reader, self.memory_shape, f"_{fusion}")
        return values

    def _autocast(self) -> contextlib.AbstractContextManager:
        # In training accelerate does this, told by the same field.
        if self.config.dtype != "bfloat16":
            return contextlib.nullcontext()
        return torch.autocast(next(self.parameters()).device.type, torch.bfloat16)

    def _read_step(self) -> None:
        self._step = int(self.world.train_step)


def check_tasks(dataset_meta: LeRobotDatasetMetadata) -> None:
    """Refuse a dataset with a task that has no text: SmolVLA is told what to do in words.

    Raises:
        ValueError: naming the task.
    """
    blank = [int(row.task_index) for task, row in dataset_meta.tasks.iterrows() if not str(task).strip()]
    if blank or not len(dataset_meta.tasks):
        which = f"task_index {blank} of {dataset_meta.repo_id!r} has no text" if blank else "the dataset has no tasks"
        raise ValueError(f"{which}; smolvla_world needs an instruction for every episode (see lerobot-edit-dataset)")


def _base_values(values: dict[str, float]) -> dict[str, float]:
    """SmolVLA's logged values, its `loss` under the name that it has for all our types."""
    return {("loss_action" if name == "loss" else name): value for name, value in values.items()}
