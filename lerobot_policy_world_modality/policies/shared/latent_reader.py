"""What a policy sees of the world at one step: recorded (by `index`, from the companion) or live (from frames)."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.utils.constants import OBS_STATE
from torch import Tensor

from world_modality_core.encoders import make_world_encoder
from world_modality_core.encoders.sentence_encoder import SentenceEncoder
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.latents.companion import Companion, open_companion
from world_modality_core.latents.frame_history import FrameHistory
from world_modality_core.latents.gpu_latent_table import GpuLatentTable, row_is_finite
from world_modality_core.latents.latent_normaliser import LatentNormaliser
from world_modality_core.memory.sources import Memory
from world_modality_core.prophet.network import Futures

# Share of the accelerator's free memory that the companion's latents may take without being asked for.
ON_DEVICE_SHARE = 0.1


class Intervention(Protocol):
    """What an evaluation does to the memory of a rollout (docs/evaluation.md)."""

    def __call__(self, memory: Memory, world_batch: WorldBatch, shape: tuple[int, int, int, int]) -> Memory:
        """Look at the memory of a plan, and return it or another in its place.

        Args:
            memory: What the policy would read: tokens (b, n * k * p, d).
            world_batch: What the policy sees.
            shape: (n, k, p, d) of one sample's memory.
        """
        ...


@dataclass
class WorldBatch:
    """Inputs and targets of a batch; a part is None where the policy doesn't use it, or can't know it live.

    Attributes:
        batch_size: b.
        state: (b, s) normalised robot state.
        language: (b, l) task embedding.
        history: (b, t, p, d) standardised latents, oldest first; the last is the current frame.
        history_is_pad: (b, t) True before the start of the episode.
        tokens: (b, n) world tokens of the current frame.
        future: (b, k, p, d) standardised latents to come (recorded only).
        future_tokens: (b, k, n) world tokens to come (recorded only).
        future_is_pad: (b, k) True beyond the end of the episode.
        episode: (b,) episode of each sample (recorded only).
        task: (b,) task of each sample.
        futures: What the Prophet predicts from this sight, once it was asked.
        intervention: What is done to the memory before it is read (live only).
    """

    batch_size: int
    state: Tensor | None = None
    language: Tensor | None = None
    history: Tensor | None = None
    history_is_pad: Tensor | None = None
    tokens: Tensor | None = None
    future: Tensor | None = None
    future_tokens: Tensor | None = None
    future_is_pad: Tensor | None = None
    episode: Tensor | None = None
    task: Tensor | None = None
    futures: Futures | None = None
    intervention: Intervention | None = None

    @property
    def current(self) -> Tensor:
        """(b, p, d) latents of the current frame."""
        return self.history[:, -1]


def check_encoder(chosen: EncoderSpec, companion: EncoderSpec) -> None:
    """Refuse a companion whose latents are not those that the policy's config asks for.

    Args:
        chosen: The policy's spec: of a checkpoint (resolved), or what the user typed (some fields).
        companion: The companion's.

    Raises:
        ValueError: naming the fields that differ.
    """
    if chosen.is_resolved:
        wrong = chosen.differences(companion)
    else:  # only what was typed counts
        typed = {line.split(":")[0] for line in chosen.differences(EncoderSpec())}
        wrong = [line for line in chosen.differences(companion) if line.split(":")[0] in typed]
    if wrong:
        raise ValueError(
            "policy.encoder is not the encoder of the companion dataset (policy != companion): "
            + "; ".join(wrong)
            + ". Precompute a companion with the policy's encoder, or leave policy.encoder empty to take the other's; "
            "cameras that --rename_map renames are renamed for the companion by --policy.companion.rename_map"
        )


def open_training_companion(config: PreTrainedConfig, dataset_meta: LeRobotDatasetMetadata) -> Companion:
    """Open the companion of a training run and hold it against dataset and config.

    Args:
        config: The policy's config.
        dataset_meta: Metadata of the dataset that is trained on.

    Returns:
        The companion.

    Raises:
        ValueError: if no companion is named, it is of another dataset or of another encoder, or its episodes are too
            short for the future that is asked for.
    """
    named = config.companion
    if not named.repo_id and not named.root:
        raise ValueError(
            f"{config.type} needs the world latents of {dataset_meta.repo_id!r}. Make them with "
            f"`wm-precompute --dataset.repo_id={dataset_meta.repo_id} ...`, then name the companion with "
            "--policy.companion.root=FOLDER or --policy.companion.repo_id=ID"
        )
    companion = open_companion(repo_id=named.repo_id, root=named.root, revision=named.revision)
    companion.check_source(dataset_meta)
    if config.encoder.is_set:
        check_encoder(config.encoder, policy_spec(config, companion))
    if getattr(config, "uses_tokens", False) and companion.codebook is None:
        raise ValueError(
            f"{config.type} needs world tokens, but companion {companion.root} has none; write them with "
            "`wm-precompute ... --tokens.n_codes=1024`"
        )
    longest = int((companion.table.bounds[:, 1] - companion.table.bounds[:, 0]).max())
    if config.n_future_steps * config.future_stride >= longest:
        raise ValueError(
            f"n_future_steps={config.n_future_steps} with future_stride={config.future_stride} looks "
            f"{config.n_future_steps * config.future_stride} frames ahead, but the longest episode of companion "
            f"{companion.root} has {longest}; lower one of them"
        )
    return companion


def policy_spec(config: PreTrainedConfig, companion: Companion) -> EncoderSpec:
    """The companion's encoder spec, with its cameras named as the policy names them (`companion.rename_map`).

    Raises:
        ValueError: if the map renames a camera that the companion doesn't have.
    """
    names, spec = config.companion.rename_map, companion.spec
    unknown = sorted(set(names) - set(spec.cameras))
    if unknown:
        raise ValueError(
            f"companion.rename_map renames {unknown}, but companion {companion.root} has the cameras {spec.cameras}"
        )
    return replace(spec, cameras=[names.get(camera, camera) for camera in spec.cameras])


class LatentReader:
    """Everything frozen that a policy looks through; deliberately no `nn.Module`, so none of it is ever saved.

    Args:
        config: The policy's config, resolved.
        space: The policy's world space.
        companion: The companion, in training and offline evaluation.
        n_history: History frames, t.
        use_state: Whether the policy's world side reads the robot's state.
        use_language: Whether it reads the task.
        fps: Steps a second of a robot that shows frames irregularly; None where every call is one step.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        space: LatentNormaliser | None,
        companion: Companion | None,
        *,
        n_history: int,
        use_state: bool,
        use_language: bool,
        fps: float | None = None,
    ):
        self.config = config
        self.use_state, self.use_language, self.fps = use_state, use_language, fps
        self.space = space
        self.companion = companion
        # Set by an evaluation, for as long as its arm runs; training and offline look-ups know nothing of it.
        self.intervention: Intervention | None = None
        self._encoder = None
        self._sentences: SentenceEncoder | None = None
        self._device_table: GpuLatentTable | bool | None = None  # None: not decided yet
        history = [-i * config.history_stride for i in reversed(range(n_history))]
        future = [i * config.future_stride for i in range(1, config.n_future_steps + 1)]
        self._history, self._future = history, future
        spec = config.encoder
        self.frames = FrameHistory(
            spec.cameras,
            n_history,
            config.history_stride,
            spec.n_frames,
            spec.frame_stride,
            tolerance=0 if fps is None else max(1, config.history_stride // 2),
        )

    def remember(self, batch: dict[str, Tensor]) -> None:
        """Remember the current frame: one step after the last, or by the clock where frames come irregularly."""
        self.frames.append(batch, None if self.fps is None else round(time.monotonic() * self.fps))

    def common(self, batch: dict[str, Tensor], device: torch.device) -> WorldBatch:
        """Inputs that are the same recorded and live: state and language.

        Raises:
            ValueError: if the task is missing or empty although the policy uses it.
        """
        state = batch[OBS_STATE] if self.use_state else None
        language = None
        if self.use_language:
            tasks = batch.get("task")
            if not tasks:
                raise ValueError(
                    "use_language=true, but the batch has no `task` (a list of instructions); give the task, or train "
                    "with --policy.use_language=false"
                )
            language = self.sentences(device).encode([tasks] if isinstance(tasks, str) else tasks).to(device)
        known = [value for key, value in batch.items() if key.startswith("observation.")]
        batch_size = len(known[0]) if known else len(batch["task"])
        return WorldBatch(batch_size, state, language)

    def recorded(
        self, batch: dict[str, Tensor], device: torch.device, *, history: bool, future: bool, tokens: bool
    ) -> WorldBatch:
        """Look up a batch of recorded frames by `batch["index"]`.

        Args:
            batch: A training batch.
            device: Where the policy is.
            history: Whether the latents of the history are needed.
            future: Whether the latents of the future are needed.
            tokens: Whether the world tokens, current and future, are needed.

        Returns:
            The sight.

        Raises:
            RuntimeError: if the policy has no companion.
        """
        world_batch = self.common(batch, device)
        world_batch.episode, world_batch.task = batch.get("episode_index"), batch.get("task_index")
        if not (history or future or tokens):
            return world_batch
        if self.companion is None:
            raise RuntimeError(
                "this policy was loaded without its companion dataset, which the loss needs; give `dataset_meta` to "
                "from_pretrained (lerobot-train does), or call select_action / predict_action_chunk"
            )
        index = batch["index"]
        if history or future:
            n = len(self._history) if history else 0
            latents, is_pad = self._gather(index, self._history * history + self._future * future, device)
            latents = self.space.standardise_rows(latents)
            if history:
                # Contiguous, as where only the history is read: kernels sum in the order of the memory layout.
                world_batch.history, world_batch.history_is_pad = latents[:, :n].contiguous(), is_pad[:, :n]
            if future:
                world_batch.future, world_batch.future_is_pad = latents[:, n:], is_pad[:, n:]
        if tokens:
            codes, is_pad = self.companion.table.gather_tokens(index.cpu(), [0, *self._future])
            codes, is_pad = codes.to(device, non_blocking=True), is_pad.to(device, non_blocking=True)
            world_batch.tokens, world_batch.future_tokens, world_batch.future_is_pad = (
                codes[:, 0],
                codes[:, 1:],
                is_pad[:, 1:],
            )
        return world_batch

    def live(self, batch: dict[str, Tensor], device: torch.device, *, latents: bool, tokens: bool) -> WorldBatch:
        """Encode the frames remembered so far, ending at the current one (see `frames`).

        Args:
            batch: The current observation.
            device: Where the policy is.
            latents: Whether the latents of the history are needed.
            tokens: Whether the current world tokens are needed.

        Returns:
            The sight; nothing of the future is known.
        """
        world_batch = self.common(batch, device)
        world_batch.intervention = self.intervention
        if not (tokens or latents):
            return world_batch
        values, is_pad = self.frames.latents(self.encoder(device))
        values = values.to(device)
        if latents:
            world_batch.history, world_batch.history_is_pad = self.space.standardise(values), is_pad.to(device)
        if tokens:
            world_batch.tokens = self.space.codebook.assign(values[:, -1])
        if not batch.get("task"):
            return world_batch
        numbers = {name: i for i, name in enumerate(dict.fromkeys(batch["task"]))}
        world_batch.task = torch.tensor([numbers[name] for name in batch["task"]], device=device)
        return world_batch

    def encoder(self, device: torch.device):
        """The world encoder, built on first use."""
        if self._encoder is None:
            # Building a network draws weights before it loads its own: a seeded rollout must not notice.
            with torch.random.fork_rng(devices=[]):
                self._encoder = make_world_encoder(self.config.encoder, pca=self.space.pca, device=device)
        return self._encoder

    def sentences(self, device: torch.device) -> SentenceEncoder:
        """The sentence encoder, built on first use."""
        if self._sentences is None:
            language = self.config.language
            with torch.random.fork_rng(devices=[]):
                self._sentences = SentenceEncoder(language.model_id, revision=language.revision, device=device)
        return self._sentences

    def _gather(self, index: Tensor, offsets: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
        if self._uses_device_table(device):
            return self._device_table.gather(index.to(device), offsets)
        # The trainer has just read the last step's loss, so that this waits for the copy of the batch only.
        latents, is_pad = self.companion.table.gather(index.cpu(), offsets)
        check_finite(self.companion, index, offsets, latents, is_pad)
        if device.type == "cuda":
            latents, is_pad = latents.pin_memory(), is_pad.pin_memory()
        return latents.to(device, non_blocking=True), is_pad.to(device, non_blocking=True)

    def _uses_device_table(self, device: torch.device) -> bool:
        """Decide, once, whether the latents live on the device: there a step's windows cost no wait for the host."""
        if self._device_table is None:
            table, chosen = self.companion.table, self.config.companion.on_device
            if chosen is None:
                free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
                chosen = table.latents.nbytes <= ON_DEVICE_SHARE * free
            # A row that isn't finite must be reported when, and only when, it is used: the host's gather can.
            self._device_table = chosen and not len(table.bad_rows()) and GpuLatentTable(table, device)
        return bool(self._device_table)


def check_finite(companion: Companion, index: Tensor, offsets: list[int], latents: Tensor, is_pad: Tensor) -> None:
    """Refuse latents that are not finite; zero them where they are padding, which nothing reads.

    Args:
        companion: Where they come from.
        index: (b,) frames.
        offsets: The w offsets gathered.
        latents: (b, w, p * d) float16, on the CPU; changed in place.
        is_pad: (b, w) True at padding.

    Raises:
        ValueError: naming the first such row of the companion.
    """
    is_bad = ~row_is_finite(latents)
    if not is_bad.any():
        return
    used = is_bad & ~is_pad
    if used.any():
        sample, place = (int(i) for i in used.nonzero()[0])
        row = int(index[sample]) + offsets[place]
        raise ValueError(
            f"row {row} of companion {companion.root} (episode {int(companion.table.episode_index[row])}) holds NaN or "
            "Inf; encode that episode again: run wm-precompute with the same options into a new folder"
        )
    latents[is_bad] = 0.0
