"""Labels by an OpenAI-compatible server: vLLM, SGLang, or a hosted one.

Why not the `openai` client: its retries ignore a Retry-After above a minute and know nothing of each other, so that
sixteen threads would each run into a limit that one of them has met; and it hands a broken body on as text. `httpx`,
which `huggingface_hub` brings along, is all that one POST needs. Its time-outs hold per read, so that a server which
sends a byte now and then would never run into one: requests run in an event loop, which ends each at its deadline.
"""

from __future__ import annotations

import base64
import io
import logging
import os
import random
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from email.utils import parsedate_to_datetime

import anyio
import httpx
from anyio.from_thread import start_blocking_portal
from PIL import Image

from coc_tools.backends import BackendError, BackendUnusable, Cancelled, LabelRequest, Reply
from coc_tools.backends.chat import messages
from coc_tools.config import EndpointConfig, SamplingConfig
from coc_tools.schema import reply_schema

# httpx logs every request at INFO.
logging.getLogger("httpx").setLevel(logging.WARNING)

# First wait (s) after an error; it doubles each time, up to the last.
_BACKOFF_S, _LONGEST_BACKOFF_S = 0.5, 30.0
# Pause at a rate limit that names none.
_DEFAULT_PAUSE_S = 1.0
_JPEG_QUALITY = 90
# Longest answer. 2,048 tokens of JSON are some 20 kB.
_MAX_ANSWER_BYTES = 16 << 20
# Longest time (s) for the list of models, which no server has to think about.
_MODELS_TIMEOUT_S = 10.0
# Answers that say something of the server or the account rather than of one request.
_HOPELESS = {401: "the API key is missing or wrong", 403: "access is refused", 404: "it has no such API or model"}


class _Broken(Exception):
    """An attempt that met an error; the next may not."""


class _ComeBackLater(Exception):
    """A rate limit, with the pause that the server asks for."""

    def __init__(self, problem: str, pause_s: float) -> None:
        super().__init__(problem)
        self.pause_s = pause_s


class EndpointLabeller:
    """Sends each episode as one chat completion.

    Thread-safe: `n_workers` threads share the connections and the gate that keeps the rate limits.
    """

    name = "endpoint"
    needs_images = True
    batch_size = 1
    revision = None

    def __init__(self, config: EndpointConfig, sampling: SamplingConfig, cancel: threading.Event) -> None:
        """Connect, and ask the server for its models.

        Raises:
            BackendUnusable: if it is not there, refuses the key, or does not have the model.
        """
        self.config, self.model, self.n_workers = config, config.model, config.concurrency
        self._drawing = asdict(sampling)
        self.sampling = {**self._drawing, "structured": config.structured}
        self._key = os.environ.get(config.api_key_env, "")
        self._gate = _Gate(config.requests_per_minute, cancel)
        self._client = httpx.AsyncClient(
            base_url=config.api_base.rstrip("/") + "/",
            # Compressed, a small answer could fill the memory.
            headers={"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {}),
            timeout=httpx.Timeout(None, connect=10.0),
            limits=httpx.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency),
        )
        self._format = _response_format(config.structured)
        self._loop = ExitStack()
        self._portal = self._loop.enter_context(start_blocking_portal())
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def _check(self) -> None:
        try:
            response = self._ask("GET", "models", None, min(_MODELS_TIMEOUT_S, self.config.timeout_s))
        except _Broken as error:
            raise BackendUnusable(
                f"endpoint.api_base={self.config.api_base!r}: no answer ({error}). Start the server, or name another"
            ) from error
        if response.status_code in (401, 403):
            raise BackendUnusable(self._hopeless(response))
        if response.status_code != 200:
            return  # a server without the list of models
        try:
            known = [str(entry["id"]) for entry in response.json()["data"]]
        except (ValueError, KeyError, TypeError):
            return
        if known and self.model not in known:
            raise BackendUnusable(
                f"endpoint.model={self.model!r}: {self.config.api_base} has {', '.join(known[:20])}; name one of these"
            )

    def label_many(self, requests: Sequence[LabelRequest]) -> list[Reply]:
        """Send requests one after the other."""
        return [self._reply(request) for request in requests]

    def _reply(self, request: LabelRequest) -> Reply:
        body = {
            "model": self.model,
            "messages": messages(request, _image_part),
            **self._drawing,
            **self._format,
        }
        answer = self._post(body)
        try:
            choice = answer["choices"][0]
            text = choice["message"]["content"] or choice["message"].get("refusal") or ""
            usage = answer.get("usage") or {}
            return Reply(
                text=str(text),
                n_input_tokens=int(usage.get("prompt_tokens") or 0),
                n_output_tokens=int(usage.get("completion_tokens") or 0),
                is_cut_off=choice.get("finish_reason") == "length",
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise BackendError(
                f"the server's answer is not a chat completion ({type(error).__name__}: {error})"
            ) from error

    def _post(self, body: dict) -> dict:
        """Send until there is an answer, within the limits of `max_retries` and `max_wait_s`."""
        errors, waited_s = 0, 0.0
        while True:
            self._gate.enter()
            try:
                return self._send(body)
            except _ComeBackLater as limit:
                waited_s += limit.pause_s
                if waited_s > self.config.max_wait_s:
                    raise BackendUnusable(
                        f"{limit}: the server asks one request to wait {waited_s:.0f} s in all, and "
                        f"endpoint.max_wait_s={self.config.max_wait_s:.0f}. Go on later with the same command"
                    ) from limit
                self._gate.close_for(limit.pause_s)
            except _Broken as error:
                errors += 1
                if errors > self.config.max_retries:
                    raise BackendError(f"{error} ({errors} times)") from error
                backoff_s = min(_BACKOFF_S * 2 ** (errors - 1), _LONGEST_BACKOFF_S)
                self._gate.wait(backoff_s * random.uniform(0.5, 1.0))

    def _ask(self, method: str, path: str, body: dict | None, timeout_s: float) -> httpx.Response:
        """One request and its whole answer, within `timeout_s` and `_MAX_ANSWER_BYTES`.

        Raises:
            _Broken: if that can't be had.
        """

        async def ask() -> httpx.Response:
            with anyio.fail_after(timeout_s):
                async with self._client.stream(method, path, json=body) as response:
                    content = bytearray()
                    async for piece in response.aiter_raw():
                        content += piece
                        if len(content) > _MAX_ANSWER_BYTES:
                            raise _Broken(f"the answer is longer than {_MAX_ANSWER_BYTES >> 20} MiB")
            headers = {"Retry-After": response.headers.get("Retry-After", "")}
            return httpx.Response(response.status_code, headers=headers, content=bytes(content))

        try:
            return self._portal.call(ask)
        except TimeoutError as error:
            raise _Broken(f"no whole answer within {timeout_s:g} s (endpoint.timeout_s)") from error
        except httpx.HTTPError as error:
            raise _Broken(f"{type(error).__name__}: {self._safe(error) or 'no answer'}") from error

    def _send(self, body: dict) -> dict:
        response = self._ask("POST", "chat/completions", body, self.config.timeout_s)
        status = response.status_code
        if status == 200:
            try:
                answer = response.json()
            except ValueError as error:
                raise _Broken(f"the answer is not JSON: {self._safe(response.text)[:200]!r}") from error
            if not isinstance(answer, dict):
                raise _Broken("the answer is not a JSON object")
            return answer
        if status in _HOPELESS:
            raise BackendUnusable(self._hopeless(response))
        problem = f"HTTP {status}: {self._safe(response.text)[:300]!r}"
        pause_s = _retry_after_s(response)
        if status == 429 or (status == 503 and pause_s is not None):
            raise _ComeBackLater(problem, _DEFAULT_PAUSE_S if pause_s is None else pause_s)
        if status >= 500 or status == 408:
            raise _Broken(problem)
        hint = "; if the server has no structured output, set endpoint.structured" if status in (400, 422) else ""
        raise BackendError(f"{problem}{hint}")

    def _hopeless(self, response: httpx.Response) -> str:
        return (
            f"endpoint.api_base={self.config.api_base!r}, endpoint.model={self.model!r}: HTTP {response.status_code}, "
            f"{_HOPELESS[response.status_code]} (the key is taken from ${self.config.api_key_env}, which is "
            f"{'set' if self._key else 'not set'}): {self._safe(response.text)[:300]!r}"
        )

    def _safe(self, text: object) -> str:
        """A server's words, without the key that it may repeat."""
        return str(text).replace(self._key, "***") if self._key else str(text)

    def close(self) -> None:
        """Close the connections and end the event loop."""
        self._portal.call(self._client.aclose)
        self._loop.close()


class _Gate:
    """Where requests wait for their turn: for a rate of our own, and for the pause that a server asked for."""

    def __init__(self, per_minute: float, cancel: threading.Event) -> None:
        self._spacing = 60.0 / per_minute if per_minute else 0.0
        self._cancel = cancel
        self._lock = threading.Lock()
        self._next = 0.0

    def enter(self) -> None:
        """Wait for a turn."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            if self._spacing:
                self._next = turn + self._spacing
        # Those that a pause held back come one by one, not all at once into the next limit.
        self.wait(turn - now + (random.uniform(0, 0.2) if turn > now and not self._spacing else 0))

    def close_for(self, seconds: float) -> None:
        """Start no request for a while."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)

    def wait(self, seconds: float) -> None:
        """Sleep, unless the run is interrupted."""
        if self._cancel.wait(seconds) if seconds > 0 else self._cancel.is_set():
            raise Cancelled


def _retry_after_s(response: httpx.Response) -> float | None:
    value = response.headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _response_format(structured: str) -> dict:
    if structured == "json_schema":
        schema = {"name": "chain_of_causality", "schema": reply_schema(), "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    if structured == "json_object":
        return {"response_format": {"type": "json_object"}}
    return {}


def _image_part(image: Image.Image) -> dict:
    data = io.BytesIO()
    image.save(data, format="JPEG", quality=_JPEG_QUALITY)
    url = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}
