"""Options of `coc-label`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from coc_tools.prompts import load_prompt
from world_modality_core.configs import check_at_least, check_positive
from world_modality_core.io.devices import check_device
from world_modality_core.io.errors import ConfigError

# Named, since draccus does not find the comment of a field whose type holds quotes.
KeyframeKind = Literal["start_mid_end", "uniform", "events"]
ClosedIs = Literal["high", "low"]
Structured = Literal["json_schema", "json_object", "none"]
NumberType = Literal["auto", "bfloat16", "float16", "float32"]
WriteTarget = Literal["none", "source", "copy", "companion"]
BackendName = Literal["endpoint", "local", "sim", "none"]


@dataclass
class DatasetConfig:
    """The dataset to label."""

    # Repository id.
    repo_id: str = ""
    # Its local folder; LeRobot's default folder, or the Hub, if not given.
    root: str | None = None
    # Its Hub revision: branch, tag or commit.
    revision: str | None = None


@dataclass
class KeyframesConfig:
    """The frames that a model is shown."""

    # "events": where the gripper opens or closes, the robot stops, or (with a companion) the latents change; the frames
    # that are left fill the widest gaps.
    kind: KeyframeKind = "events"
    # Most frames per camera.
    n_frames: int = 12
    # Cameras; all colour cameras of the dataset if not given.
    cameras: list[str] = field(default_factory=list)
    # Pack frames into contact sheets with the time on each frame, instead of one image per frame.
    use_sheets: bool = True
    # Width of a frame on a contact sheet.
    frame_width_px: int = 224
    # Frames side by side on a contact sheet.
    n_columns: int = 4
    # Frames on one contact sheet.
    n_per_sheet: int = 12
    # Feature that holds the gripper signal.
    gripper_key: str = "action"
    # Its dimension: a number (negative ones count from the end), or a name from the dataset's meta/info.json.
    gripper_dim: int | str = -1

    def __post_init__(self) -> None:
        check_at_least(self, 1, "n_frames", "frame_width_px", "n_columns", "n_per_sheet", prefix="keyframes.")


@dataclass
class GripperConfig:
    """Which signal says whether the gripper is closed (`coc-eval`, `coc-view`)."""

    # Feature that holds the gripper signal.
    key: str = "action"
    # Its dimension: a number (negative ones count from the end), or a name from the dataset's meta/info.json.
    dim: int | str = -1
    # Whether large or small values close it; the border is the middle of the dataset's range.
    closed_is: ClosedIs = "high"


@dataclass
class SamplingConfig:
    """How a model draws its reply."""

    # 0 takes the most probable token.
    temperature: float = 0.0
    # Most tokens of a reply.
    max_tokens: int = 2048
    # Seed of the draws, where the backend has one.
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least(self, 0, "temperature", prefix="sampling.")
        check_at_least(self, 1, "max_tokens", prefix="sampling.")


@dataclass
class EndpointConfig:
    """An OpenAI-compatible server (vLLM, SGLang, hosted)."""

    # Where its API starts.
    api_base: str = "http://localhost:8000/v1"
    # The server's name of the model.
    model: str = "Qwen/Qwen3-VL-8B-Instruct"
    # Environment variable that holds the API key, if the server wants one. The key itself is never an option.
    api_key_env: str = "OPENAI_API_KEY"
    # Requests at a time.
    concurrency: int = 16
    # Seconds from sending a request until its whole answer must have come.
    timeout_s: float = 180.0
    # How often a request that met a server error, a time-out or a broken answer is sent again.
    max_retries: int = 6
    # Requests started per minute, 0 for no limit of ours. The server's own (429, Retry-After) is kept in any case.
    requests_per_minute: float = 0.0
    # Longest time (s) to wait for a server's rate limit before giving up; what is done so far is kept.
    max_wait_s: float = 900.0
    # How JSON is asked for: "json_schema", or "json_object" or "none" for servers that have no such thing.
    structured: Structured = "json_schema"

    def __post_init__(self) -> None:
        if not self.api_base.startswith(("http://", "https://")) or "@" in self.api_base.split("/")[2]:
            raise ConfigError(
                "endpoint.api_base must start with http:// or https:// and hold no credentials; put the key into the "
                f"environment variable {self.api_key_env}"
            )
        check_at_least(self, 1, "concurrency", prefix="endpoint.")
        check_at_least(self, 0, "max_retries", "requests_per_minute", prefix="endpoint.")
        check_positive(self, "timeout_s", "max_wait_s", prefix="endpoint.")


@dataclass
class LocalConfig:
    """A vision-language model of `transformers` in this process."""

    # Hub id or folder: Qwen3-VL, Qwen2.5-VL, or another that `AutoModelForImageTextToText` loads.
    model: str = "Qwen/Qwen3-VL-4B-Instruct"
    # Hub revision.
    revision: str | None = None
    # Number type of the weights; "auto" takes the one that they are stored in.
    dtype: NumberType = "auto"
    # "cpu", "cuda", "cuda:1", ...; the best one at hand if not given.
    device: str | None = None
    # "auto" spreads a model that is too large for one GPU over all of them.
    device_map: str | None = None
    # Episodes at a time.
    batch_size: int = 4

    def __post_init__(self) -> None:
        check_device(self.device, "local.device", is_needed=False)
        check_at_least(self, 1, "batch_size", prefix="local.")


@dataclass
class WriteConfig:
    """Language rows in a dataset."""

    # "none", "source" (in place, after a backup), "copy" or "companion" (in place, after a backup).
    target: WriteTarget = "none"
    # Folder of the copy, or of the companion.
    root: str | None = None

    def __post_init__(self) -> None:
        if self.target in ("copy", "companion") and not self.root:
            raise ConfigError(f"write.root is empty: name the folder of the {self.target}")


@dataclass
class PricesConfig:
    """What tokens cost, for the estimate. Any currency."""

    # Per million tokens of input.
    input_per_million: float | None = None
    # Per million tokens of output.
    output_per_million: float | None = None
    # Side (px) of the square that the model turns into one token: 32 for Qwen3-VL, 28 for Qwen2.5-VL.
    px_per_token_side: int = 32
    # Tokens of a reply.
    tokens_per_reply: int = 600

    def __post_init__(self) -> None:
        check_at_least(self, 1, "px_per_token_side", "tokens_per_reply", prefix="prices.")
        if (self.input_per_million is None) != (self.output_per_million is None):
            raise ConfigError("prices.input_per_million and prices.output_per_million: give both or neither")
        if self.input_per_million is not None:
            check_at_least(self, 0, "input_per_million", "output_per_million", prefix="prices.")


@dataclass
class LabelConfig:
    """Options of `coc-label`."""

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    # The label file. Episodes that have a label in it are passed over; new labels are added to it.
    labels: str = ""
    # "endpoint", "local", "sim" (Meta-World recordings, no model), or "none": label nothing, only import or write.
    backend: BackendName = "endpoint"
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    local: LocalConfig = field(default_factory=LocalConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    keyframes: KeyframesConfig = field(default_factory=KeyframesConfig)
    # Folder of the dataset's companion (wm-precompute): its latents help to find events.
    companion: str | None = None
    # Name of a prompt of this package, or path of a text file named <name>_v<version>.txt.
    prompt: str = "coc_v1"
    # JSON file of the objects that labels may name: a list for all tasks, or {task: list}.
    objects: str | None = None
    # Replies per episode that may be refused before the episode is set aside.
    max_attempts: int = 3
    # Only these episodes.
    episodes: list[int] | None = None
    # At most this many episodes in this run.
    max_episodes: int | None = None
    # Add to a label file whose labels come from another model or prompt.
    allow_mixed: bool = False
    # JSONL to take labels from: lines of `episode_index` (or `episode_id`) and `coc_text`, or labels of this tool. A
    # file, or one on the Hub: hf://datasets/USER/NAME/FILE.
    import_jsonl: str | None = None
    # JSONL to write: lines of `episode_index`, `task` and `coc_text`.
    export_jsonl: str | None = None
    write: WriteConfig = field(default_factory=WriteConfig)
    prices: PricesConfig = field(default_factory=PricesConfig)
    # Print episodes, images, tokens and money, and stop.
    dry_run: bool = False

    def __post_init__(self) -> None:
        if not self.dataset.repo_id and not self.dataset.root:
            raise ConfigError("dataset.repo_id and dataset.root are both empty: name the dataset to label")
        if not self.labels:
            raise ConfigError("labels is empty: name the label file, for example --labels=outputs/coc/labels.jsonl")
        if not self.labels.endswith(".jsonl") or self.labels.endswith(".failed.jsonl"):
            raise ConfigError(f"labels={self.labels!r}: expected a name that ends in .jsonl (and not in .failed.jsonl)")
        load_prompt(self.prompt)
        check_at_least(self, 1, "max_attempts")
        if self.max_episodes is not None:
            check_at_least(self, 1, "max_episodes")
