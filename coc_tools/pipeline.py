"""Labelling many episodes: one thread reads ahead, some label, this one writes.

    reader thread --requests--> n_workers threads: label, check, try again --results--> the label file

Both queues are bounded, so memory does not grow with the number of episodes. Whatever has left the results queue is on
disk; a kill costs the episodes in between, which the next run does again.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tqdm import tqdm

from coc_tools import TOOL_VERSION
from coc_tools.backends import BackendUnusable, Cancelled, Labeller, LabelRequest, Rejected
from coc_tools.episodes import EpisodeReader
from coc_tools.request import RequestBuilder
from coc_tools.schema import EpisodeLabel, LabelStep, Provenance
from coc_tools.store import Failure, LabelFile, utc_now
from coc_tools.validate import ReplyError, check_reply

# Requests read ahead for each one at work.
_AHEAD = 2
# Episodes in a row without any reply until the run gives up: the server is gone, or the dataset's files are.
GIVE_UP_AFTER = 50
# How often a waiting thread looks whether the run was stopped (s).
_LOOK_S = 0.1


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
    # Whether there was a reply at all.
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
    run = _Run(reader, builder, labeller, max_attempts, cancel or threading.Event())
    summary, start = Summary(), time.monotonic()
    bar = tqdm(total=len(episodes), desc="Labelling", unit="ep", smoothing=0.05, disable=not show_progress)
    n_unanswered = 0
    try:
        with bar:
            run.start(episodes)
            for result in run.results():
                _write(result, labeller, builder, labels, summary)
                n_unanswered = 0 if result.is_answered else n_unanswered + 1
                if n_unanswered == GIVE_UP_AFTER:
                    run.stop(f"{GIVE_UP_AFTER} episodes in a row got no reply; the last reason: {result.error}")
                seconds = max(time.monotonic() - start, 1e-9)
                bar.set_postfix_str(
                    f"{(summary.n_input_tokens + summary.n_output_tokens) / seconds:.0f} tokens/s, "
                    f"{len(summary.failures)} failed",
                    refresh=False,
                )
                bar.update()
    except BaseException:  # a full disk, say: no thread may go on with requests whose labels nobody will write
        run.stop("")
        raise
    finally:
        run.join()
    summary.stopped, summary.seconds = run.reason, time.monotonic() - start
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
    request = result.request
    labels.append(EpisodeLabel(
        episode_index=request.episode_index, task=request.task, length_s=request.length_s, steps=result.steps,
        provenance=provenance,
    ))  # fmt: skip
    summary.n_labelled += 1


class _Run:
    """The threads of a run and the queues between them."""

    def __init__(self, reader, builder, labeller, max_attempts, cancel) -> None:
        self._reader, self._builder, self._labeller = reader, builder, labeller
        self._max_attempts, self._cancel = max_attempts, cancel
        at_work = labeller.n_workers * labeller.batch_size
        self._requests: queue.Queue = queue.Queue(maxsize=_AHEAD * at_work)
        self._results: queue.Queue = queue.Queue(maxsize=_AHEAD * at_work)
        self._threads: list[threading.Thread] = []
        self._read_all = threading.Event()
        self.reason = ""

    def start(self, episodes: Sequence[int]) -> None:
        self._threads = [threading.Thread(target=self._read, args=(episodes,), daemon=True)]
        self._threads += [threading.Thread(target=self._work, daemon=True) for _ in range(self._labeller.n_workers)]
        for thread in self._threads:
            thread.start()

    def stop(self, reason: str) -> None:
        """Start nothing more; what is at work comes to its end."""
        self.reason = self.reason or reason
        self._cancel.set()

    def join(self) -> None:
        for thread in self._threads:
            while thread.is_alive():
                self._drain()  # a worker may stand before a full queue
                thread.join(_LOOK_S)

    def _drain(self) -> None:
        try:
            while True:
                self._results.get_nowait()
        except queue.Empty:
            pass

    def results(self):
        """Results as they come, to the last one of those that were at work when the run was stopped."""
        while True:
            is_over = not any(thread.is_alive() for thread in self._threads)
            try:
                result = self._results.get(timeout=_LOOK_S)
            except queue.Empty:
                if is_over:
                    return
                continue
            yield result

    def _read(self, episodes: Sequence[int]) -> None:
        for index in episodes:
            try:
                item = self._builder.build(self._reader[index])
            except Exception as error:  # one damaged episode must not cost the others
                item = _Result(None, index, error=f"cannot be read: {type(error).__name__}: {error}")
            if not self._put(self._requests, item):
                break
        self._read_all.set()

    def _put(self, where: queue.Queue, item) -> bool:
        while not self._cancel.is_set():
            try:
                where.put(item, timeout=_LOOK_S)
                return True
            except queue.Full:
                pass
        return False

    def _work(self) -> None:
        while batch := self._next_batch():
            unread = [item for item in batch if isinstance(item, _Result)]
            requests = [item for item in batch if isinstance(item, LabelRequest)]
            try:
                results = unread + self._label(requests)
            except Cancelled:
                results = unread
            except BackendUnusable as error:
                results = unread
                self.stop(str(error))
            for result in results:
                self._results.put(result)

    def _next_batch(self) -> list:
        """The next requests, at most a batch; [] at the end of the run."""
        batch: list = []
        while len(batch) < self._labeller.batch_size and not self._cancel.is_set():
            try:
                batch.append(self._requests.get(timeout=_LOOK_S))
            except queue.Empty:
                if self._read_all.is_set() and self._requests.empty():
                    break
        return [] if self._cancel.is_set() else batch

    def _label(self, requests: list[LabelRequest]) -> list[_Result]:
        results = [_Result(request, request.episode_index) for request in requests]
        open_ = list(results)
        for _ in range(self._max_attempts):
            if not open_:
                break
            if self._cancel.is_set():
                return [result for result in results if result.steps is not None]
            try:
                replies = self._labeller.label_many([result.request for result in open_])
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
