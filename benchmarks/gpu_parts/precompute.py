"""wm-precompute's rate over the bare encoder's, at real shapes, and how busy the GPU was meanwhile."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager

import torch
from fixtures_datasets import make_dataset

from gpu_parts.figures import Run
from world_modality_core.encoders import make_world_encoder
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.precompute.encode import encode_episodes, find_batch_size, stage_latents
from world_modality_core.precompute.source import SourceDataset
from world_modality_core.precompute.staging import Staging

VITS = {
    "B": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "L": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
}
N_WORKERS = 12


def make_weights(run: Run, family: str, size: str) -> str:
    """A folder with the real class's random weights."""
    import transformers

    torch.manual_seed(0)
    folder = run.folder / f"{family}-{size}"
    if family == "dinov2":
        config = transformers.Dinov2Config(image_size=518 if run.is_real else 28, patch_size=14, **VITS[size])
        transformers.Dinov2Model(config).save_pretrained(folder)
    else:
        shape = VITS[size] | ({} if run.is_real else {"pred_hidden_size": 24, "pred_num_attention_heads": 2})
        config = transformers.VJEPA2Config(crop_size=256 if run.is_real else 32, frames_per_clip=64, **shape)
        transformers.VJEPA2Model(config).save_pretrained(folder)
    return str(folder)


@contextmanager
def busy_share(device: str):
    """Share of the samples in which the driver said that a kernel ran, as nvidia-smi shows it."""
    shares: list[float] = []
    if not device.startswith("cuda"):
        yield shares
        return
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(torch.device(device).index or 0)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            shares.append(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield shares
    finally:
        ended.set()
        thread.join()


def measure(run: Run) -> None:
    """Each family on the same frames: the encoder alone on frames in memory, and the pipeline with decoding."""
    px = 224 if run.is_real else 28
    n_episodes, length = (N_WORKERS, 256) if run.is_real else (3, 12)
    root = run.folder / "source"
    make_dataset(root, lengths=[length] * n_episodes, cameras=["observation.image"], size=px, use_videos=True)
    source = SourceDataset("bench/source", str(root))
    families = [("dinov2", "B", 224, 1), ("dinov2", "L", 224, 1), ("vjepa2", "L", 256, 4)]
    if not run.is_real:
        families = [("dinov2", "tiny", 28, 1), ("vjepa2", "tiny", 32, 2)]
    for family, size, height, window in families:
        spec = EncoderSpec(
            family,
            make_weights(run, family, size),
            cameras=["observation.image"],
            height_px=height,
            width_px=height,
            n_frames=window,
            dtype="bfloat16" if run.is_real else "float32",
        )
        rounds = 1 if not run.is_real else {"B": 6, "L": 3}[size] if window == 1 else 1
        one_family(run, f"{family}-{size}", spec, source, rounds)


def one_family(run: Run, name: str, spec: EncoderSpec, source: SourceDataset, rounds: int) -> None:
    """One encoder alone and in the pipeline, which reads the episodes `rounds` times.

    There are as many episodes as decoding processes, so that each reads its own again and none is read by two at once.
    """
    encoder = make_world_encoder(spec, device=run.device)
    n_episodes = len(source.lengths)
    n_workers = N_WORKERS if run.is_real else 1
    start = time.perf_counter()
    camera = spec.cameras[0]
    found = find_batch_size(encoder, {camera: tuple(source.camera_shape(camera)[:2])}, int(source.lengths.max()))
    taken = time.perf_counter() - start
    run.figure(f"{name}: batch size found by itself", found, "frames", part="precompute", seconds=round(taken, 2))
    rates, stored = {}, {}
    alone = range(n_episodes if spec.n_frames == 1 else n_episodes // 3)
    for batch_size in sorted({*((16, 64, 256) if run.is_real else (4,)), found}):
        chunks = source.chunks(alone, spec, batch_size, n_workers if run.is_real else 0)
        frames = list(chunks)
        n = sum(len(next(iter(chunk.frames.values()))) for chunk in frames)

        def encode(frames=frames) -> tuple[float, dict]:
            start = time.perf_counter()
            done = {e: z.cpu() for _, e, z in encode_episodes(iter(frames), encoder) if z is not None}
            return time.perf_counter() - start, done

        stored[batch_size] = encode()[1]  # warm
        rates[batch_size] = [n / encode()[0] for _ in range(2)]
        run.figure(f"{name}: encoder alone, batch of {batch_size}", rates[batch_size], "frames/s", part="precompute")
    best = max(max(values) for values in rates.values())
    run.figure(f"{name}: encoder at the batch size found, over the fastest tried", max(rates[found]) / best, least=0.95,
               part="precompute")  # fmt: skip
    a, b = (torch.cat([stored[n][e] for e in alone]).float() for n in (min(stored), found))
    run.figure(f"{name}: latents of the smallest batch and of the one found: largest difference over their spread",
               ((a - b).abs().max() / a.std()).item(), equal_values=(a == b).float().mean().item(),
               part="precompute")  # fmt: skip
    episodes = list(range(n_episodes)) * rounds
    rates_after, starts, shares = [], [], []
    for repeat in range(2):
        staging = Staging(run.folder / f"staging-{name}-{repeat}")
        staging.begin({}).release()
        clock = Clock()
        with busy_share(run.device) as samples:
            stage_latents(source, encoder, staging, episodes, found, n_workers, clock)
        rates_after.append(clock.rate())
        starts.append(clock.start_s)
        shares += samples[len(samples) // 4 :]
    say = {"part": "precompute", "batch_size": found, "decoding_processes": n_workers}
    run.figure(f"{name}: pipeline, after its first batch", rates_after, "frames/s", **say)
    run.figure(f"{name}: until the first batch is encoded (decoding processes start)", starts, "s", **say)
    run.figure(f"{name}: pipeline over encoder", [r / max(rates[found]) for r in rates_after], least=0.95, **say)
    if shares:
        run.figure(f"{name}: share of time that the GPU is busy", sum(shares) / len(shares), **say)


class Clock:
    """Called with the frames of each batch that was encoded: the time to the first, and the rate from then on."""

    def __init__(self) -> None:
        self.begin, self.start_s, self.n_frames = time.perf_counter(), 0.0, -1

    def __call__(self, n_frames: int) -> None:
        if self.n_frames < 0:
            self.start_s, self.n_frames = time.perf_counter() - self.begin, 0
        else:
            self.n_frames += n_frames

    def rate(self) -> float:
        """Frames a second, until now."""
        return self.n_frames / (time.perf_counter() - self.begin - self.start_s)
