"""Encoder time of a training of three epochs: latents made once, over LeRobot's vla_jepa, which encodes in every step.

Both run the same frozen V-JEPA 2 (random weights of the real class, small) in one process, taking turns. vla_jepa's
part is the lines of its `_world_model_loss` that prepare and encode: of each sample and view a clip of 8 frames. Ours
is `encode` of the window of m frames that ends at each frame, as wm-precompute gives it. Decoding is in neither.

    ratio = (frames x m-frame windows, once) / (epochs x samples x 8-frame clips)
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from lerobot.policies.vla_jepa.configuration_vla_jepa import VLAJEPAConfig

sys.path.insert(0, str(Path(__file__).parent))
from provenance import provenance

from world_modality_core.encoders import make_world_encoder
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.encoders.windows import causal_windows

VIEWS = ["observation.images.a", "observation.images.b"]


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--px", type=int, default=128, help="height and width of frames and encoder")
    cli.add_argument("--width", type=int, default=192)
    cli.add_argument("--layers", type=int, default=6)
    cli.add_argument("--frames", type=int, default=8, help="samples of a batch")
    cli.add_argument("--epochs", type=int, default=3)
    cli.add_argument("--repeats", type=int, default=7)
    cli.add_argument("--json", type=Path, help="also write the figures here")
    args = cli.parse_args()
    torch.set_num_threads(1)
    clip, n = VLAJEPAConfig.__dataclass_fields__["num_video_frames"].default, args.frames
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        config = transformers.VJEPA2Config(
            crop_size=args.px, frames_per_clip=64, hidden_size=args.width, num_hidden_layers=args.layers,
            num_attention_heads=args.width // 64, pred_hidden_size=24, pred_num_attention_heads=2,
        )  # fmt: skip
        transformers.VJEPA2Model(config).save_pretrained(folder)
        size = {"height": args.px, "width": args.px}
        transformers.VJEPA2VideoProcessor(crop_size=size, size={"shortest_edge": args.px}).save_pretrained(folder)
        theirs = transformers.AutoModel.from_pretrained(folder, trust_remote_code=False, use_safetensors=True).eval()
        processor = transformers.AutoVideoProcessor.from_pretrained(folder, trust_remote_code=False)
        encoders = {
            m: make_world_encoder(EncoderSpec("vjepa2", folder, cameras=VIEWS, height_px=args.px, width_px=args.px,
                                              n_frames=m))
            for m in (2, 4, 8)
        }  # fmt: skip
    frames = torch.randint(0, 256, (n, 3, args.px, args.px), dtype=torch.uint8)
    videos = torch.rand(n * len(VIEWS), clip, 3, args.px, args.px)

    @torch.no_grad()
    def vla_jepa() -> None:
        pixels = processor(videos=list(videos), return_tensors="pt", do_rescale=False)["pixel_values_videos"]
        theirs.get_vision_features(pixel_values_videos=pixels)

    def ours(m: int):
        windows = dict.fromkeys(VIEWS, causal_windows(frames, m))
        return lambda: encoders[m].encode(windows)

    works = {"vla_jepa": vla_jepa} | {f"windows of {m}": ours(m) for m in encoders}
    taken: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(args.repeats + 1):
        for name in works if repeat % 2 else reversed(works):
            start = time.process_time()
            works[name]()
            if repeat:
                taken[name].append(1e3 * (time.process_time() - start) / n)
    record = provenance() | {"settings": {k: v for k, v in vars(args).items() if k != "json"}}
    record |= {"cpu_milliseconds_a_frame": taken, "ratios": {}}
    print(f"vla_jepa: {statistics.median(taken['vla_jepa']):.1f} ms a sample and epoch, n={args.repeats}")
    for name in list(works)[1:]:
        ratio = [a / (args.epochs * b) for a, b in zip(taken[name], taken["vla_jepa"], strict=True)]
        record["ratios"][name] = ratio
        print(f"{name}: {statistics.median(taken[name]):.1f} ms a frame; over {args.epochs} epochs of vla_jepa "
              f"{statistics.median(ratio):.3f} [{min(ratio):.3f}, {max(ratio):.3f}]  (<= 0.2)")  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
