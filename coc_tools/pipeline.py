"""Labelling many episodes: one thread reads ahead, some label, this one writes.

Little more is read than is at work, so memory does not grow with the number of episodes. Whatever the progress bar
counts is on disk; a kill costs the episodes in between, which the next run does again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from itertools import batched

from coc_tools import TOOL_VERSION
from coc_tools.backends import BackendUnusable, Cancelled, Labeller, LabelRequest, Rejected
from coc_tools.episodes import EpisodeReader
from coc_tools.request import RequestBuilder
from coc_tools.schema import EpisodeLabel, LabelStep, Provenance
from coc_tools.store import Failure, LabelFile, utc_now
from coc_tools.validate import ReplyError, check_reply
from world_modality_core.io.progress import Progress

# Batches that are read ahead for each one at work.
_AHEAD = 2
# Episodes in a row without any reply until the run gives up: the server is gone, or the dataset's files are.
GIVE_UP_AFTER = 50


@dataclass
class Summary:
    """What a run did.

    Attributes:
        n_labelled: Episodes that got a label.
        failures: Episodes that were set aside -> reason.
        n_retries: Replies that were not accepted.
        n_input_tokens: Tokens read by the model.
        n_output_tokens: Tokens written by it.
        seconds: Wall time.
        stopped: Why the run ended early, "" if it did not.
    """

    n_labelled: int = 0
    failures: dict[int, str] = field(default_factory=dict)
    n_retries: int = 0
    n_input_tokens: int = 0
    n_output_tokens: int = 0
    seconds: float = 0.0
    stopped: str = ""


@dataclass
class _Result:
    """What became of an episode: steps, or an error."""

    request: LabelRequest | None
    episode_index: int
    steps: list[LabelStep] | None = None
    error: str = ""
    # Whether the backend replied at all.
    is_answered: bool = False
    replies: list[str] = field(default_factory=list)
    n_input_tokens: int = 0
    n_output_tokens: int = 0


def label_episodes(
    reader: EpisodeReader,
    episodes: Sequence[int],
    builder: RequestBuilder,
    labeller: Labeller,
    labels: LabelFile,
    max_attempts: int = 3,
    cancel: threading.Event | None = None,
    show_progress: bool = True,
) -> Summary:
    """Label episodes and write each label as it comes.

    Args:
        reader: The dataset.
        episodes: Episodes to label.
        builder: Makes their requests.
        labeller: The backend.
        labels: Where labels and failures go.
        max_attempts: Replies per episode until it is set aside.
        cancel: Set it to stop after the requests that are at work.
        show_progress: Whether to show a bar with time left, tokens a second and failures.

    Returns:
        What was done; `stopped` says why if the run ended early.
    """
    work = _Work(reader, builder, labeller, max_attempts, cancel or threading.Event())
    summary, start, n_unanswered = Summary(), time.monotonic(), 0
    progress = Progress("Labelling", len(episodes), "episodes", is_shown=show_progress)
    with ThreadPoolExecutor(1) as reading, ThreadPoolExecutor(labeller.n_workers) as labelling, progress:
        todo, at_work = batched(episodes, labeller.batch_size), set()
        try:
            while True:
                while len(at_work) < (1 + _AHEAD) * labeller.n_workers and not work.cancel.is_set():
                    if (batch := next(todo, None)) is None:
                        break
                    reads = [reading.submit(work.read, episode) for episode in batch]
                    at_work.add(labelling.submit(work.label, reads))
                if not at_work:
                    break
                done, at_work = wait(at_work, return_when=FIRST_COMPLETED)
                for result in (result for future in done for result in future.result()):
                    _write(result, labeller, builder, labels, summary)
                    n_unanswered = 0 if result.is_answered else n_unanswered + 1
                    if n_unanswered == GIVE_UP_AFTER:
                        work.stop(f"{GIVE_UP_AFTER} episodes in a row got no reply; the last reason: {result.error}")
                    rate = (summary.n_input_tokens + summary.n_output_tokens) / max(time.monotonic() - start, 1e-9)
                    progress.note(**{"tokens/s": f"{rate:.0f}", "failed": len(summary.failures)})
                    progress.update()
        except BaseException:  # a full disk, say: no thread may go on with requests whose labels nobody will write
            work.cancel.set()
            raise
    summary.stopped, summary.seconds = work.reason, time.monotonic() - start
    if not summary.stopped and summary.n_labelled + len(summary.failures) < len(episodes):
        summary.stopped = "interrupted"
    return summary


def _write(result: _Result, labeller: Labeller, builder: RequestBuilder, labels: LabelFile, summary: Summary) -> None:
    summary.n_input_tokens += result.n_input_tokens
    summary.n_output_tokens += result.n_output_tokens
    summary.n_retries += max(0, len(result.replies) - (result.steps is not None))
    if result.steps is None:
        summary.failures[result.episode_index] = result.error
        attempts = max(1, len(result.replies))
        labels.append_failure(Failure(
            episode_index=result.episode_index, error=result.error, replies=result.replies, attempts=attempts,
            date=utc_now(),
        ))  # fmt: skip
        return
    shown: dict[str, list[float]] = {}
    for image in result.request.images:
        shown.setdefault(image.camera, []).extend(image.timestamps)
    prompt = builder.prompt if labeller.needs_images else None
    provenance = Provenance(
        backend=labeller.name,
        model=labeller.model,
        revision=labeller.revision,
        prompt_name=prompt and prompt.name,
        prompt_version=prompt and prompt.version,
        prompt_sha256=prompt and prompt.sha256,
        sampling=labeller.sampling,
        frames_shown=shown,
        gripper=str(builder.gripper) if shown and builder.gripper else None,
        date=utc_now(),
        tool_version=TOOL_VERSION,
    )
    episode = result.request.episode
    labels.append(EpisodeLabel(
        episode_index=episode.index, task=episode.task, length_s=episode.length_s, steps=result.steps,
        provenance=provenance,
    ))  # fmt: skip
    summary.n_labelled += 1


@dataclass
class _Work:
    """What the threads do. `cancel` lets nothing new start; `reason` says why, if it was not the user."""

    reader: EpisodeReader
    builder: RequestBuilder
    labeller: Labeller
    max_attempts: int
    cancel: threading.Event
    reason: str = ""

    def stop(self, reason: str) -> None:
        self.reason = self.reason or reason
        self.cancel.set()

    def read(self, index: int) -> LabelRequest | _Result | None:
        if self.cancel.is_set():
            return None
        try:
            return self.builder.build(self.reader[index])
        except Exception as error:  # one damaged episode must not cost the others
            return _Result(None, index, error=f"cannot be read: {type(error).__name__}: {error}")

    def label(self, reads: list[Future]) -> list[_Result]:
        items = [read.result() for read in reads]
        if self.cancel.is_set():
            return []
        results = [item for item in items if isinstance(item, _Result)]
        try:
            results += self._ask([item for item in items if isinstance(item, LabelRequest)])
        except Cancelled:
            pass
        except BackendUnusable as error:
            self.stop(str(error))
        return results

    def _ask(self, requests: list[LabelRequest]) -> list[_Result]:
        results = [_Result(request, request.episode.index) for request in requests]
        open_ = list(results)
        for _ in range(self.max_attempts):
            if not open_:
                break
            if self.cancel.is_set():
                return [result for result in results if result.steps is not None]
            try:
                replies = self.labeller.label_many([result.request for result in open_])
            except (BackendUnusable, Cancelled):
                raise
            except Exception as error:  # of a backend or a server: listed with the episode, not lost
                for result in open_:
                    result.error = f"{type(error).__name__}: {error}"
                break
            for result, reply in zip(open_, replies, strict=True):
                result.is_answered = True
                result.replies.append(reply.text)
                result.n_input_tokens += reply.n_input_tokens
                result.n_output_tokens += reply.n_output_tokens
                try:
                    result.steps = check_reply(reply, result.request)
                except ReplyError as error:
                    result.error = str(error)
                    result.request = replace(result.request, rejected=Rejected(reply.text, str(error)))
            open_ = [result for result in open_ if result.steps is None]
        return results
