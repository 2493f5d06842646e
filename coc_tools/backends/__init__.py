"""Who labels: what every backend is given, gives back, and can do. They are chosen in `coc_tools.labelling`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from world_modality_core.io.errors import UserError

if TYPE_CHECKING:  # LeRobot and torch, which checking a reply needs not
    from coc_tools.episodes import Episode


class BackendError(RuntimeError):
    """A request got no reply; its episode is set aside, with this reason."""


class BackendUnusable(UserError):
    """No request can get a reply (wrong key, unknown model, no memory): the run stops, with this reason."""


class Cancelled(RuntimeError):
    """The run was interrupted while a request waited for its turn."""


@dataclass(frozen=True)
class ShownImage:
    """An image that a model is shown.

    Attributes:
        camera: Camera key.
        timestamps: Seconds of the frames on it: several for a contact sheet, left to right, top to bottom.
        image: RGB.
    """

    camera: str
    timestamps: tuple[float, ...]
    image: Image.Image


@dataclass(frozen=True)
class Rejected:
    """A reply that was not accepted, and why."""

    reply: str
    error: str


@dataclass
class LabelRequest:
    """An episode to be labelled.

    Attributes:
        episode: The episode, for backends that read more of it than the images.
        prompt: The instructions, which come first; the same for all episodes.
        data: What is known of this episode, as a block of JSON in which no text can pass for markup.
        images: What it is shown; empty for backends that need none.
        objects: Names that labels may use, or None for any.
        rejected: The last reply, if it was not accepted.
    """

    episode: Episode
    prompt: str = ""
    data: str = ""
    images: list[ShownImage] = field(default_factory=list)
    objects: list[str] | None = None
    rejected: Rejected | None = None


@dataclass(frozen=True)
class Reply:
    """What a backend gave.

    Attributes:
        text: JSON of a `StepList`, or whatever the model said instead.
        n_input_tokens: Tokens read, as far as the backend knows.
        n_output_tokens: Tokens written.
        is_cut_off: Whether it ended because `sampling.max_tokens` was reached.
    """

    text: str
    n_input_tokens: int = 0
    n_output_tokens: int = 0
    is_cut_off: bool = False


class Labeller(Protocol):
    """What every backend is.

    Attributes:
        name: Backend name, as in `--backend`.
        model: The model's name.
        revision: The model's revision, or None.
        sampling: How replies are drawn, for the provenance.
        needs_images: Whether requests must carry images.
        n_workers: Threads that may call `label_many` at the same time.
        batch_size: Requests per call.
    """

    name: str
    model: str
    revision: str | None
    sampling: dict[str, Any]
    needs_images: bool
    n_workers: int
    batch_size: int

    def label_many(self, requests: Sequence[LabelRequest]) -> list[Reply]:
        """Label at most `batch_size` episodes.

        Raises:
            BackendError: these requests can't be served.
            BackendUnusable: none can.
            Cancelled: the run was interrupted.
        """
        ...

    def close(self) -> None:
        """Let go of connections and memory."""
        ...
