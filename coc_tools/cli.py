"""`coc-label`: the command and the order of its steps.

coc-label --dataset.repo_id=lerobot/pusht --labels=outputs/coc/pusht.jsonl --endpoint.model=Qwen/Qwen3-VL-8B-Instruct
"""
# No `from __future__ import annotations`: LeRobot's parser reads the annotation of `label` as a class.

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from draccus.utils import ParsingError
from lerobot.configs import parser

from coc_tools.backends import BackendUnusable, make_labeller
from coc_tools.config import BackendName, ConfigError, LabelConfig, WriteTarget
from coc_tools.cost import estimate
from coc_tools.dataset_writer import WriteError, recover, write_copy, write_in_place
from coc_tools.episodes import EpisodeError, EpisodeReader
from coc_tools.import_export import check_belongs, export_labels, import_labels
from coc_tools.pipeline import Summary, label_episodes
from coc_tools.prompts import load_prompt
from coc_tools.request import RequestBuilder, choose_cameras, load_objects, open_latents
from coc_tools.shares import Shares
from coc_tools.store import LabelFile, StoreError, failed_path, iter_labels
from world_modality_core.io.commands import command_errors
from world_modality_core.io.option_differences import option_differences
from world_modality_core.latents.companion import CompanionError, default_root, open_companion

# What a user can mend; everything else is a fault of ours and keeps its traceback.
USER_ERRORS = (ConfigError, EpisodeError, StoreError, WriteError, BackendUnusable, CompanionError)


def label(cfg: LabelConfig) -> Summary:
    """Label the episodes that have no label yet, then import, export and write what was asked for.

    Returns:
        What was done.

    Raises:
        ConfigError, EpisodeError, StoreError, WriteError, BackendUnusable, CompanionError: naming what to change.
    """
    shares = Shares(cfg.backend == BackendName.local and not cfg.dry_run, is_cpu=cfg.local.device == "cpu")
    if shares.is_first:
        for done in filter(None, map(recover, _folders(cfg))):
            print(done)
    shares.wait()
    reader = EpisodeReader(cfg.dataset.repo_id, cfg.dataset.root, cfg.dataset.revision)
    builder = _builder(cfg, reader)
    target = _target(cfg, reader)
    if not shares.is_first:
        return _help(cfg, reader, builder, shares)
    with LabelFile(cfg.labels) as labels:
        if labels.torn:
            print(f"{labels.path}: cut off a line that a killed run left unfinished")
        shares.collect(labels)
        _check_labels(cfg, labels, reader, builder)
        if cfg.import_jsonl and not cfg.dry_run:
            added, passed = import_labels(cfg.import_jsonl, reader, labels)
            print(f"Imported   {added} labels from {cfg.import_jsonl}; {passed} episodes had one already")
        todo = _todo(cfg, reader, set(labels))
        _print_plan(cfg, reader, builder, labels, todo)
        if cfg.dry_run:
            return Summary()
        shares.wait()  # 1: the others may read the label file
        shares.wait()  # 2: all have read it; it may grow
        summary = _run(cfg, reader, builder, labels, shares.mine(todo), shares)
        shares.wait()  # 3: all parts are written
        shares.collect(labels)
        _finish(cfg, reader, labels, summary, target)
    return summary


def _help(cfg: LabelConfig, reader: EpisodeReader, builder: RequestBuilder, shares: Shares) -> Summary:
    """What a further process does: label its share into a part of its own. The barriers are those of `label`."""
    shares.wait()
    path = Path(cfg.labels)
    todo = _todo(cfg, reader, {label.episode_index for _, label in iter_labels(path)})
    shares.wait()
    with LabelFile(shares.part(path)) as labels:
        summary = _run(cfg, reader, builder, labels, shares.mine(todo), shares)
    shares.wait()
    return summary


def _folders(cfg: LabelConfig) -> set[Path]:
    """Folders in which an earlier run may have been killed while it wrote."""
    source = Path(cfg.dataset.root) if cfg.dataset.root else default_root(cfg.dataset.repo_id)
    return {source, *([Path(cfg.write.root)] if cfg.write.root else [])}


def _asks_model(cfg: LabelConfig) -> bool:
    return cfg.backend in (BackendName.endpoint, BackendName.local)


def _model_of(cfg: LabelConfig) -> str:
    return (cfg.endpoint if cfg.backend == BackendName.endpoint else cfg.local).model


def _builder(cfg: LabelConfig, reader: EpisodeReader) -> RequestBuilder:
    try:
        prompt = load_prompt(cfg.prompt)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    cameras = choose_cameras(cfg.keyframes.cameras, reader) if _asks_model(cfg) else []
    return RequestBuilder(
        prompt, cfg.keyframes, cameras, load_objects(cfg.objects), open_latents(cfg.companion, reader)
    )


def _target(cfg: LabelConfig, reader: EpisodeReader) -> Path | None:
    """The folder that will be written to, checked before any work."""
    if cfg.write.target == WriteTarget.none:
        return None
    if cfg.write.target == WriteTarget.source:
        if "snapshots" in reader.root.parts:
            raise ConfigError(
                f"write.target=source: {reader.root} is the cache of the Hub, which other programs share; use "
                "--write.target=copy --write.root=..."
            )
        return reader.root
    root = Path(cfg.write.root)
    if cfg.write.target == WriteTarget.companion:
        open_companion(root=root).check_source(reader.meta)
    elif root.exists() and any(root.iterdir()):
        raise WriteError(f"write.root={str(root)!r} exists: name a new folder, or delete it")
    return root


def _check_labels(cfg: LabelConfig, labels: LabelFile, reader: EpisodeReader, builder: RequestBuilder) -> None:
    """Refuse a label file of another dataset, or (if not allowed) of another backend, model or prompt."""
    mine = {"backend": str(cfg.backend)}
    if _asks_model(cfg):
        mine |= {"model": _model_of(cfg), "prompt_sha256": builder.prompt.sha256}
    for episode, label_ in labels.items():
        check_belongs(label_, reader, str(labels.path))
        theirs = label_.provenance
        if cfg.backend == BackendName.none or cfg.allow_mixed or theirs.backend == "import":
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
    if cfg.backend == BackendName.none:
        return
    model = f", {_model_of(cfg)}" if _asks_model(cfg) else ""
    where = f" at {cfg.endpoint.api_base}" if cfg.backend == BackendName.endpoint else ""
    print(f"Backend    {cfg.backend}{model}{where}")
    if builder.cameras:
        print(f"Prompt     {builder.prompt.name} v{builder.prompt.version}, sha256 {builder.prompt.sha256[:12]}")
        frames = f"{cfg.keyframes.kind}, at most {cfg.keyframes.n_frames} frames each"
        print(f"Cameras    {', '.join(builder.cameras)}; {frames}")
    print(estimate(reader, todo, builder.cameras, cfg.keyframes, builder.prompt.text, cfg.prices))


def _run(cfg, reader, builder, labels, todo, shares) -> Summary:
    if not todo or cfg.backend == BackendName.none:
        return Summary()
    cancel = threading.Event()
    with _interruptible(cancel):
        labeller = make_labeller(cfg, reader, cancel)
        try:
            return label_episodes(reader, todo, builder, labeller, labels, cfg.max_attempts, cancel, shares.is_first)
        finally:
            labeller.close()


@contextmanager
def _interruptible(cancel: threading.Event) -> Iterator[None]:
    """Ctrl-C (or SIGTERM) sets the event; a second one ends the process at once."""

    def interrupt(number, _) -> None:
        cancel.set()
        signal.signal(number, signal.SIG_DFL)
        print("\nInterrupted: finishing the requests at work. Once more ends at once.", file=sys.stderr)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _finish(cfg: LabelConfig, reader: EpisodeReader, labels: LabelFile, summary: Summary, target: Path | None) -> None:
    if cfg.backend != BackendName.none:
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
    if cfg.write.target == WriteTarget.copy:
        write_copy(reader.root, target, labels)
    else:
        backup, names = write_in_place(target, labels)
        print(f"Backup     {backup}: {len(names)} files")
        for name in names:
            print(f"             {name}")
    missing = len(reader) - len(labels)
    print(f"Written    {len(labels)} labels into {target}" + (f"; {missing} episodes have none" if missing else ""))


def main() -> None:
    """Console script `coc-label`."""
    flags = {f"--{name}" for name, f in LabelConfig.__dataclass_fields__.items() if f.type in (bool, "bool")}
    # LeRobot's parser wants --dry_run=true; a bare --dry_run means the same.
    given = sys.argv[1:]
    sys.argv[1:] = [
        f"{arg}=true" if arg in flags and after.startswith("--") else arg
        for arg, after in zip(given, [*given[1:], "--"], strict=False)
    ]
    with command_errors("coc-label", *USER_ERRORS):
        try:
            summary = parser.wrap()(label)()
        except ParsingError as error:
            # draccus buries what a nested dataclass says under "Couldn't instantiate class".
            if isinstance(error.__cause__, ConfigError):
                raise error.__cause__ from None
            raise
    if summary.stopped:
        sys.exit(130 if summary.stopped == "interrupted" else 1)


if __name__ == "__main__":
    main()
