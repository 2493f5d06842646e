"""`coc-view`: one static HTML page of labels beside what the robot did.

coc-view --dataset.root=data/metaworld --labels=outputs/coc/vlm.jsonl --against=outputs/coc/sim.jsonl --output=coc.html
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from coc_tools.config import DatasetConfig, GripperConfig
from world_modality_core.configs import check_at_least
from world_modality_core.io.commands import run_command
from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import writing


@dataclass
class ViewConfig:
    """Options of `coc-view`."""

    # The labelled dataset.
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    # Label file to show.
    labels: str = ""
    # A second one, to show beside it.
    against: str | None = None
    # The page to write.
    output: str = "coc.html"
    # Only these episodes.
    episodes: list[int] | None = None
    # At most this many; with pictures of 160 px a page of 50 has 1 to 3 MB.
    max_episodes: int = 50
    # Camera of the filmstrip; the dataset's first one if not given.
    camera: str | None = None
    # Pictures of an episode.
    n_frames: int = 10
    # Their width.
    frame_width_px: int = 160
    gripper: GripperConfig = field(default_factory=GripperConfig)

    def validate(self) -> None:
        """Raises ConfigError naming the option."""
        for name in ("labels", "against"):
            value = getattr(self, name)
            if (name == "labels" or value) and not Path(value or "-").is_file():
                raise ConfigError(f"{name}={value!r}: no such file; name a label file (.jsonl)")
        check_at_least(self, 1, "max_episodes", "n_frames", "frame_width_px")


def view(cfg: ViewConfig) -> Path:
    """Write the page.

    Returns:
        Where it is.

    Raises:
        UserError: an option or a file cannot be used.
    """
    cfg.validate()
    # LeRobot and torch: not before the options are read.
    from coc_tools.episodes import EpisodeReader
    from coc_tools.judge.gripper import gripper_range
    from coc_tools.store import read_labels
    from coc_tools.view.label_page import make_card, render

    reader = EpisodeReader(cfg.dataset.repo_id, cfg.dataset.root, cfg.dataset.revision)
    paths = [Path(path) for path in (cfg.labels, cfg.against) if path]
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):  # two files of one name, in two folders
        names = [f"{path.parent.name}/{path.stem}" for path in paths]
    label_sets = {name: read_labels(path) for name, path in zip(names, paths, strict=True)}
    labelled = sorted(set().union(*label_sets.values()))
    if cfg.episodes and (unlabelled := sorted(set(cfg.episodes) - set(labelled))):
        raise ConfigError(f"episodes: {unlabelled} have no label in {' or '.join(map(str, paths))}")
    shown = sorted(cfg.episodes or labelled)[: cfg.max_episodes]
    if not shown:
        raise ConfigError(f"labels={cfg.labels!r} holds no labels")
    if shown[-1] >= len(reader):
        raise ConfigError(f"episode {shown[-1]} is labelled, but {reader.root} has {len(reader)} episodes")
    for name, labels in label_sets.items():
        for index in shown:
            if index in labels and labels[index].task != reader[index].task:
                raise ConfigError(
                    f"episode {index} is {labels[index].task!r} in {name} and {reader[index].task!r} in the dataset: "
                    "these labels are of another dataset"
                )
    camera = cfg.camera or (reader.cameras[0] if reader.cameras else None)
    gripper = reader.dimension(cfg.gripper.key, cfg.gripper.dim, "gripper.")
    span = gripper_range(reader, gripper) if gripper else (0.0, 1.0)

    def card(index: int):
        episode = reader[index]
        signal = episode.signal(gripper) if gripper else None
        return make_card(episode, label_sets, camera, cfg.n_frames, cfg.frame_width_px, signal, span)

    note = f"{reader.meta.repo_id}: {len(shown)} of {len(labelled)} labelled episodes; "
    note += f"curve: {gripper}" if gripper else "no actions, so no curve of the gripper"
    output = Path(cfg.output).resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    with writing(output) as aside, aside.open("w", encoding="utf-8") as file:
        file.writelines(render("Chains of causality", note, names, (card(index) for index in shown)))
    print(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB, {len(shown)} of {len(labelled)} labelled episodes)")
    return output


def main() -> int:
    """Console script `coc-view`."""
    return run_command("coc-view", ViewConfig, view, remedy="begins anew")


if __name__ == "__main__":
    sys.exit(main())
