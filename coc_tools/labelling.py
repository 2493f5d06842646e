"""What `coc-label` does, step by step: open, check, import, label, export, write."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coc_tools.backends import Labeller
from coc_tools.config import LabelConfig
from coc_tools.cost import estimate
from coc_tools.dataset_writer import WriteError, is_copied, recover, write_copy, write_in_place
from coc_tools.episodes import EpisodeReader
from coc_tools.import_export import check_belongs, export_labels, import_labels
from coc_tools.pipeline import Summary, label_episodes
from coc_tools.process_shards import ProcessShards
from coc_tools.prompts import load_prompt
from coc_tools.request import RequestBuilder, choose_cameras, choose_gripper, load_objects, open_latents
from coc_tools.store import LabelFile, StoreError, failed_path, iter_labels, read_labels
from world_modality_core.io.errors import ConfigError
from world_modality_core.io.option_differences import option_differences
from world_modality_core.latents.companion import default_root, open_companion


def label(cfg: LabelConfig) -> Summary:
    """Label the episodes that have no label yet, then import, export and write what was asked for.

    Returns:
        What was done.

    Raises:
        UserError: naming what to change.
    """
    shards = ProcessShards(cfg.backend == "local" and not cfg.dry_run, device=cfg.local.device)
    if shards.is_first:
        for done in filter(None, map(recover, _folders(cfg))):
            print(done)
    shards.wait()
    reader = EpisodeReader(cfg.dataset.repo_id, cfg.dataset.root, cfg.dataset.revision)
    builder = _builder(cfg, reader)
    target = _target(cfg, reader)
    if not shards.is_first:
        return _help(cfg, reader, builder, shards)
    with LabelFile(cfg.labels) as labels:
        if labels.torn:
            print(f"{labels.path}: cut off a line that a killed run left unfinished")
        shards.collect_parts(labels)
        _check_labels(cfg, labels, reader, builder)
        if cfg.import_jsonl and not cfg.dry_run:
            added, passed = import_labels(cfg.import_jsonl, reader, labels)
            print(f"Imported   {added} labels from {cfg.import_jsonl}; {passed} episodes had one already")
        todo = _todo(cfg, reader, set(labels))
        _print_plan(cfg, reader, builder, labels, todo)
        if cfg.dry_run:
            return Summary()
        shards.wait()  # 1: the others may read the label file
        shards.wait()  # 2: all have read it; it may grow
        summary = _run(cfg, reader, builder, labels, todo, shards)
        shards.wait()  # 3: all parts are written
        shards.leave()
        shards.collect_parts(labels)
        _finish(cfg, reader, labels, summary, target)
    return summary


def _help(cfg: LabelConfig, reader: EpisodeReader, builder: RequestBuilder, shards: ProcessShards) -> Summary:
    """What a further process does: label its shard into a file of its own. The barriers are those of `label`."""
    shards.wait()
    path = Path(cfg.labels)
    todo = _todo(cfg, reader, {label.episode_index for _, label in iter_labels(path)})
    shards.wait()
    with LabelFile(shards.part_path(path)) as labels:
        summary = _run(cfg, reader, builder, labels, todo, shards)
    shards.wait()
    shards.leave()
    return summary


def _folders(cfg: LabelConfig) -> set[Path]:
    """Folders in which an earlier run may have been killed while it wrote."""
    source = Path(cfg.dataset.root) if cfg.dataset.root else default_root(cfg.dataset.repo_id)
    return {source, *([Path(cfg.write.root)] if cfg.write.root else [])}


def _asks_model(cfg: LabelConfig) -> bool:
    return cfg.backend in ("endpoint", "local")


def _model_of(cfg: LabelConfig) -> str:
    return (cfg.endpoint if cfg.backend == "endpoint" else cfg.local).model


def _builder(cfg: LabelConfig, reader: EpisodeReader) -> RequestBuilder:
    cameras = choose_cameras(cfg.keyframes.cameras, reader) if _asks_model(cfg) else []
    gripper = choose_gripper(cfg.keyframes, reader) if cameras else None
    objects, companion = load_objects(cfg.objects), open_latents(cfg.companion, reader)
    return RequestBuilder(load_prompt(cfg.prompt), cfg.keyframes, cameras, gripper, objects, companion)


def _target(cfg: LabelConfig, reader: EpisodeReader) -> Path | None:
    """The folder that will be written to, checked before any work."""
    if cfg.write.target == "none":
        return None
    if cfg.write.target == "source":
        if "snapshots" in reader.root.parts:
            raise ConfigError(
                f"write.target=source: {reader.root} is the cache of the Hub, which belongs to other programs too; use "
                "--write.target=copy --write.root=..."
            )
        return reader.root
    root = Path(cfg.write.root)
    if cfg.write.target == "companion":
        open_companion(root=root).check_source(reader.meta)
    elif root.exists() and any(root.iterdir()):
        is_copied(reader.root, root, read_labels(cfg.labels) if Path(cfg.labels).exists() else {})
    return root


def _check_labels(cfg: LabelConfig, labels: LabelFile, reader: EpisodeReader, builder: RequestBuilder) -> None:
    """Refuse a label file of another dataset, or (if not allowed) of another backend, model or prompt."""
    mine = {"backend": str(cfg.backend)}
    if _asks_model(cfg):
        mine |= {"model": _model_of(cfg), "prompt_sha256": builder.prompt.sha256}
    for episode, label_ in labels.items():
        check_belongs(episode, label_, reader, str(labels.path))
        theirs = label_.provenance
        if cfg.backend == "none" or cfg.allow_mixed or theirs.backend == "import":
            continue
        found = {key: getattr(theirs, key) for key in mine}
        if differing := option_differences(found, mine):
            raise StoreError(
                f"{labels.path}: episode {episode} was labelled otherwise than this run would "
                f"({'; '.join(differing)}). Name another label file, or give --allow_mixed to keep those and go on"
            )


def _todo(cfg: LabelConfig, reader: EpisodeReader, labelled: set[int]) -> list[int]:
    wanted = range(len(reader)) if cfg.episodes is None else sorted(set(cfg.episodes))
    outside = [episode for episode in wanted if not 0 <= episode < len(reader)]
    if outside:
        raise ConfigError(
            f"episodes: {outside[:5]} are not in {reader.meta.repo_id!r}, which has {len(reader)} episodes"
        )
    return [episode for episode in wanted if episode not in labelled][: cfg.max_episodes]


def _print_plan(cfg, reader: EpisodeReader, builder: RequestBuilder, labels: LabelFile, todo: list[int]) -> None:
    print(f"Dataset    {reader.meta.repo_id} ({reader.root}): {len(reader)} episodes, {reader.meta.fps} fps")
    print(f"Labels     {labels.path}: {len(labels)} episodes labelled")
    if cfg.backend == "none":
        return
    model = f", {_model_of(cfg)}" if _asks_model(cfg) else ""
    where = f" at {cfg.endpoint.api_base}" if cfg.backend == "endpoint" else ""
    print(f"Backend    {cfg.backend}{model}{where}")
    if builder.cameras:
        print(f"Prompt     {builder.prompt.name} v{builder.prompt.version}, sha256 {builder.prompt.sha256[:12]}")
        frames = f"{cfg.keyframes.kind}, at most {cfg.keyframes.n_frames} frames each"
        print(f"Cameras    {', '.join(builder.cameras)}; {frames}")
        if builder.gripper:
            print(f"Gripper    {builder.gripper}; another with --keyframes.gripper_key and --keyframes.gripper_dim")
    print(estimate(reader, todo, builder.cameras, cfg.keyframes, builder.prompt.text, cfg.prices))


def _run(
    cfg: LabelConfig,
    reader: EpisodeReader,
    builder: RequestBuilder,
    labels: LabelFile,
    todo: list[int],
    shards: ProcessShards,
) -> Summary:
    todo = shards.shard(todo)
    if not todo or cfg.backend == "none":
        return Summary()
    cancel = threading.Event()
    with _interruptible(cancel, cfg):
        labeller = _make_labeller(cfg, reader, cancel)
        try:
            return label_episodes(reader, todo, builder, labeller, labels, cfg.max_attempts, cancel, shards.is_first)
        finally:
            labeller.close()


def _make_labeller(cfg: LabelConfig, reader: EpisodeReader, cancel: threading.Event) -> Labeller:
    """The backend that is asked for; only its own packages are imported."""
    if cfg.backend == "endpoint":
        from coc_tools.backends.openai_endpoint import EndpointLabeller

        return EndpointLabeller(cfg.endpoint, cfg.sampling, cancel)
    if cfg.backend == "local":
        from coc_tools.backends.local_transformers import LocalLabeller

        return LocalLabeller(cfg.local, cfg.sampling)
    from coc_tools.backends.sim import SimLabeller

    return SimLabeller(reader)


@contextmanager
def _interruptible(cancel: threading.Event, cfg: LabelConfig) -> Iterator[None]:
    """Ctrl-C (or SIGTERM) sets the event; a second one ends the process at once."""
    longest = f" (at most endpoint.timeout_s={cfg.endpoint.timeout_s:g} s)" if cfg.backend == "endpoint" else ""

    def interrupt(number, _) -> None:
        cancel.set()
        signal.signal(number, signal.SIG_DFL)
        said = f"\nInterrupted: waiting for the replies asked for{longest}. Once more ends at once.\n"
        os.write(2, said.encode())  # what it interrupts may be printing: `print` would refuse

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _finish(cfg: LabelConfig, reader: EpisodeReader, labels: LabelFile, summary: Summary, target: Path | None) -> None:
    if cfg.backend != "none":
        rate = (summary.n_input_tokens + summary.n_output_tokens) / max(summary.seconds, 1e-9)
        print(
            f"Labelled   {summary.n_labelled} episodes in {summary.seconds:.1f} s, {len(summary.failures)} set aside, "
            f"{summary.n_retries} replies not accepted, {summary.n_input_tokens:,} tokens in, "
            f"{summary.n_output_tokens:,} out ({rate:.0f}/s)"
        )
        if summary.failures:
            episode, reason = next(iter(summary.failures.items()))
            print(f"Set aside  {failed_path(labels.path)}; episode {episode}: {reason}. The next run tries them again")
    if summary.stopped:
        print(f"Stopped    {summary.stopped}. Give the same command again to go on: {len(labels)} labels are kept")
        return
    if cfg.export_jsonl:
        print(f"Exported   {export_labels(labels, cfg.export_jsonl)} texts to {cfg.export_jsonl}")
    if target is not None:
        _write_rows(cfg, reader, labels, target)


def _write_rows(cfg: LabelConfig, reader: EpisodeReader, labels: LabelFile, target: Path) -> None:
    if not len(labels):
        raise WriteError(f"{labels.path} holds no labels: there is nothing to write into {target}")
    if cfg.write.target == "copy":
        write_copy(reader.root, target, labels)
    else:
        backup, names = write_in_place(target, labels)
        print(f"Backup     {backup}: {len(names)} files")
        for name in names:
            print(f"             {name}")
    missing = len(reader) - len(labels)
    print(f"Written    {len(labels)} labels into {target}" + (f"; {missing} episodes have none" if missing else ""))
