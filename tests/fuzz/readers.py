"""Every reader of files that somebody else may have written or damaged, with valid files for it.

A reader may do what it likes with a damaged file but for one thing: to end otherwise than with a `UserError` (or one of
the few older classes in `TOLD`), which the console scripts print as one line.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from coc_tools.validate import ReplyError
from world_modality_core.io.errors import UserError

TOLD = (UserError, ReplyError)
"""What the console scripts print as one line."""


class Hang(BaseException):
    """A reader took too long."""


@dataclass
class Target:
    """One reader.

    Attributes:
        name: What it reads.
        folder: Its valid files.
        files: Of these, name -> kind ("json", "jsonl", "text", "binary").
        read: Called with a folder like `folder`, of which one file is damaged.
        weight: How many of the inputs it gets, relatively.
        leaves: Whether it changes the folder, which is then copied anew for each input.
    """

    name: str
    folder: Path
    files: dict[str, str]
    read: Callable[[Path], object]
    weight: float = 1.0
    leaves: bool = False
    outcomes: dict[str, int] = field(default_factory=lambda: {"read": 0, "refused": 0})


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `Hang` in the block when it takes longer."""

    def ring(*_) -> None:
        raise Hang(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fuzz(target: Target, n: int, seed: int, work: Path, damaged: Callable, limit_s: float = 120.0) -> list[dict]:
    """Let a reader read damaged files.

    Args:
        target: The reader.
        n: How many damaged files.
        seed: Seed of the damage.
        work: To work in: `base / "work"`.
        damaged: (content, kind, rng) -> damaged content.
        limit_s: Longest time for one of them.

    Returns:
        Those that ended otherwise than they may: what was damaged, how, and the error.
    """
    found, names = [], sorted(target.files)
    folder = fresh(target, work)
    for i in range(n):
        rng = random.Random(f"{seed}-{target.name}-{i}")
        name = rng.choice(names)
        valid = (target.folder / name).read_bytes()
        content = damaged(valid, target.files[name], rng)
        if target.leaves:
            fresh(target, work)
        (folder / name).write_bytes(content)
        try:
            with time_limit(limit_s):
                target.read(folder)
            target.outcomes["read"] += 1
        except TOLD as error:
            target.outcomes["refused"] += 1
            if not str(error).strip():
                found.append({"file": name, "i": i, "error": f"{type(error).__name__} without a message"})
        except (Exception, Hang) as error:
            found.append({"file": name, "i": i, "error": f"{type(error).__name__}: {error}"[:300]})
        if not target.leaves:
            (folder / name).write_bytes(valid)
    return found


def fresh(target: Target, work: Path) -> Path:
    """A copy of a reader's valid files."""
    folder = work / target.folder.name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(target.folder, folder)
    return folder


def make_targets(base: Path, source: Path, companion: Path, write_study: Callable) -> list[Target]:
    """All readers, with their valid files in `base`.

    Args:
        base: A new folder.
        source: A small LeRobotDataset with videos.
        companion: Its companion, with PCA and tokens.
        write_study: `tests.studies.report.synthetic.write_study`.
    """
    from world_modality_core.latents.companion import open_companion

    opened = open_companion(root=companion)
    _ = opened.table  # writes the cache
    return [
        *_companions(base, companion, opened),
        *_sources(base, source),
        *_records(base, write_study),
        *_queues(base),
        *_prophets(base, opened),
        *_monitors(base, opened),
        *_labels(base, source),
    ]


# Companions.


def _companions(base: Path, companion: Path, opened) -> list[Target]:
    from lerobot.datasets import LeRobotDatasetMetadata

    from world_modality_core.encoders.spec import EncoderSpec
    from world_modality_core.io.files import as_dataclass, read_json
    from world_modality_core.latents import companion as module
    from world_modality_core.latents.fingerprint import SOURCE_FILE, SourceFingerprint
    from world_modality_core.latents.latent_table import LatentTable, build_table
    from world_modality_core.precompute.staging import Staging

    meta = LeRobotDatasetMetadata("tests/world", root=companion)
    own = {module.INFO_FILE: "json", module.STATS_FILE: "binary", module.PCA_FILE: "binary"}
    own[module.CODEBOOK_FILE] = "binary"
    info, width = opened.info, opened.table.latents.shape[1]

    def parts(root: Path) -> None:
        opened = module._load(meta, root, None)
        if opened.codebook is not None:
            assert opened.codebook.n_codes >= 0

    def whole(root: Path) -> None:
        module.open_companion(root=root)

    def data(root: Path) -> None:
        files = sorted((root / "data").glob("*/*.parquet"))
        build_table(files, opened.bounds, root / "flat", width, info.tokens_per_frame, info.content_sha256)

    def cache(root: Path) -> None:
        latents, tokens = (sorted(root.glob(f"{name}-*.npy"))[0] for name in ("latents", "tokens"))
        table = LatentTable(latents, tokens, opened.bounds)
        table.gather([0, len(table.latents) - 1], [-2, 0, 3])
        table.gather_tokens([0], [0])

    only_meta = _copy(companion / "meta", base / "companion/meta").parent
    whole_files = {str(p.relative_to(companion)): "binary" for p in (companion / "meta").rglob("*.parquet")}
    whole_files |= {"meta/info.json": "json", module.INFO_FILE: "json"}
    data_folder = _copy(companion / "data", base / "data/data").parent
    data_files = {str(p.relative_to(data_folder)): "binary" for p in data_folder.rglob("*.parquet")}
    flat = _copy(companion / "cache", base / "cache")
    flat_files = {p.name: "binary" for p in flat.glob("*.npy")}
    staged = base / "staged"
    request = {"source": info.source, "encoder": info.encoder, "pca": None}
    Staging(staged).begin(request).release()
    mark = base / "mark"
    (mark / "meta").mkdir(parents=True)
    opened.source.write(mark)
    spec = base / "spec"
    spec.mkdir()
    (spec / "spec.json").write_text(json.dumps(info.encoder))

    def read_spec(root: Path) -> None:
        read = as_dataclass(EncoderSpec, read_json(root / "spec.json"), root / "spec.json")
        assert read.spec_id and read.window_span and read.parts

    def read_staged(root: Path) -> None:
        Staging(root).begin(request).release()

    return [
        Target("companion: its own files", only_meta, own, parts, 3),
        Target("companion: LeRobot's metadata", only_meta, whole_files, whole, 0.15),
        Target("companion: data", data_folder, data_files, data, 0.6, leaves=True),
        Target("latent cache", flat, flat_files, cache, 2),
        Target("unfinished precompute", staged, {"request.json": "json"}, read_staged, 1, leaves=True),
        Target("mark of a copy", mark, {SOURCE_FILE: "json"}, SourceFingerprint.read, 2),
        Target("encoder spec", spec, {"spec.json": "json"}, read_spec, 3),
    ]


def _sources(base: Path, source: Path) -> list[Target]:
    import numpy as np

    from world_modality_core.precompute.decoding import video_frames
    from world_modality_core.studies.report.media import picture_uri, playable

    folder = base / "video"
    folder.mkdir()
    shutil.copy(sorted((source / "videos").rglob("*.mp4"))[0], folder / "v.mp4")
    from PIL import Image

    Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(folder / "p.jpg")

    def frames(root: Path) -> None:
        for _ in video_frames(root / "v.mp4", (64, 64), np.arange(12) / 10):
            pass

    return [
        Target("video", folder, {"v.mp4": "binary"}, frames, 0.3),
        Target("video of a page", folder, {"v.mp4": "binary"}, lambda root: playable(root / "v.mp4"), 0.05),
        Target("picture of a page", folder, {"p.jpg": "binary"}, lambda root: picture_uri(root / "p.jpg"), 1),
    ]


# Records: wm-compare's and wm-report's.


def _records(base: Path, write_study: Callable) -> list[Target]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from world_modality_core.studies.evidence.episode_records import read_episodes, read_eval_infos
    from world_modality_core.studies.report.film import read_imagined
    from world_modality_core.studies.report.records import CURVE_COLUMNS, read_records
    from world_modality_core.studies.report.report_page import make_page, render

    evaluation = write_study(base / "records/all", n_seeds=1, n_scenes=2) / "eval-F_k4-0"
    parts = {str(p.relative_to(evaluation)): "binary" for p in evaluation.rglob("episodes/*.parquet")}
    study = base / "study"
    (study / "train").mkdir(parents=True)
    everything = base / "records/all"
    shutil.copy(everything / "train-F_k4-0/metrics.jsonl", study / "train/metrics.jsonl")
    shutil.copy(everything / "train-F_k4-0/job.json", study / "train/job.json")
    shutil.copy(everything / "intervene-F_k4-0/intervene/interventions.json", study / "interventions.json")
    shutil.copy(everything / "prophet-P/prophet/curve.jsonl", study / "curve.jsonl")
    job = json.loads((study / "train/job.json").read_text())
    (study / "jobs.json").write_text(json.dumps({"schema": 1, "jobs": [job]}))
    (study / "study.yaml").write_text("# What for?\nstudy: x\n")
    columns = [["F"], [0], [10], ["loss_action"], [0.5]]
    pq.write_table(pa.table(dict(zip(CURVE_COLUMNS, columns, strict=True))), study / "training.parquet")
    shutil.copytree(_imagined(base / "imagined"), study / "imagined")
    study_files = {
        "train/metrics.jsonl": "jsonl", "train/job.json": "json", "interventions.json": "json", "curve.jsonl": "jsonl",
        "jobs.json": "json", "study.yaml": "text", "training.parquet": "binary", "imagined/imagined.json": "json",
    }  # fmt: skip

    def page(root: Path) -> None:
        records = read_records([str(root)])
        from world_modality_core.studies.report.paired_differences import compare_all

        compared = compare_all(records.episodes, "", "", False)
        for _ in render(make_page(records, compared, "x", 0)):
            pass

    return [
        Target("eval.json", evaluation / "eval", {"eval.json": "json"}, read_eval_infos, 3),
        Target("episodes", evaluation, parts, read_episodes, 0.25),
        Target("records of a page", study, study_files, lambda root: read_records([str(root)]), 0.8),
        Target("report page", study, study_files, page, 0.1),
        Target("imagined futures", base / "imagined", {"imagined.json": "json"}, _read_imagined(read_imagined), 3),
    ]


def _imagined(folder: Path) -> Path:
    from tests.studies.report.synthetic import make_imagined
    from world_modality_core.studies.report.film import write_imagined

    write_imagined(make_imagined(n_steps=1), folder)
    return folder


def _read_imagined(read: Callable) -> Callable[[Path], object]:
    return lambda root: read(root / "imagined.json")


# Studies.


def _queues(base: Path) -> list[Target]:
    import yaml

    from world_modality_core.studies.matrix.expand import expand
    from world_modality_core.studies.matrix.job_record import check_unchanged, new_record, prepare, state, write_record
    from world_modality_core.studies.matrix.study import load_study

    folder = base / "matrix"
    folder.mkdir()
    study = {
        "vars": {"data": "d"}, "root": "root", "seeds": [1, 2], "arms": ["intact", "zero"],
        "prophets": {"P": {"steps": 10, "companions": "${data}"}},
        "train": {"policy.type": "world_A", "steps": 10, "dataset.root": "${data}"},
        "eval": {"env.task": "a,b", "eval.n_episodes": 3},
        "models": {"A_{k}": {"for": {"k": [4, 8]}, "train": {"policy.n_future_steps": "{k}"}},
                   "F": {"prophet": "P", "train": {"policy.prophet.init_from": "{prophet}"}, "intervene": True}},
    }  # fmt: skip
    (folder / "study.yaml").write_text("# Does it help?\n" + yaml.safe_dump(study, sort_keys=False))
    job_folder = base / "work/job"  # where it is read: the record of a job holds its paths
    jobs = expand(load_study(folder / "study.yaml", root=str(job_folder)), lambda _: True)
    train = next(job for job in jobs if job.kind == "train")
    write_record(train.folder, new_record(train, 1, "2026-01-01") | {"state": "interrupted", "seconds": 1.5})
    last = train.output / "checkpoints/last"
    (last / "pretrained_model").mkdir(parents=True)
    (last / "training_state").mkdir()
    (last / "pretrained_model/train_config.json").write_text("{}")
    (last / "training_state/training_step.json").write_text('{"step": 3}')
    train.metrics.write_text('{"step": 1, "loss": 1.0}\n{"step": 4, "loss": 0.5}\n')
    files = {
        train.folder / "job.json": "json",
        last / "training_state/training_step.json": "json",
        train.metrics: "jsonl",
    }
    names = {str(path.relative_to(job_folder)): kind for path, kind in files.items()}
    job_folder = shutil.move(job_folder, base / "job")

    def read_study(root: Path) -> None:
        expand(load_study(root / "study.yaml", {"data": "x"}), lambda _: True)

    def read_job(root: Path) -> None:
        from world_modality_core.studies.matrix.job_record import read_record

        here = expand(load_study(folder / "study.yaml", root=str(root)), lambda _: True)
        job = next(job for job in here if job.name == train.name)
        check_unchanged([job])
        state(job)
        prepare(job, read_record(job.folder))

    return [
        Target("study", folder, {"study.yaml": "text"}, read_study, 1.5),
        Target("job", job_folder, names, read_job, 0.6, leaves=True),
    ]


# Prophets.


def _prophets(base: Path, opened) -> list[Target]:
    from dataclasses import asdict

    import torch
    from safetensors.torch import save_file

    from world_modality_core.configs import LanguageConfig, ProphetConfig
    from world_modality_core.prophet.saved_prophet import ProphetCheckpoint

    folder = base / "prophet"
    folder.mkdir()
    config = {
        "type": "prophet", "format_version": 1, "n_obs_steps": 3, "history_stride": 1, "n_future_steps": 2,
        "future_stride": 1, "prophet": asdict(ProphetConfig(d_model=16, use_state=True)),
        "encoder": asdict(opened.spec), "language": asdict(LanguageConfig()),
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    names = ["prophet.a", "space.mean", "space.std", "state.mean", "state.std"]
    save_file({name: torch.zeros(4) for name in names}, folder / "model.safetensors")

    policy = base / "policy"
    policy.mkdir()
    (policy / "config.json").write_text(json.dumps(config | {"type": "world_F"}))
    save_file({name: torch.zeros(4) for name in names}, policy / "model.safetensors")
    save_file({f"observation.state.{n}": torch.ones(4) for n in ("mean", "std")}, policy / "stats.safetensors")
    step = {"registry_name": "normalizer_processor", "state_file": "stats.safetensors"}
    step["config"] = {"norm_map": {"STATE": "MEAN_STD"}}
    (policy / "policy_preprocessor.json").write_text(json.dumps({"steps": [step]}))

    def read(root: Path) -> None:
        ProphetCheckpoint.read(root, "prophet.init_from").weights()

    files = {"config.json": "json", "model.safetensors": "binary"}
    more = {"policy_preprocessor.json": "json", "stats.safetensors": "binary"}
    return [
        Target("Prophet", folder, files, read, 2),
        Target("Prophet of a policy", policy, files | more, read, 2),
    ]


# Monitors.


def _monitors(base: Path, opened) -> list[Target]:
    from dataclasses import asdict

    import numpy as np

    from world_modality_core.configs import ProphetConfig
    from world_modality_core.monitor.monitor_rows import read_monitor_rows, scores_of_rows, write_monitor_rows
    from world_modality_core.monitor.saved_monitor import Monitor, MonitorDescription

    folder = base / "monitor"
    monitor = Monitor(
        MonitorDescription(
            encoder=asdict(opened.spec), prophet=asdict(ProphetConfig(d_model=8, n_heads=2, n_layers=1)), n_prophets=1,
            n_obs_steps=2, history_stride=1, n_future_steps=2, future_stride=2, state_dim=0, language_dim=0,
            action_dim=0, fps=10.0, tasks=["push the puck"], lengths=[20], n_phases=2, n_kept=2, n_maxima=2, window=1,
            false_alarm_rate=0.1,
        )
    )  # fmt: skip
    monitor.save(folder)

    rows, names = base / "monitor_rows", ["forecast_error_1", "elapsed_time"]
    row = {
        "model": "A", "train_seed": 1, "arm": "intact", "task": "push", "seed": 0, "instruction": "push the puck",
        "success": True, "steps": 6, "every": 2, "disturbance": "", "disturbed_at": None, "false_alarm_rate": 0.1,
        "alarm_step": 4, "monitor_s": 0.1, "level": [0.0, 1.0, 2.0], "values": np.zeros((3, 2)),
    }  # fmt: skip
    part = write_monitor_rows(rows, [row], names).relative_to(rows).as_posix()

    def read_rows(root: Path) -> None:
        scores_of_rows(read_monitor_rows([root]), names, ["push the puck"], "rows")

    return [
        Target("monitor", folder, {"monitor.json": "json", "monitor.safetensors": "binary"}, Monitor.load, 2),
        Target("rows of a monitor", rows, {part: "binary"}, read_rows),
    ]


# Labels.


def _labels(base: Path, source: Path) -> list[Target]:
    from coc_tools.backends import Reply
    from coc_tools.dataset_writer import INFO, recover
    from coc_tools.episodes import EpisodeReader
    from coc_tools.label_lines import iter_lines
    from coc_tools.request import load_objects
    from coc_tools.schema import EpisodeLabel, LabelStep, Provenance
    from coc_tools.store import LabelFile, read_failures, read_labels
    from coc_tools.validate import parse_steps
    from coc_tools.view.label_page import make_lane, render

    reader = EpisodeReader("tests/source", str(source))
    folder = base / "labels"
    folder.mkdir()
    steps = [
        LabelStep(start_s=0.0, end_s=0.4, what="It moves", why="it must", objects=["puck"], outcome="success"),
        LabelStep(start_s=0.4, end_s=1.0, what="It pushes", why="the goal is there", objects=[], outcome="partial"),
    ]
    origin = Provenance(backend="b", model="m", date="2026-01-01T00:00:00+00:00", tool_version="1")
    labels = [
        EpisodeLabel(episode_index=e, task=reader[e].task, length_s=reader[e].length_s, steps=steps, provenance=origin)
        for e in range(3)
    ]
    (folder / "labels.jsonl").write_text("".join(f"{label.to_line()}\n" for label in labels))
    failure = {"episode_index": 3, "error": "no", "replies": ["x"], "attempts": 1, "date": "2026-01-01"}
    (folder / "labels.failed.jsonl").write_text(json.dumps(failure) + "\n")
    (folder / "texts.jsonl").write_text('{"episode_index": 0, "coc_text": "a"}\n{"episode_id": "1", "coc_text": "b"}\n')
    (folder / "objects.json").write_text('{"push": ["puck"], "open": ["drawer", "handle"]}')
    (folder / "reply.txt").write_text('Here: ```json\n{"steps": [' + steps[0].model_dump_json() + "]}\n```")
    kinds = {"labels.jsonl": "jsonl", "labels.failed.jsonl": "jsonl"}

    def read(root: Path) -> None:
        read_labels(root / "labels.jsonl")
        read_failures(root / "labels.jsonl")

    def write(root: Path) -> None:
        with LabelFile(root / "labels.jsonl") as store:
            for episode in store:
                assert store[episode].episode_index == episode

    def view(root: Path) -> None:
        found = read_labels(root / "labels.jsonl")
        lanes = [make_lane("x", label, 1.2) for label in found.values()]
        assert all(lane.n_rows for lane in lanes)
        for _ in render("t", "n", ["x"], []):
            pass

    dataset = base / "written"
    (dataset / ".coc_write/new/meta").mkdir(parents=True)
    (dataset / "meta").mkdir()
    plan = {"files": ["data/chunk-000/file-000.parquet", INFO], "backup": str(base / "work/written.coc_backup-x")}
    (dataset / ".coc_write/journal.json").write_text(json.dumps(plan))

    def replies(root: Path) -> None:
        parse_steps(Reply((root / "reply.txt").read_bytes().decode("utf-8", "replace")).text)

    return [
        Target("labels", folder, kinds, read, 3),
        Target("labels that go on", folder, kinds, write, 1, leaves=True),
        Target("imported texts", folder, {"texts.jsonl": "jsonl"}, lambda r: list(iter_lines(r / "texts.jsonl")), 3),
        Target("viewer", folder, {"labels.jsonl": "jsonl"}, view, 0.5),
        Target("object names", folder, {"objects.json": "json"}, lambda r: load_objects(str(r / "objects.json")), 2),
        Target("a model's reply", folder, {"reply.txt": "text"}, replies, 3),
        Target("journal of a write", dataset, {".coc_write/journal.json": "json"}, recover, 1, leaves=True),
    ]


def _copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target
