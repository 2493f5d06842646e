"""Kill each long job at random moments until it ends, and compare with a run that nobody disturbed.

python tests/faults/storm.py --kills=30 --jobs=precompute,labels --seed=1

Two kills in three are of the command itself (SIGKILL, as a batch system does it), every third one is of one of its
child processes where it has any (as the memory killer does it). After each kill the same command is given again. Of
what was finished before a kill nothing may be gone (lost) or be done again (twice), and what the job ends with must be
what the undisturbed run ended with (different). Every moment follows from the seed, which is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # a distribution's own package `tests` may stand before ours
    package = types.ModuleType("tests")
    package.__path__ = [str(Path(__file__).parents[1])]
    sys.modules["tests"] = package
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.faults.commands import Done, exit_code, start, tree  # noqa: E402

LONGEST_S = 400.0
# Seconds after a child was killed in which the command may still end by itself.
_AFTER_A_CHILD_S = 60.0


@dataclass
class Job:
    """A long job.

    Attributes:
        main: The console script's `main`, or "module:function" where it needs an interpreter of its own.
        arguments: Its command line for an output in a folder.
        result: What it ended with, of that folder: equal to that of an undisturbed run.
        finished: What of it is finished and must never be done again: name -> what changes when it is done again.
        is_over: Whether it has published its output, so that the unfinished work may go.
    """

    main: Callable[[], object] | str
    arguments: Callable[[Path], list[str]]
    result: Callable[[Path], object]
    finished: Callable[[Path], dict[str, object]] = lambda folder: {}
    is_over: Callable[[Path], bool] = lambda folder: False


@dataclass
class Storm:
    """What a storm over one job did and found."""

    kills: int = 0
    of_a_child: int = 0
    rounds: int = 0
    lost: int = 0
    twice: int = 0
    different: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def is_weathered(self) -> bool:
        return not (self.lost or self.twice or self.different or self.notes)

    def __str__(self) -> str:
        said = f"{self.kills} kills ({self.of_a_child} of a child) in {self.rounds} rounds: "
        said += f"{self.lost} lost, {self.twice} twice, {self.different} different"
        return said + "".join(f"\n    {note}" for note in self.notes)


def storm(job: Job, n_kills: int, seed: int, base: Path) -> Storm:
    """Kill a job n times, in as many rounds from nothing to its end as that takes.

    Args:
        job: The job.
        n_kills: Kills that hit.
        seed: Of the moments.
        base: A new folder to work in.
    """
    rng, found = random.Random(seed), Storm()
    (base / "whole").mkdir(parents=True)
    begun = time.monotonic()
    done = _run_to_the_end(job, base / "whole")
    longest_s = time.monotonic() - begun
    if done.status != 0:
        found.notes.append(f"undisturbed: exit status {done.status}: {done.err[-500:]}")
        return found
    whole = job.result(base / "whole")
    while found.kills < n_kills and len(found.notes) < 5:
        found.rounds += 1
        folder = base / f"round-{found.rounds}"
        folder.mkdir()
        before: dict[str, object] = {}
        begun, n_before = time.monotonic(), found.kills
        while True:
            has_ended = _disturb(job, folder, found, rng, longest_s if found.kills < n_kills else None)
            now = job.finished(folder)
            if not job.is_over(folder):
                found.lost += len(before.keys() - now.keys())
            found.twice += sum(now[name] != before[name] for name in now.keys() & before.keys())
            before = now
            if has_ended or len(found.notes) >= 5:
                break
        if has_ended and found.kills == n_before:  # a busy machine made the first run slow: else no kill would hit
            longest_s = min(longest_s, time.monotonic() - begun)
        if has_ended and job.result(folder) != whole:
            found.different += 1
            found.notes.append(f"round {found.rounds} ended with something else: see {folder}")
    return found


def _run_to_the_end(job: Job, folder: Path) -> Done:
    log = folder / "log"
    pid = start(job.main, *job.arguments(folder), log=log)
    status = _end_within(pid, LONGEST_S)
    if status is None:
        _kill_all(pid)
    return Done(-1 if status is None else status, *(log.with_suffix(f".{n}").read_text() for n in ("out", "err")))


def _disturb(job: Job, folder: Path, found: Storm, rng: random.Random, within_s: float | None) -> bool:
    """Start the job and kill it, or a child of it, at a moment; without `within_s` let it end.

    Returns:
        Whether it ended as it should, before the kill or in spite of it.
    """
    log = folder / "log"
    pid = start(job.main, *job.arguments(folder), log=log)
    status = _end_within(pid, LONGEST_S if within_s is None else rng.uniform(0, 1.1 * within_s))
    if status is None and within_s is not None:
        children = _below(pid)
        found.kills += 1
        if rng.random() < 1 / 3 and children:
            found.of_a_child += 1
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(children), signal.SIGKILL)
            status = _end_within(pid, _AFTER_A_CHILD_S + LONGEST_S)
            if status is None:
                found.notes.append(f"kill {found.kills}, of a child: the command never ended")
        else:
            os.kill(pid, signal.SIGKILL)
            _end_within(pid, LONGEST_S)
            return False
    if status is None:
        _kill_all(pid)
        found.notes.append(f"round {found.rounds}: no end after {LONGEST_S:.0f} s")
        return False
    err = log.with_suffix(".err").read_text(errors="replace")
    if status != 0 and ("Traceback" in err or within_s is None):
        found.notes.append(f"round {found.rounds}, after kill {found.kills}: status {status}: {err[-600:]}")
    return status == 0


def _end_within(pid: int, seconds: float) -> int | None:
    """The exit status of a process (128 + n by a signal n); None if it is still at work after so long."""
    end = time.monotonic() + seconds
    while True:
        if (code := exit_code(pid)) is not None:
            return code if code >= 0 else 128 - code
        if time.monotonic() > end:
            return None
        time.sleep(0.005)


def _below(leader: int) -> list[int]:
    """All processes that a process started, and those that these started."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [leader]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def _kill_all(pid: int) -> None:
    for each in [*_below(pid), pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    _end_within(pid, 60)


# The jobs.


def _stamps(folder: Path, pattern: str) -> dict[str, object]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in sorted(folder.glob(pattern))}


@contextmanager
def jobs(names: list[str], base: Path) -> Iterator[dict[str, Job]]:
    """The jobs of some names, with what they need.

    Args:
        names: Of `NAMES`.
        base: Where what they need is made.
    """
    with contextlib.ExitStack() as stack:
        data = _Data(base)
        yield {name: NAMES[name](data, stack) for name in names}


class _Data:
    """A small dataset, its companion and a checkpoint, each made when it is first asked for."""

    def __init__(self, base: Path, lengths: tuple[int, ...] = (6, 5, 7, 9, 4, 8)) -> None:
        self.base, self.lengths = base, lengths

    @property
    def images(self) -> Path:
        from tests.fixtures_datasets import make_dataset

        root = self.base / "images"
        if not root.exists():
            make_dataset(root, lengths=self.lengths, cameras=["observation.images.top"], use_videos=False, size=32)
        return root

    @property
    def world(self) -> Path:
        root = self.base / "world"
        if not root.exists():
            from world_modality_core.encoders.spec import EncoderSpec
            from world_modality_core.precompute.precompute_options import (
                OutputConfig,
                PrecomputeConfig,
                SourceConfig,
                TokensConfig,
            )
            from world_modality_core.precompute.steps import precompute

            precompute(PrecomputeConfig(
                dataset=SourceConfig("tests/source", str(self.images)), output=OutputConfig("tests/world", str(root)),
                encoder=EncoderSpec(family="efficientnet_lite0", height_px=32, width_px=32, pca_dim=8),
                tokens=TokensConfig(n_codes=4), device="cpu", num_workers=0,
            ))  # fmt: skip
        return root


def _precompute(data: _Data, stack: contextlib.ExitStack) -> Job:
    from world_modality_core.precompute.cli import main

    images = data.images
    return Job(
        main,
        lambda folder: [
            "--dataset.repo_id=tests/source", f"--dataset.root={images}", "--output.repo_id=tests/world",
            f"--output.root={folder / 'world'}", "--encoder.family=efficientnet_lite0", "--encoder.height_px=32",
            "--encoder.width_px=32", "--encoder.pca_dim=8", "--tokens.n_codes=4", "--device=cpu", "--num_workers=1",
            "--merge", "--strip_images",
        ],
        lambda folder: [tree(folder / f"world{kind}") for kind in ("", "_merged", "_stripped")],
        lambda folder: _stamps(folder, "world.partial/episodes/*.npy"),
        lambda folder: (folder / "world").exists(),
    )  # fmt: skip


def _prophet(data: _Data, stack: contextlib.ExitStack) -> Job:
    from world_modality_core.prophet.cli import main

    world, images = data.world, data.images
    return Job(
        main,
        lambda folder: [
            f"--companions={world}", f"--sources={images}", f"--output_dir={folder / 'P'}", "--steps=60",
            "--prophet.d_model=16", "--prophet.n_layers=1", "--prophet.n_heads=2", "--n_future_steps=2",
            "--batch_size=8", "--eval_freq=10", "--save_freq=5", "--eval_split=0.25", "--device=cpu",
        ],
        lambda folder: tree(folder / "P"),
    )  # fmt: skip


def _labels(data: _Data, stack: contextlib.ExitStack) -> Job:
    from coc_tools.cli import main
    from coc_tools.store import read_labels
    from tests.coc.many_episodes import make_many
    from tests.coc.mock_endpoint import MODEL, MockEndpoint
    from tests.fixtures_datasets import make_dataset

    cameras = ["observation.images.top"]
    make_dataset(data.base / "one", "tests/one", lengths=[4], cameras=cameras, use_videos=False, size=8)
    many = make_many(data.base / "one", data.base / "many", 40)
    server = stack.enter_context(MockEndpoint())

    def result(folder: Path) -> object:
        labels = read_labels(folder / "labels.jsonl")
        said = {e: label.model_dump(exclude={"provenance": {"date"}}) for e, label in labels.items()}
        return said, tree(folder / "copy", ".coc_copy.json")  # without the dates

    def finished(folder: Path) -> dict[str, object]:
        path = folder / "labels.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return {str(i): line for i, line in enumerate(lines)}

    return Job(
        main,
        lambda folder: [
            f"--dataset.root={many}", f"--labels={folder / 'labels.jsonl'}", f"--endpoint.api_base={server.api_base}",
            f"--endpoint.model={MODEL}", "--endpoint.api_key_env=NO_KEY", "--endpoint.concurrency=4",
            "--write.target=copy", f"--write.root={folder / 'copy'}",
        ],
        result,
        finished,
    )  # fmt: skip


def _record(n_workers: int) -> Callable[[_Data, contextlib.ExitStack], Job]:
    """A recording, by processes of its own or alone: those import LeRobot anew after each kill."""
    return lambda data, stack: Job(
        "lerobot_policy_world_modality.record.cli:main",
        lambda folder: [
            "--tasks=reach-v3", "--n_episodes=6", f"--n_workers={n_workers}", "--env.observation_height=32",
            "--env.observation_width=32", "--output.repo_id=tests/recorded", f"--output.root={folder / 'data'}",
        ],
        lambda folder: tree(folder / "data", "videos"),  # the encoder's threads make no two files alike to the byte
        lambda folder: _stamps(folder, "data.recording/reach-v3/*.json"),
        lambda folder: (folder / "data").exists(),
    )  # fmt: skip


def _evaluation(data: _Data, stack: contextlib.ExitStack, *, is_async: bool) -> Job:
    from tests.evaluation.helpers import SIZE, make_checkpoint
    from world_modality_core.studies.evidence.episode_records import read_episodes

    checkpoint = make_checkpoint(data.base / "policies/F/pretrained_model")

    def result(folder: Path) -> object:
        return read_episodes(folder / "eval").drop(columns="wall_s").to_json()

    return Job(
        "lerobot_policy_world_modality.evaluation.cli:main",
        lambda folder: [
            f"--policy.path={checkpoint}", "--env.type=metaworld_light", "--env.task=drawer-close-v3",
            "--env.episode_length=12", f"--env.observation_height={SIZE}", f"--env.observation_width={SIZE}",
            "--eval.n_episodes=6", "--eval.batch_size=2", f"--eval.use_async_envs={str(is_async).lower()}",
            "--seed=100", "--train_seed=0",
            "--arms=intact,shuffle,zero", "--videos=first:2", "--policy.device=cpu", f"--output_dir={folder / 'eval'}",
        ],
        result,
        lambda folder: _stamps(folder, "eval/episodes/*.parquet"),
    )  # fmt: skip


def _training(data: _Data, stack: contextlib.ExitStack) -> Job:
    """A study of one training, by wm-matrix, which goes on from LeRobot's last checkpoint."""
    import yaml

    from tests.plugin.helpers import SMALL

    data = _Data(data.base / "long", lengths=(24,) * 7)  # one epoch: in later ones LeRobot draws other batches
    train = {
        "dataset.repo_id": "tests/source", "dataset.root": str(data.images), "policy.companion.root": str(data.world),
        "policy.type": "world_F", **{f"policy.{name}": value for name, value in SMALL.items()}, "batch_size": 4,
        "policy.metrics_every": 1, "num_workers": 0, "steps": 40, "save_freq": 4,
    }  # fmt: skip
    study = {"seeds": [3], "root": "unused", "train": train, "eval": {"env.task": "reach-v3"}, "models": {"F": {}}}
    (data.base / "study.yaml").write_text(yaml.safe_dump(study))

    def result(folder: Path) -> object:
        (last,) = folder.glob("root/train-*/train/checkpoints/000040/pretrained_model/model.safetensors")
        (metrics,) = folder.glob("root/train-*/metrics.jsonl")
        return last.read_bytes(), metrics.read_bytes().count(b"\n")

    return Job(
        "forked_study:main",
        lambda folder: [str(data.base / "study.yaml"), f"--root={folder / 'root'}", "--only=train-*", "--retry_failed"],
        result,
    )


def _push(data: _Data, stack: contextlib.ExitStack) -> Job:
    """The upload of a companion, to a small Hub that starts each round empty."""
    from tests.hub.server import Hub

    hub = stack.enter_context(Hub({"hf_token": "me"}))
    os.environ |= {  # read when huggingface_hub is imported: below
        "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_token", "HF_HUB_OFFLINE": "0", "HF_HOME": str(data.base / "hf"),
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    from wm_tools.push.cli import main

    world = data.world

    def arguments(folder: Path) -> list[str]:
        if ("datasets", f"me/{folder.name}") not in hub.repositories:
            hub.objects.clear()
        return [str(world), f"--repo_id=me/{folder.name}"]

    def finished(folder: Path) -> dict[str, object]:
        repository = hub.repositories.get(("datasets", f"me/{folder.name}"))
        return {} if repository is None else {str(i): commit.sha for i, commit in enumerate(repository.commits)}

    def result(folder: Path) -> object:
        n_commits = len(finished(folder))  # an upload that arrived whole is not made again
        return n_commits, hub.files("datasets", f"me/{folder.name}"), tree(world)

    return Job(main, arguments, result, finished)


NAMES = {
    "precompute": _precompute,
    "prophet": _prophet,
    "labels": _labels,
    "record": _record(n_workers=1),
    "record_2": _record(n_workers=2),
    "evaluation": partial(_evaluation, is_async=False),
    "evaluation_2": partial(_evaluation, is_async=True),
    "training": _training,
    "push": _push,
}
"""The long jobs; those with a 2 have processes of their own, which import everything anew after each kill."""


def main() -> int:
    """Weather storms over the jobs that are named; exit status 1 if one wasn't."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="kills of each job (30)")
    parser.add_argument("--jobs", default=",".join(NAMES), help=f"which ones ({','.join(NAMES)})")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the moments (the time)")
    given = parser.parse_args()
    names, is_weathered = given.jobs.split(","), True
    if len(names) > 1:  # each in a process of its own: what is read at import differs
        options = [f"--kills={given.kills}", f"--seed={given.seed}"]
        return max(subprocess.run([sys.executable, __file__, f"--jobs={n}", *options]).returncode for n in names)
    folder = tempfile.mkdtemp(prefix="storm-")
    print(f"storm: --seed={given.seed} --kills={given.kills} --jobs={given.jobs}, in {folder}", flush=True)
    with jobs(names, Path(folder)) as known:
        for name, job in known.items():
            begun = time.monotonic()
            found = storm(job, given.kills, given.seed, Path(folder) / f"storm-{name}")
            print(f"{name:<12} {found} ({time.monotonic() - begun:.0f} s)", flush=True)
            is_weathered &= found.is_weathered
    return 0 if is_weathered else 1


if __name__ == "__main__":
    sys.exit(main())
