"""The one path from camera frames to world latents, shared by precompute and rollout.

Axis letters: n frames in a batch, m encoder temporal window, v cameras, p tokens, d width, c colour, h height, w width.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import replace

import torch
import torch.nn.functional as F
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn

from world_modality_core.encoders.pooling import LayerFeatures, pool
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.io.errors import ConfigError
from world_modality_core.latents.pca import LatentPCA

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Images that a CPU takes at a time. EfficientNet-Lite0 at 128 px: 5 ms an image in eights, 10 ms in thirty-twos, whose
# activations outgrow the caches and the allocator's pool. On an accelerator the caller's batch is taken whole.
_CPU_CHUNK = 8


class WorldEncoder(ABC):
    """A frozen encoder: spec resolution, resizing, normalisation, cameras, pooling and PCA.

    Not an `nn.Module`, on purpose: as an attribute of a policy it enters neither the checkpoint nor the optimiser, is
    not wrapped for distributed training, and `policy.train()` or `policy.to(torch.bfloat16)` does not reach it. Its
    network is in eval mode and needs no gradient, always.

    A family is a final subclass that gives the class attributes below, `build` and `features`, and is entered with
    `register_encoder` (docs/encoders.md).

    Attributes:
        default_model_id: Used where the spec names no model.
        default_height_px: Used where the spec names no height.
        default_width_px: Used where the spec names no width.
        is_temporal: Whether the family reads windows of more than one frame.
        image_mean: Per colour, subtracted from frames in [0, 1]. `build` may set it from the model's files.
        image_std: Per colour, divides frames in [0, 1] after the mean.
        spec: The resolved spec.
        device: Where the network is and latents come out.
        network: What `build` returned, frozen.
    """

    default_model_id: str = ""
    default_height_px: int
    default_width_px: int
    is_temporal: bool = False
    image_mean: tuple[float, ...] = IMAGENET_MEAN
    image_std: tuple[float, ...] = IMAGENET_STD

    def __init__(self, spec: EncoderSpec, pca: LatentPCA | None = None, device: str | torch.device = "cpu"):
        """Load the network and resolve the spec.

        Args:
            spec: What to build. One that is already resolved is held to its token count and widths.
            pca: The fitted PCA, if the spec has one. Without it `encode` raises and `encode_raw` works.
            device: Where to compute.

        Raises:
            ConfigError: if the spec does not fit the family or the model, a package is missing, or the weights are not
                at hand; the message says how to get them.
        """
        if not spec.cameras:
            raise ConfigError("encoder.cameras is empty: name the image features to encode, e.g. ['observation.image']")
        if spec.n_frames > 1 and not self.is_temporal:
            raise ConfigError(
                f"encoder.n_frames={spec.n_frames}: family {spec.family!r} reads one frame at a time; use 1 (a policy "
                "sees history through n_obs_steps) or a temporal family such as 'vjepa2'"
            )
        self.spec = replace(
            spec,
            model_id=spec.model_id or self.default_model_id,
            height_px=spec.height_px or self.default_height_px,
            width_px=spec.width_px or self.default_width_px,
        )
        self.device = torch.device(device)
        self.dtype = getattr(torch, spec.dtype)
        self.pca: LatentPCA | None = None
        self._fits: int | None = None  # frames that fit into memory at once, once more did not
        network, revision = self.build(self.spec)
        if spec.revision is None or revision is not None:
            self.spec = replace(self.spec, revision=revision)
        self.network = network.to(self.device, self.dtype).eval().requires_grad_(False)
        self._resolve_shape()
        if pca is not None:
            self.attach_pca(pca)

    # What a family gives.

    @abstractmethod
    def build(self, spec: EncoderSpec) -> tuple[nn.Module, str | None]:
        """Load the pretrained network; layers deeper than the deepest of `spec.parts` may be left out.

        Args:
            spec: The spec with its defaults filled in.

        Returns:
            The network on the CPU, and the exact revision of its weights if it is known.
        """

    @abstractmethod
    def features(self, frames: Tensor, layers: list[int]) -> dict[int, LayerFeatures]:
        """Compute the features of some layers.

        Args:
            frames: (n, m, 3, h, w) resized and normalised, in the encoder's dtype, oldest frame of the window first.
            layers: Layer indices as the spec writes them; what they count is the family's to define.

        Returns:
            For each entry of `layers`, its features.
        """

    # What every family shares.

    @torch.no_grad()
    def encode(self, frames: dict[str, Tensor]) -> Tensor:
        """Encode frames into world latents.

        Args:
            frames: Per camera, (n, m, 3, h, w), or (n, 3, h, w) where m == 1: windows that end at the frame encoded
                (`causal_windows`), uint8 in 0..255 or float in [0, 1], of any size, on any device. Cameras that the
                spec does not name are ignored.

        Returns:
            (n, p, d) float32 on the encoder's device; p runs over cameras, then pooling parts, then cells.

        Raises:
            ValueError: if a camera is missing, or frames have another shape, dtype or range.
            RuntimeError: if the spec has a PCA that is not attached.
        """
        if self.spec.pca_dim and self.pca is None:
            raise RuntimeError(
                f"encoder.pca_dim={self.spec.pca_dim}, but no fitted PCA is attached: fit one on encode_raw's output "
                "(LatentPCA.fit), or pass the companion's to make_world_encoder(spec, pca=...)"
            )
        parts = self.encode_raw(frames)
        if self.pca is not None:
            parts = self.pca(parts)
        by_camera = [part.unflatten(1, (len(self.spec.cameras), -1)) for part in parts]
        return torch.cat(by_camera, dim=2).flatten(1, 2)

    @torch.no_grad()
    def encode_raw(self, frames: dict[str, Tensor]) -> list[Tensor]:
        """Encode frames up to, and without, the PCA.

        Args:
            frames: As for `encode`.

        Returns:
            Per pooling part i, (n, v * p_i, d_i) float32 on the encoder's device.

        Raises:
            ValueError: as `encode`.
            ConfigError: if not even one frame fits into the device's memory; else a batch that does not is halved.
        """
        views = [self._view(camera, frames) for camera in self.spec.cameras]
        n, v = len(views[0]), len(views)
        if any(len(view) != n for view in views):
            counts = {camera: len(view) for camera, view in zip(self.spec.cameras, views, strict=True)}
            raise ValueError(f"cameras differ in their number of frames: {counts}")
        chunk = max(1, _CPU_CHUNK // v) if self.device.type == "cpu" else n
        pooled, start = [], 0
        while start < n:
            chunk = min(chunk, self._fits or chunk)
            tokens = self._encode_chunk([view[start : start + chunk] for view in views])
            if tokens is None:
                self._take_less(min(chunk, n - start))
            else:
                pooled.append(tokens)
                start += chunk
        return [torch.cat(part) for part in zip(*pooled, strict=True)]

    def _encode_chunk(self, views: list[Tensor]) -> list[Tensor] | None:
        """As `encode_raw`, of some frames (n, m, 3, h, w) per camera at once; None if they need too much memory."""
        try:
            images = torch.stack([self._normalised(view) for view in views], dim=1)
            tokens = self._pooled(images.flatten(0, 1))
            return [part.unflatten(0, (-1, len(views))).flatten(1, 2) for part in tokens]
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and not should_reduce_batch_size(error):
                raise
        return None

    def _take_less(self, n: int) -> None:
        """Encode at most half of n frames at once from now on; said once."""
        if n == 1:
            raise ConfigError(
                f"encoder.height_px={self.spec.height_px}, encoder.width_px={self.spec.width_px}: a single frame needs "
                f"more memory than {self.device} has left; make the images smaller, or free memory there"
            )
        if self._fits is None:
            logging.warning(f"{n} frames at once need more memory than {self.device} has; going on with fewer")
        self._fits = n // 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def attach_pca(self, pca: LatentPCA) -> None:
        """Take a fitted PCA; its hash enters the spec.

        Raises:
            ValueError: if it is unfitted, or is not the one that the spec asks for.
        """
        spec = self.spec
        if pca.dim != spec.pca_dim or pca.raw_dims != spec.raw_dims:
            raise ValueError(
                f"this PCA maps {pca.raw_dims} to {pca.dim} dimensions; the encoder has raw_dims={spec.raw_dims} and "
                f"pca_dim={spec.pca_dim}"
            )
        if not pca.is_fitted:
            raise ValueError("this PCA is all zeros: it was made by LatentPCA.empty and never loaded")
        sha256 = pca.sha256
        if spec.pca_sha256 not in (None, sha256):
            raise ValueError(f"encoder.pca_sha256={spec.pca_sha256}: this PCA hashes to {sha256}, so it is another one")
        self.pca = pca.to(self.device)
        self.spec = replace(spec, pca_sha256=sha256)

    def to(self, device: str | torch.device) -> WorldEncoder:
        """Move the encoder, and the PCA attached to it, to another device; the dtype is the spec's and stays."""
        self.device = torch.device(device)
        self.network.to(self.device)
        if self.pca is not None:
            self.pca.to(self.device)
        return self

    def _view(self, camera: str, frames: dict[str, Tensor]) -> Tensor:
        """Pick one camera's frames, checked, as (n, m, 3, h, w)."""
        if camera not in frames:
            raise ValueError(f"encoder.cameras={self.spec.cameras}: {camera!r} is not among {sorted(frames)}")
        view = frames[camera]
        m = self.spec.n_frames
        if view.ndim == 4 and m == 1:
            view = view.unsqueeze(1)
        if view.ndim != 5 or view.shape[1] != m or view.shape[2] != 3:
            short = " or (n, 3, h, w)" if m == 1 else ""
            raise ValueError(f"{camera!r} has shape {tuple(frames[camera].shape)}: expected (n, {m}, 3, h, w){short}")
        if len(view) == 0:
            raise ValueError(f"{camera!r} holds no frames")
        if view.dtype == torch.uint8:
            return view
        if not view.is_floating_point():
            raise ValueError(f"{camera!r} is {view.dtype}: expected uint8 in 0..255 or float in [0, 1]")
        low, high = torch.aminmax(view)
        if not (low >= 0 and high <= 1):  # written so that NaN fails too
            raise ValueError(
                f"{camera!r} holds floats from {low.item():.4g} to {high.item():.4g}: expected [0, 1]. Pass uint8 "
                "frames as they are, and give the encoder frames before any normalisation"
            )
        return view

    def _normalised(self, view: Tensor) -> Tensor:
        """Bring (n, m, 3, h, w) frames to (n, m, 3, height_px, width_px), normalised, in the encoder's dtype."""
        images = view.to(self.device).flatten(0, 1)
        images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        size = (self.spec.height_px, self.spec.width_px)
        if tuple(images.shape[-2:]) != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        mean = torch.tensor(self.image_mean, device=self.device)[:, None, None]
        std = torch.tensor(self.image_std, device=self.device)[:, None, None]
        return ((images - mean) / std).to(self.dtype).unflatten(0, (-1, view.shape[1]))

    def _pooled(self, images: Tensor) -> list[Tensor]:
        """Per pooling part, (n, p_i, d_i) float32 tokens of images (n, m, 3, h, w)."""
        parts = self.spec.parts
        features = self.features(images, sorted({part.layer for part in parts}))
        return [pool(features[part.layer], part) for part in parts]

    @torch.no_grad()
    def _resolve_shape(self) -> None:
        """Fill in raw_dims, n_tokens and dim by encoding one black window."""
        spec = self.spec
        probe = torch.zeros(1, spec.n_frames, 3, spec.height_px, spec.width_px, device=self.device, dtype=self.dtype)
        pooled = self._pooled(probe)
        raw_dims = [tokens.shape[-1] for tokens in pooled]
        if spec.pca_dim == 0 and len(set(raw_dims)) > 1:
            raise ConfigError(
                f"encoder.pooling={spec.pooling!r}: its parts are {raw_dims} wide and encoder.pca_dim is 0; parts of "
                f"unequal width need a PCA, e.g. encoder.pca_dim={min(64, *raw_dims)}"
            )
        if spec.pca_dim > min(raw_dims):
            raise ConfigError(f"encoder.pca_dim={spec.pca_dim}: wider than the narrowest part of {raw_dims}")
        resolved = replace(
            spec,
            raw_dims=raw_dims,
            n_tokens=len(spec.cameras) * sum(tokens.shape[1] for tokens in pooled),
            dim=spec.pca_dim or raw_dims[0],
        )
        if spec.is_resolved and resolved != spec:
            raise ConfigError(
                f"encoder {spec.family!r} does not give the latents that its spec promises; promised != found: "
                + "; ".join(spec.differences(resolved))
            )
        self.spec = resolved


def layer_position(layer: int, n_layers: int, what: str) -> int:
    """Turn a layer index, negative ones counted from the end, into 0..n_layers-1.

    Raises:
        ConfigError: if there is no such layer; `what` says what the indices count.
    """
    if not -n_layers <= layer < n_layers:
        raise ConfigError(f"encoder.layer={layer}: expected {-n_layers}..{n_layers - 1} ({what})")
    return layer % n_layers
