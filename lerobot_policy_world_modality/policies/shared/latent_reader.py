"""Where a policy's world batch comes from: recorded (by `index`, from the companion) or live (from frames)."""

from __future__ import annotations

import time

import numpy as np
import torch
from lerobot.utils.constants import OBS_STATE
from torch import Tensor

from lerobot_policy_world_modality.compatibility import leaving_out
from lerobot_policy_world_modality.policies.shared.kept_frames import KEPT
from lerobot_policy_world_modality.policies.shared.vectors import state_vectors
from lerobot_policy_world_modality.policies.shared.world_batch import Intervention, WorldBatch
from lerobot_policy_world_modality.policies.shared.world_options import WorldOptions
from world_modality_core.encoders import make_world_encoder
from world_modality_core.encoders.sentence_encoder import SentenceEncoder
from world_modality_core.io.errors import ConfigError
from world_modality_core.latents.companion import Companion
from world_modality_core.latents.frame_history import FrameHistory
from world_modality_core.latents.gpu_latent_table import GpuLatentTable, row_is_finite
from world_modality_core.latents.latent_normaliser import LatentNormaliser
from world_modality_core.latents.past_frames import RecordedPast

# Share of the accelerator's free memory that the companion's latents may take without being asked for.
ON_DEVICE_SHARE = 0.1


class LatentReader:
    """Everything frozen that a policy looks through; deliberately no `nn.Module`, so none of it is ever saved.

    Args:
        config: The policy's config, resolved.
        companion: The companion, in training and offline evaluation.

    Attributes:
        space: The policy's latent normaliser, once it is built.
        now_s: When the frame that is shown next was taken, in seconds of the robot's clock, where the caller knows it
            (`examples/policy_server.py`); None for this machine's clock, or none (`frame_clock`).
        intervention: Set by an evaluation, for as long as its arm runs; training and offline look-ups know nothing of
            it.
        frames: The frames of a running rollout.
    """

    def __init__(self, config: WorldOptions, companion: Companion | None):
        self.config = config
        self.companion = companion
        self.space: LatentNormaliser | None = None
        self.now_s: float | None = None
        self.intervention: Intervention | None = None
        self._encoder = None
        self._sentences: SentenceEncoder | None = None
        self._gpu_table: GpuLatentTable | bool | None = None  # None: not decided yet
        self._history = [-i * config.history_stride for i in reversed(range(config.n_history))]
        self._future = [i * config.future_stride for i in range(1, config.n_future_steps + 1)]
        spec = config.encoder
        self.frames = FrameHistory(
            spec.cameras,
            config.n_history,
            config.history_stride,
            spec.n_frames,
            spec.frame_stride,
            tolerance=max(1, config.history_stride // 2),
            past=self._past_choice,
            every=spec.every,
        )
        self._recorded_past: RecordedPast | None = None
        if config.world_reads_language and config.language.dim == 0:
            config.language.dim = self.sentences(torch.device("cpu")).dim

    def remember(self, batch: dict[str, Tensor]) -> None:
        """Remember the current frame: one step after the last, or by a clock where frames come irregularly."""
        batch = batch | {key.removeprefix(KEPT): value for key, value in batch.items() if key.startswith(KEPT)}
        if self.now_s is None and self.config.clock_fps is None:
            self.frames.append(batch)
        else:
            now_s = time.monotonic() if self.now_s is None else self.now_s
            self.frames.append(batch, round(now_s * self.config.fps))

    def frames_needed(self, times_s: list[float], now_s: float) -> list[int]:
        """Which frames a plan at `now_s` needs to be shown before, by a caller that keeps all that the robot saw.

        Args:
            times_s: When these frames were taken, in seconds of the clock of `now_s`, oldest first.
            now_s: When the frame of the plan was taken.

        Returns:
            Places in `times_s`, oldest first: of the history, of the memory's past, and of what a policy that sees
            several frames (`n_obs_steps`) sees by itself.
        """
        steps = [round(each * self.config.fps) for each in times_s]
        now, chosen = round(now_s * self.config.fps), set()
        if self.config.needs_live_history or self.config.needs_live_tokens:
            chosen.update(self.frames.needed(steps, now))
        if steps and self.config.keeps_frames:  # a policy of LeRobot's
            own = range(now - getattr(self.config, "n_obs_steps", 1) + 1, now)
            chosen.update(min(range(len(steps)), key=lambda i, at=at: abs(steps[i] - at)) for at in own)
        return sorted(chosen)

    def load(self, device: torch.device) -> None:
        """Load what a rollout looks through, so that its first plan takes no longer than the others."""
        if self.config.needs_live_history or self.config.needs_live_tokens:
            self.encoder(device)
        if self.config.world_reads_language:
            self.sentences(device)

    def common(self, batch: dict[str, Tensor], device: torch.device) -> WorldBatch:
        """Inputs that are the same recorded and live: state and language.

        Raises:
            ValueError: if the task is missing or empty although the policy uses it.
        """
        if batch.get(OBS_STATE) is not None and batch[OBS_STATE].ndim == 3:  # a policy that sees n_obs_steps frames
            batch = batch | {OBS_STATE: batch[OBS_STATE][:, -1]}
        state = state_vectors(batch, self.config) if self.config.world_reads_state else None
        language, tasks = None, task_list(batch)
        if self.config.world_reads_language:
            if not tasks:
                raise ValueError(
                    "use_language=true, but the batch has no `task` (a list of instructions); give the task, or train "
                    "with --policy.use_language=false"
                )
            language = self.sentences(device).encode(tasks).to(device)
        # Not the state of the batch: of one number, it has no axis of its own (see `state_vectors`).
        images = [each for key, each in batch.items() if key.startswith("observation.") and key != OBS_STATE]
        known = [batch["index"]] if "index" in batch else [each for each in (state, *images) if each is not None]
        return WorldBatch(len(known[0] if known else tasks), state, language, future_stride=self.config.future_stride)

    def recorded(self, batch: dict[str, Tensor], device: torch.device, everything: bool = False) -> WorldBatch:
        """Look up a batch of recorded frames by `batch["index"]`.

        Args:
            batch: A training batch.
            device: Where the policy is.
            everything: Read history and future even where the policy's training needs neither, since a memory of any
                source may be asked for.

        Raises:
            RuntimeError: if the policy has no companion.
        """
        config = self.config
        history, future = everything or config.needs_history, (everything or config.needs_future) and self._future
        tokens = config.needs_tokens
        world_batch = self.common(batch, device)
        world_batch.episode, world_batch.task = batch.get("episode_index"), batch.get("task_index")
        if not (history or future or tokens):
            return world_batch
        if self.companion is None:
            raise RuntimeError(
                "this policy was loaded without its companion dataset, which the loss needs; give `dataset_meta` to "
                "from_pretrained (lerobot-train does), or call select_action / predict_action_chunk"
            )
        if self._uses_gpu_table(device):
            index = batch["index"].to(device)
        else:
            # This waits for the copy of the batch only: the trainer has just read the last step's loss.
            index = batch["index"].cpu()
            self._refuse_excluded(index)
        if history or future:
            n = len(self._history) if history else 0
            offsets = (self._history if history else []) + (self._future if future else [])
            latents, is_pad, past = self._gather(index, offsets, device)
            latents = self.space.standardise_rows(latents)
            if past is not None:
                n_past = past[0].shape[1]
                world_batch.past, latents = latents[:, :n_past], latents[:, n_past:]
                world_batch.past_is_pad, world_batch.past_age = past
            if history:
                # Contiguous, as where only the history is read: kernels sum in the order of the memory layout.
                world_batch.history, world_batch.history_is_pad = latents[:, :n].contiguous(), is_pad[:, :n]
            if future:
                world_batch.future, world_batch.future_is_pad = latents[:, n:], is_pad[:, n:]
        if tokens:
            offsets = [0, *self._future]
            if self._uses_gpu_table(device):
                codes, is_pad = self._gpu_table.gather_tokens(index, offsets)
            else:
                codes, is_pad = self.companion.table.gather_tokens(index, offsets)
                codes, is_pad = codes.to(device, non_blocking=True), is_pad.to(device, non_blocking=True)
            world_batch.tokens, world_batch.future_tokens, world_batch.future_is_pad = (
                codes[:, 0],
                codes[:, 1:],
                is_pad[:, 1:],
            )
        return world_batch

    def check_excluded(self, batch: dict[str, Tensor]) -> None:
        """Refuse frames of episodes that were left out of the companion, where `recorded` could not do so itself.

        That is where latents are on the device: there one waits for the device to look at a batch's index.

        Args:
            batch: A batch that was looked up.

        Raises:
            ConfigError: naming the episode.
        """
        if self._gpu_table and self.companion.info.excluded:
            self._refuse_excluded(batch["index"].cpu())

    def _refuse_excluded(self, index: Tensor) -> None:
        excluded = self.companion.info.excluded
        if excluded and len(bad := np.intersect1d(self.companion.table.episode_of(index), excluded)):
            raise ConfigError(
                f"episode {bad[0]} has no latents in companion {self.companion.root}, which was written without "
                f"episodes {excluded}: leave them out of training with {leaving_out(excluded)}"
            )

    def live(self, batch: dict[str, Tensor], device: torch.device) -> WorldBatch:
        """Encode the frames remembered so far, ending at the current one (see `frames`).

        Args:
            batch: The current observation.
            device: Where the policy is.

        Returns:
            The world batch; nothing of the future is known.
        """
        world_batch = self.common(batch, device)
        world_batch.intervention = self.intervention
        latents, tokens = self.config.needs_live_history, self.config.needs_live_tokens
        if not (latents or tokens):
            return world_batch
        values, is_pad = self.frames.latents(self.encoder(device))
        values = values.to(device)
        if self._past_choice is not None:
            past, past_is_pad, age = self.frames.past()
            world_batch.past = self.space.standardise(past.to(device))
            world_batch.past_is_pad, world_batch.past_age = past_is_pad.to(device), age.to(device)
        if latents:
            world_batch.history, world_batch.history_is_pad = self.space.standardise(values), is_pad.to(device)
        if tokens:
            world_batch.tokens = self.space.codebook.assign(values[:, -1])
        tasks = task_list(batch)
        numbers = {name: i for i, name in enumerate(dict.fromkeys(tasks))}
        if tasks:
            world_batch.task = torch.tensor([numbers[name] for name in tasks], device=device)
        return world_batch

    def encoder(self, device: torch.device):
        """The world encoder, built on first use, and again where the policy has moved."""
        if self._encoder is None or self._encoder.device != device:
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

    @property
    def _past_choice(self) -> tuple[int, int, str] | None:
        """Frames, stride and choice of the past in the memory."""
        if not self.config.n_past:
            return None
        past = self.config.memory.past
        return past.n_frames, past.stride, past.select

    def _gather(
        self, index: Tensor, offsets: list[int], device: torch.device
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """Read windows, the memory's past before them, in one go.

        Args:
            index: (b,) frames; on the device if the latents are there, else on the CPU.
            offsets: Frames from there.
            device: Where the policy is.

        Returns:
            Latents (b, t + w, p * d), is_pad (b, w) of the windows, and is_pad and age (b, t) of the past.
        """
        table = self.companion.table
        past_rows, past = None, None
        if self._past_choice is not None:
            if self._recorded_past is None:
                self._recorded_past = RecordedPast(table.latents, table.bounds, *self._past_choice, index.device)
            past_rows, *past = self._recorded_past.rows(index)
        if self._uses_gpu_table(device):
            rows, is_pad = self._gpu_table.rows(index, offsets)
            rows = rows if past_rows is None else torch.cat([past_rows, rows], dim=1)
            return self._gpu_table.latents[rows], is_pad, past
        rows, is_pad = table.rows(index, offsets)
        is_pad = all_pad = torch.from_numpy(is_pad)
        if past is not None:
            rows = np.concatenate([past_rows.numpy(), rows], axis=1)
            all_pad = torch.cat([past[0], is_pad], dim=1)
            past = [part.to(device) for part in past]
        latents = table.read(rows)
        check_finite(self.companion, rows, latents, all_pad)
        if device.type == "cuda":
            latents, is_pad = latents.pin_memory(), is_pad.pin_memory()
        return latents.to(device, non_blocking=True), is_pad.to(device, non_blocking=True), past

    def _uses_gpu_table(self, device: torch.device) -> bool:
        """Decide, once, whether the latents live on the device: there a step's windows cost no wait for the host."""
        if self._gpu_table is None:
            table, chosen = self.companion.table, self.config.companion.on_device
            if chosen is None:
                free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
                chosen = table.latents.nbytes <= ON_DEVICE_SHARE * free
            # A row that isn't finite must be reported when, and only when, it is used: the host's gather can. Of
            # episodes that were left out, all rows are such, and `check_excluded` refuses them.
            is_sound = chosen and np.isin(table.episode_of(table.bad_rows()), self.companion.info.excluded).all()
            self._gpu_table = is_sound and GpuLatentTable(table, device)
        return bool(self._gpu_table)


def task_list(batch: dict) -> list[str]:
    """The instructions of a batch, one per sample; empty where it has none. A single string is one instruction."""
    tasks = batch.get("task") or []
    return [tasks] if isinstance(tasks, str) else list(tasks)


def check_finite(companion: Companion, rows: np.ndarray, latents: Tensor, is_pad: Tensor) -> None:
    """Refuse latents that are not finite; zero them where they are padding, which nothing reads.

    Args:
        companion: Where they come from.
        rows: (b, w) rows gathered.
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
        row = int(rows[used.numpy()][0])
        raise ValueError(
            f"row {row} of companion {companion.root} (episode {int(companion.table.episode_index[row])}) holds NaN or "
            "Inf; encode that episode again: run wm-precompute with the same options into a new folder"
        )
    latents[is_bad] = 0.0
