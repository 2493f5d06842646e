"""Dataset cards: what a companion, or a copy that `wm-precompute` made beside it, is, and how to use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData, RepoCard

from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.latents.companion import Companion
from world_modality_core.latents.latent_quality import format_quality

PACKAGE = "lerobot_policy_world_modality"
TAG = "world-modality"
_NOT_SAID = "the same as the source's; nobody said which that is"
COPIES = {
    "merged": "a copy of {source} that has the world latents of a companion as features of its own",
    "stripped": "a copy of {source} without its images, for training on precomputed latents at full speed",
}
PARQUET = [{"config_name": "default", "data_files": "data/*/*.parquet"}]


def code(text: Any) -> str:
    """Text that came from elsewhere as inline code, so that none of it is read as Markdown or HTML."""
    plain = " ".join(str(text).split()).replace("`", "'").replace("|", "/")
    return f"`{plain}`" if plain else "-"


def table(rows: list[tuple[str, str]]) -> str:
    """A Markdown table of two columns without headings; rows without a value are left out."""
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows if value)])


def known_license(root: Path) -> str | None:
    """The licence that the card in a dataset's folder states, None where there is no card or it states none."""
    path = Path(root) / "README.md"
    if not path.is_file():
        return None
    try:
        return RepoCard.load(path, ignore_metadata_errors=True).data.to_dict().get("license")
    except ValueError:  # no metadata at all
        return None


def dataset_card(body: str, license: str | None, tags: list[str], configs: list[dict] | None = None) -> str:
    """The text of a dataset's README.md.

    Args:
        body: Markdown.
        license: Identifier of the licence; None says "the same as the source's".
        tags: Beside "world-modality".
        configs: Which files the Hub's viewer reads.
    """
    stated = {"license": license} if license else {"license": "other", "license_name": "same-as-source"}
    data = DatasetCardData(task_categories=["robotics"], tags=[*tags, TAG], configs=configs, **stated)
    return f"---\n{data.to_yaml()}\n---\n\n{body.rstrip()}\n"


def license_words(license: str | None) -> str:
    """The licence in words."""
    return code(license) if license else _NOT_SAID


def encoder_rows(spec: EncoderSpec) -> list[tuple[str, str]]:
    """What an encoder spec says, as rows of a card's table."""
    window = f"{spec.n_frames} frames, {spec.frame_stride} apart" if spec.n_frames > 1 else "1 frame"
    window += f", every {spec.every} frames" if spec.every > 1 else ""
    pca = f"; PCA to {spec.pca_dim} dimensions" if spec.pca_dim else ""
    revision = f" at {code(spec.revision)}" if spec.revision else ""
    return [
        ("World encoder", f"{code(spec.family)}, weights {code(spec.model_id)}{revision}, {spec.dtype}"),
        ("Cameras", ", ".join(map(code, spec.cameras))),
        ("Frames", f"resized to {spec.height_px} x {spec.width_px} px; a latent is made of {window}"),
        ("Latents", f"{spec.n_tokens} tokens of {spec.dim} numbers a frame; pooling {code(spec.pooling)}{pca}"),
        ("Encoder spec", f"{code(spec.spec_id)} (equal specs make interchangeable latents)"),
    ]


def companion_card(companion: Companion, repo_id: str, license: str | None = None) -> str:
    """The card of a companion dataset.

    Args:
        companion: The companion.
        repo_id: Where it is uploaded to.
        license: The source's licence, if it is known.
    """
    source = companion.source
    tokens = companion.info.n_codes and f"{companion.info.tokens_per_frame} a frame, of {companion.info.n_codes} codes"
    rows = encoder_rows(companion.spec) + [
        ("World tokens", tokens or "none"),
        ("Made from", f"{code(source.repo_id)}, {_revision(source.revision)}"),
        ("Frames", f"{source.total_frames} in {source.total_episodes} episodes, {source.fps} a second"),
        ("Fingerprint of the source", f"episode lengths {code(source.episode_lengths_sha256)}"),
        ("Hash of all latents", code(companion.info.content_sha256)),
        ("Licence", license_words(license)),
    ]
    body = f"""# World latents of {code(source.repo_id)}

This is a *companion*: a LeRobotDataset that holds, frame for frame, what a frozen encoder made of another dataset's
images. It has neither images nor actions. Policies of the LeRobot plugin {code(PACKAGE)} are trained with it beside the
dataset that it was made from, or a copy of that one; beside any other they refuse it.

{table(rows)}

## Figures that `wm-precompute` printed

```
{format_quality(companion.quality, companion.fps)}
```

## Use

```bash
pip install {PACKAGE}
lerobot-train --policy.type=world_F --policy.companion.repo_id={repo_id} \\
    --dataset.repo_id={source.repo_id} --policy.push_to_hub=false --output_dir=outputs/train/F
```

`--policy.companion.revision=COMMIT` pins a version. `wm-precompute --reuse_from={repo_id}` gives another dataset
latents of this very encoder, which fine-tuning needs.
"""
    return dataset_card(body, license, ["LeRobot"], PARQUET)


def copy_card(kind: str, companion: Companion, repo_id: str, license: str | None = None) -> str:
    """The card of a merged or stripped copy of the source.

    Args:
        kind: "merged" or "stripped".
        companion: The companion that it was made with.
        repo_id: Where it is uploaded to.
        license: The source's licence, if it is known.
    """
    source = companion.source
    rows = [
        ("Made from", f"{code(source.repo_id)}, {_revision(source.revision)}"),
        ("Frames", f"{source.total_frames} in {source.total_episodes} episodes, {source.fps} a second"),
        ("Latents", f"companion {code(companion.repo_id)}, hash {code(companion.info.content_sha256)}"),
        ("Encoder spec", code(companion.spec.spec_id)),
        ("Licence", license_words(license)),
    ]
    body = f"""# {code(repo_id.split("/")[-1])}

This is {COPIES[kind].format(source=code(source.repo_id))}. It was written by
`wm-precompute --{_OPTION[kind]}` and is read like any LeRobotDataset; the companion of the source fits it too.

{table(rows)}

```bash
pip install {PACKAGE}
lerobot-train --policy.type=world_F --policy.companion.repo_id={companion.repo_id} \\
    --dataset.repo_id={repo_id} --policy.push_to_hub=false --output_dir=outputs/train/F
```
"""
    return dataset_card(body, license, ["LeRobot"], PARQUET)


_OPTION = {"merged": "merge", "stripped": "strip_images"}


def _revision(revision: str | None) -> str:
    return f"commit {code(revision)}" if revision else "a dataset on the disk of whoever made this"
