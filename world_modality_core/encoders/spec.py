"""What a world latent is: the complete, serialisable description of the encoder that made it.

The same `EncoderSpec` is written into a companion dataset (by `wm-precompute`) and into a policy's config (by
training). Two latents may be compared, or one replaced by the other, only if their specs are equal; `spec_id` is the
hash that says so.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

from world_modality_core.configs import check_at_least, check_choices
from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import as_folder

if TYPE_CHECKING:
    import numpy as np

EncoderDtype = Literal["float32", "bfloat16", "float16"]
_PART = re.compile(r"(?P<kind>cls|mean|grid:(?P<gg>\d+x\d+)|s2d:(?P<ss>\d+x\d+))(@(?P<layer>-?\d+))?")


@dataclass(frozen=True)
class PoolingPart:
    """One term of a pooling expression: how the patch features of one layer become tokens.

    Attributes:
        kind: "cls" (the class token), "mean" (mean over patches), "grid" (average pooling to `rows` x `cols` cells) or
            "s2d" (space to depth: each cell keeps the features of its patches, concatenated).
        rows: Cells along the height; 1 for "cls" and "mean".
        cols: Cells along the width; 1 for "cls" and "mean".
        layer: Index of the layer read, -1 for the last.
    """

    kind: str
    rows: int
    cols: int
    layer: int

    @property
    def n_tokens(self) -> int:
        """Tokens that this part adds per camera."""
        return self.rows * self.cols


def parse_pooling(pooling: str, layer: int = -1) -> list[PoolingPart]:
    """Parse a pooling expression such as "cls", "grid:4x4" or "mean@-1+s2d:4x4@10".

    Args:
        pooling: Parts joined by "+". Each is "cls", "mean", "grid:RxC" or "s2d:RxC", with an optional "@layer".
        layer: Layer of the parts that name none.

    Returns:
        The parts, in order.

    Raises:
        ConfigError: if a part is not understood.
    """
    parts = []
    for term in pooling.split("+"):
        match = _PART.fullmatch(term.strip())
        if match is None:
            raise ConfigError(
                f"encoder.pooling={pooling!r}: cannot read {term!r}; expected parts joined by '+', each 'cls', "
                "'mean', 'grid:RxC' or 's2d:RxC', optionally followed by '@layer', e.g. 'mean@-1+s2d:4x4@10'"
            )
        size = match["gg"] or match["ss"] or "1x1"
        rows, cols = (int(n) for n in size.split("x"))
        if rows < 1 or cols < 1:
            raise ConfigError(f"encoder.pooling={pooling!r}: {term!r} has no cells; use at least 1x1")
        kind = match["kind"].split(":")[0]
        parts.append(PoolingPart(kind, rows, cols, layer if match["layer"] is None else int(match["layer"])))
    return parts


@dataclass
class EncoderSpec:
    """Everything that a latent's value depends on, except the frames.

    A spec is *resolved* once an encoder has been built from it (and its PCA fitted): `n_tokens`, `dim` and `raw_dims`
    are then known. An empty `family` means "not chosen": a policy in training takes the companion's spec.
    """

    # Encoder family: "efficientnet_lite0", "dinov2", "vjepa2", or one added by the user.
    family: str = ""
    # Hub id or local folder of the weights; empty for the family's default.
    model_id: str = ""
    # Hub revision of the weights; None for the default branch.
    revision: str | None = None
    # Feature keys of the images, in the order of the latent's camera axis v.
    cameras: list[str] = field(default_factory=list)
    # Height that frames are resized to.
    height_px: int = 0
    # Width that frames are resized to.
    width_px: int = 0
    # Pooling expression, see `parse_pooling`.
    pooling: str = "mean"
    # Layer read by the pooling parts that name none; -1 is the last.
    layer: int = -1
    # Temporal window m: z_t is made of the frames t-(m-1)*frame_stride, ..., t.
    n_frames: int = 1
    # Frames between two frames of the window.
    frame_stride: int = 1
    # Frames between two that are encoded. Those in between have the latent of the last one that is, as with a slower
    # camera; strides of windows are multiples of it.
    every: int = 1
    # Arithmetic of the encoder; "float32" is never TF32.
    dtype: EncoderDtype = "float32"
    # Dimensions kept by the PCA, 0 for none. Parts of unequal width need one.
    pca_dim: int = 0
    # Hash of the fitted PCA; None without one.
    pca_sha256: str | None = None
    # Tokens per frame over all cameras (v * p). Resolved.
    n_tokens: int = 0
    # Width d of one token. Resolved.
    dim: int = 0
    # Width of each pooling part before the PCA. Resolved.
    raw_dims: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model_id = as_folder(self.model_id)
        parse_pooling(self.pooling, self.layer)
        check_choices(self, "encoder.")
        check_at_least(self, 0, "height_px", "width_px", "pca_dim", prefix="encoder.")
        check_at_least(self, 1, "n_frames", "frame_stride", "every", prefix="encoder.")
        if len(set(self.cameras)) != len(self.cameras):
            raise ConfigError(f"encoder.cameras={self.cameras}: a camera is named twice")

    @property
    def is_set(self) -> bool:
        """Whether an encoder was chosen."""
        return bool(self.family)

    @property
    def is_resolved(self) -> bool:
        """Whether the latent's shape is known."""
        return self.n_tokens > 0 and self.dim > 0

    @property
    def parts(self) -> list[PoolingPart]:
        """The parsed pooling expression."""
        return parse_pooling(self.pooling, self.layer)

    @property
    def window_span(self) -> int:
        """Frames from the oldest frame of the window to the newest, both counted."""
        return (self.n_frames - 1) * self.frame_stride + 1

    @property
    def spec_id(self) -> str:
        """SHA-256 over all fields: equal ids mean interchangeable latents."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict:
        """All fields, as files hold them: `every` only where it is not 1, since older files don't have it."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("every", 1)}

    def n_encoded(self, n_frames: int | np.ndarray) -> int | np.ndarray:
        """How many frames of an episode of `n_frames` are encoded."""
        return -(-n_frames // self.every)

    def check_strides(self, strides: dict[str, int]) -> None:
        """Refuse strides of windows, option -> frames, that would fall on frames which are not encoded.

        Raises:
            ConfigError: naming the option, its value and the remedy.
        """
        for name, stride in strides.items():
            if stride % self.every:
                raise ConfigError(
                    f"{name}={stride}: these latents are of one frame in {self.every} "
                    f"(encoder.every={self.every}); use a multiple of {self.every}, or write a companion with "
                    "wm-precompute whose --encoder.every divides it"
                )

    def differences(self, other: EncoderSpec) -> list[str]:
        """Name the fields in which two specs differ, as "field: mine != theirs"."""
        mine, theirs = asdict(self), asdict(other)
        return [f"{name}: {mine[name]!r} != {theirs[name]!r}" for name in mine if mine[name] != theirs[name]]
