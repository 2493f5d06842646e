"""`wm-record`: Meta-World's scripted experts, recorded into a LeRobotDataset with video.

    wm-record --tasks=push-v3,reach-v3 --n_episodes=30 --action_noise=0.1 --output.repo_id=me/mw --output.root=data/mw

Every episode is staged as a dataset of one episode beside the output, complete or not at all; at the end LeRobot merges
them in the order of tasks and seeds. A recording that was killed therefore goes on with the same command and loses at
most the episodes that were being recorded, and the result does not depend on the number of workers.
"""

import logging
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from lerobot_policy_world_modality.envs.mujoco_gl import choose_mujoco_gl
from lerobot_policy_world_modality.record.attempts import Attempts, episode_folder
from lerobot_policy_world_modality.record.merging import MERGED, RECORD_FILE, merge_recording
from lerobot_policy_world_modality.record.record_options import RecordConfig, RecordEnv
from world_modality_core.io.commands import run_command
from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import check_room, n_bytes_in, naming_full_disk, read_json
from world_modality_core.io.option_differences import option_differences
from world_modality_core.io.work_folder import WorkFolder


def record(cfg: RecordConfig) -> Path:
    """Record the dataset that the options describe, or the rest of it.

    Returns:
        The dataset's root, links resolved.

    Raises:
        ConfigError: an option makes no sense, a task does not exist, the output exists and was recorded otherwise,
            another recorder is at work, the disk is too small, or an expert nearly always fails.
    """
    cfg.validate()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    choose_mujoco_gl()  # before anything imports mujoco
    from lerobot_policy_world_modality.envs.metaworld_light import INSTRUCTIONS, make_light_env, resolve_tasks
    from lerobot_policy_world_modality.record.jobs import attempts_so_far, record_missing
    from world_modality_core.io.hub_transfer import check_upload
    from world_modality_core.latents.companion import default_root

    if cfg.push_to_hub:
        check_upload(cfg.output.repo_id, "push_to_hub=true: ")
    tasks = list(dict.fromkeys(task for group in resolve_tasks(cfg.tasks, "tasks").values() for task in group))
    for task in tasks:
        make_light_env(task, **cfg.env.gym_kwargs).build()
    # A link is followed: beside it staging might lie on another disk, and a folder can't take its place.
    root = Path(cfg.output.root or default_root(cfg.output.repo_id)).resolve()
    staging = root.with_name(root.name + ".recording")
    request = _request(cfg, {task: INSTRUCTIONS[task] for task in tasks})

    staged = request | {"versions": {name: version(name) for name in ("lerobot", "metaworld", "mujoco")}}
    work = WorkFolder(staging)

    if _is_recorded(root, request | {"n_episodes": cfg.n_episodes}):
        print(f"{root} holds this recording already.")
    else:
        lock = work.begin(staged)
        try:
            with naming_full_disk(staging):
                attempts = attempts_so_far(cfg, tasks, staging)
                _check_room(cfg, attempts, staging)
                record_missing(cfg, attempts, staging)
                merge_recording(attempts, staging, root, cfg.output.repo_id, staged | {"n_episodes": cfg.n_episodes})
        finally:
            if not any(staging.glob("*/*.json")):  # nothing worth resuming
                work.remove()
            lock.release()
    work.remove(staged)
    if cfg.push_to_hub:
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        LeRobotDataset(cfg.output.repo_id, root=root).push_to_hub(private=cfg.output.private)
    return root


def _request(cfg: RecordConfig, instructions: dict[str, str]) -> dict:
    """What decides the content of the dataset, except how many episodes of it there are."""
    return {
        "format": 1,
        "tasks": list(instructions),
        "instructions": instructions,
        "start_seed": cfg.start_seed,
        "action_noise": cfg.action_noise,
        "n_frames_after_success": cfg.n_frames_after_success,
        "env": asdict(cfg.env),
        "video": asdict(cfg.video),
    }


def _is_recorded(root: Path, request: dict) -> bool:
    """Whether the output is there, complete and of these options.

    Raises:
        ConfigError: something else is there.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    path = root / RECORD_FILE
    if not path.is_file():
        raise ConfigError(f"{root} exists and was not made by wm-record; choose another --output.root")
    found = read_json(path, dict)
    reports = found.get("tasks") or {}
    found |= {"tasks": list(reports), "instructions": {task: row.get("instruction") for task, row in reports.items()}}
    if differing := _differences(found, request):
        raise ConfigError(f"{root} was recorded with other options ({differing}); choose another --output.root")
    return True


def _differences(found: dict, request: dict) -> str:
    # A record says more than was asked for; an option that is younger than the recording had its default.
    found = {name: found.get(name) for name in request} | {"env": asdict(RecordEnv()) | found.get("env", {})}
    return "; ".join(option_differences(found, request))


def _check_room(cfg: RecordConfig, attempts: list[Attempts], staging: Path) -> None:
    """Refuse what doesn't fit: episodes that are missing are staged, and all are merged.

    An episode takes 0.3 bytes a pixel, several times what was measured, for 200 frames. A merge that was cut off is
    made anew: its half makes room for it.
    """
    pixels = cfg.env.observation_height * cfg.env.observation_width
    an_episode = min(200, cfg.env.episode_length) * 0.3 * pixels + 100_000
    n_missing = sum(cfg.n_episodes - len(each.kept()) for each in attempts)
    staged = sum(n_bytes_in(episode_folder(staging, each.task, seed)) for each in attempts for seed in each.kept())
    needed = 2 * n_missing * an_episode + staged - n_bytes_in(staging / MERGED)
    check_room(staging, needed, "make room, or choose another --output.root")


def main() -> int:
    """Console script `wm-record`."""
    return run_command("wm-record", RecordConfig, record)


if __name__ == "__main__":
    sys.exit(main())
