"""Options of `wm-eval`: those of `lerobot-eval`, and what makes its episodes comparable."""
# No `from __future__ import annotations`: LeRobot's parser reads the annotations of this class and of its base.

from dataclasses import dataclass
from pathlib import Path

from lerobot.configs.eval import EvalPipelineConfig

from lerobot_policy_world_modality.evaluation.arms import ARMS, BANK_ARMS
from lerobot_policy_world_modality.hub.policy_option import read_policy_option
from lerobot_policy_world_modality.hub.trusted_files import is_typed, open_checkpoint
from lerobot_policy_world_modality.policies.shared.world_options import WorldOptions
from world_modality_core.configs import check_at_least, check_scene_seed
from world_modality_core.io.errors import ConfigError
from world_modality_core.memory.sources import PAST_SOURCES, MemorySource
from world_modality_core.studies.evidence.checkpoint import label_of, training_seed


@dataclass
class WorldEvalConfig(EvalPipelineConfig):
    """`lerobot-eval`'s options (a task has the scenes `seed`, `seed` + 1, ...), and what makes episodes comparable.

    --policy.path=FOLDER or a name on the Hub: the checkpoint, always needed; its options too, as in
    --policy.n_action_steps=8.
    --env.type=metaworld_light --env.task=push-v3,reach-v3: the simulator, and tasks of it. With --env.type=... before
    it, --help lists that simulator's options.
    """

    # What was trained, whatever the training seed: one label per recipe. From the checkpoint's folder, if not given.
    model: str = ""
    # The training run's seed. From the checkpoint's train_config.json, if not given.
    train_seed: int | None = None
    # What is done to the checkpoint's memory, comma-separated: intact (nothing), or arms of docs/memory.md (zero, ...).
    arms: str = "intact"
    # Which episodes to film: none, failures, all, or first:N for the first N scenes of each task and arm.
    videos: str = "none"
    # For `stale`: how many plans old the memory is.
    stale_plans: int = 4
    # For arms that exchange memories, such as `shuffle`: of how many scenes of each task, from the first on, `intact`
    # keeps the memories.
    bank_scenes: int = 16
    # A monitor that watches (docs/monitor.md): folder of wm-monitor fit, or a repository. None if not given.
    monitor: str = ""
    # Seed of the arms' draws: of `random`, and of whose memories a scene is shown.
    draw_seed: int = 0
    # Processes that run batches of scenes side by side, each with a policy and environments of its own; the results are
    # those of one.
    jobs: int = 1

    def __post_init__(self) -> None:
        config = read_policy_option()
        super().__post_init__()
        self.policy = config or self.policy

    @property
    def arm_names(self) -> list[str]:
        """The arms, `intact` first."""
        names = [name.strip() for name in self.arms.split(",") if name.strip()]
        return sorted(names, key=lambda name: name != "intact")

    @property
    def n_filmed(self) -> int:
        """How many scenes of each task and arm are filmed; whether the film is kept is another question."""
        if self.videos in ("all", "failures"):
            return self.eval.n_episodes
        return 0 if self.videos == "none" else int(self.videos.removeprefix("first:"))

    def resolve(self) -> Path:
        """Check the options, and fill in `model` and `train_seed`.

        Returns:
            The checkpoint's folder.

        Raises:
            ConfigError: naming the option, its value and the remedy.
        """
        if self.policy is None or not self.policy.pretrained_path:
            raise ConfigError("policy.path is not given: name the checkpoint to evaluate with --policy.path=FOLDER")
        if self.trust_remote_code and not is_typed("trust_remote_code"):
            raise ConfigError("trust_remote_code=true doesn't count in a file: type --trust_remote_code in the command")
        self._check_arms()
        if self.seed is None:
            raise ConfigError("seed=None: scenes are pinned by their seeds; give the first one's with --seed=100000")
        if self.videos not in ("none", "all", "failures"):
            prefix, _, count = self.videos.partition(":")
            if prefix != "first" or not count.isdecimal() or int(count) < 1:
                raise ConfigError(f"videos={self.videos!r}: expected none, failures, all, or first:N with N >= 1")
        check_at_least(self.eval, 1, "n_episodes", "batch_size", prefix="eval.")
        check_scene_seed(self, "seed", self.eval.n_episodes)
        for name, least in (("stale_plans", 1), ("bank_scenes", 2), ("jobs", 1), ("draw_seed", 0)):
            check_at_least(self, least, name)
        if self.eval.recording:
            raise ConfigError("eval.recording=true: wm-eval records no datasets; use lerobot-eval, or leave it out")
        if not getattr(self.env, "hard_reset", True):
            raise ConfigError(
                "env.hard_reset=false: a scene of LIBERO then looks different each time, and arms could not be paired; "
                "leave it out"
            )
        if self.env.max_parallel_tasks != 1:
            raise ConfigError(
                f"env.max_parallel_tasks={self.env.max_parallel_tasks}: tasks would share the policy's state; leave it "
                "at 1 and raise --eval.batch_size, or start several wm-eval with an output_dir each"
            )
        exchanged = self.exchanged_in_batch
        if exchanged and self.eval.batch_size < 2:
            raise ConfigError(
                f"eval.batch_size={self.eval.batch_size}: this checkpoint's memory is {exchanged.value!r} in "
                "rollouts, that of another scene of the batch; use --eval.batch_size=2 or more"
            )
        if isinstance(self.policy, WorldOptions) and self.policy.clock_fps is not None:
            raise ConfigError(
                "policy.frame_clock='wall': how fast this machine runs would decide which frames a policy sees; a "
                "simulator's frames are counted, with --policy.frame_clock=calls"
            )
        folder = open_checkpoint(self.policy.pretrained_path, self.policy.pretrained_revision)
        self.model = self.model or label_of(self.policy.pretrained_path)
        if self.train_seed is None:
            self.train_seed = training_seed(folder)
        if self.train_seed is None:
            raise ConfigError(
                f"train_seed is not given, and {self.policy.pretrained_path} has no train_config.json that says it: "
                "give --train_seed=N"
            )
        return folder

    def _check_arms(self) -> None:
        names = self.arm_names
        unknown = [name for name in names if name not in ARMS]
        if unknown or not names or len(set(names)) < len(names):
            raise ConfigError(f"arms={self.arms!r}: expected one or more of {', '.join(ARMS)}, each once")
        changing = [name for name in names if name != "intact"]
        if not changing:
            return
        if not self._reads_memory:
            raise ConfigError(
                f"arms={self.arms!r}: a {self.policy.type} without world memory has only the arm intact; there is "
                f"nothing that {changing[0]} could change"
            )
        source = self.rollout_source
        changing = [MemorySource(name) for name in changing if name != MemorySource.gate_closed]
        for arm in changing:
            if not arm.traits.is_noise:  # it takes the place of whatever the memory holds
                self.policy.check_memory_source(arm)
        of_past = [arm for arm in changing if arm.traits.past]
        changing = [arm for arm in changing if not arm.traits.past]
        if changing and self.policy.n_future_steps == 0:
            left = ["intact", "gate_closed", *(PAST_SOURCES if self.policy.n_past else ())]
            raise ConfigError(
                f"arms={self.arms!r}: this checkpoint's memory has no forecast that {changing[0]} could change; its "
                f"arms are {', '.join(left)}"
            )
        if of_past and self.policy.memory.past.source is not None:
            raise ConfigError(
                f"arms={self.arms!r}: this checkpoint acts with {self.policy.memory.past.source.value!r} anyway; "
                f"{of_past[0]} would change it once more"
            )
        if "gate_closed" in names and self.policy.memory.entry == "appended" and self.policy.memory.use_current:
            raise ConfigError(
                "arms=gate_closed: a memory that is appended has no gate, and the current frame in it can't be hidden"
            )
        if changing and source.traits.is_blind:
            raise ConfigError(
                f"arms={self.arms!r}: this checkpoint's memory is {source.value!r} in rollouts, so that {changing[0]} "
                "takes nothing away from it; its arms are intact and gate_closed"
            )
        lone = [arm for arm in self.bank_arms if MemorySource(arm).traits.partner != "other_task"]
        if self.eval.n_episodes < 2 and lone:
            raise ConfigError(
                f"eval.n_episodes={self.eval.n_episodes}: the arm {lone[0]} needs the memory of another episode; "
                "evaluate at least 2"
            )

    @property
    def rollout_source(self) -> MemorySource | None:
        """Where the checkpoint's own memory comes from; None where it reads none."""
        return self.policy.memory.rollout_source if self._reads_memory else None

    @property
    def _reads_memory(self) -> bool:
        return isinstance(self.policy, WorldOptions) and self.policy.reads_memory

    @property
    def exchanged_in_batch(self) -> MemorySource | None:
        """What of the checkpoint's own memory is that of another scene of the batch, by the source's name."""
        own = (self.rollout_source, self.policy.memory.past.source) if self._reads_memory else ()
        return next((source for source in own if source and source.traits.partner), None)

    @property
    def bank_arms(self) -> list[str]:
        """The arms that read what `intact` saved."""
        return [name for name in self.arm_names if name in BANK_ARMS]
