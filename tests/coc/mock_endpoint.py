"""An OpenAI-compatible server on loopback that answers by script: real HTTP, no model.

    with MockEndpoint(script) as server:
        server.api_base, server.requests

`python tests/coc/mock_endpoint.py --latency_s=0.2` serves from a process of its own and prints its address.
"""

from __future__ import annotations

import argparse
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODEL = "mock-vl"


@dataclass
class Answer:
    """What the server does with a request."""

    content: str | None = None  # of the chat completion
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None  # body, instead of a chat completion
    wait_s: float = 0.0
    is_truncated: bool = False  # say a length, send half
    finish_reason: str = "stop"
    drips: str = ""  # "headers" or "body": a byte of it every 10 ms, without end


@dataclass
class Asked:
    """A request as the server saw it."""

    body: dict
    headers: dict[str, str]
    data: dict  # the block of JSON with the episode's data
    attempt: int  # 1 for the first request of this task
    time: float


def good_steps(data: dict) -> str:
    """A valid reply for an episode."""
    half = round(data["length_s"] / 2, 3)
    steps = [
        {"start_s": 0.0, "end_s": half, "what": "The gripper moves to the puck", "objects": ["puck"],
         "why": "it must touch the puck before it can push it", "relations": [], "outcome": "success"},
        {"start_s": half, "end_s": data["length_s"], "what": "The gripper pushes the puck", "objects": ["puck"],
         "why": "the fingers press against its side",
         "relations": [{"subject": "gripper", "relation": "pushes", "object": "puck"}], "outcome": "success"},
    ]  # fmt: skip
    return json.dumps({"steps": steps})


def always_good(asked: Asked) -> Answer:
    """The script of a server without faults."""
    return Answer(good_steps(asked.data))


class MockEndpoint:
    """The server, in a thread.

    Attributes:
        requests: All chat completions that were asked for, in order.
    """

    def __init__(self, script: Callable[[Asked], Answer] = always_good, models: tuple[str, ...] = (MODEL,)) -> None:
        self.models_drip = ""  # as `Answer.drips`, for the list of models
        self.requests: list[Asked] = []
        self._script, self._models = script, models
        self._lock, self._attempts = threading.Lock(), Counter()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.port = self._server.server_address[1]
        self.api_base = f"http://127.0.0.1:{self.port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> MockEndpoint:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    def serve(self) -> None:
        """Serve until the process ends."""
        self._server.serve_forever()

    def answer(self, body: dict, headers: dict[str, str]) -> Answer:
        text = next(m for m in body["messages"] if m["role"] == "user")["content"][-1]["text"]
        data = json.loads(text[text.index("{") :])
        with self._lock:
            self._attempts[data["task"]] += 1
            asked = Asked(body, headers, data, self._attempts[data["task"]], time.monotonic())
            self.requests.append(asked)
        return self._script(asked)

    def models(self) -> dict:
        return {"object": "list", "data": [{"id": model, "object": "model"} for model in self._models]}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def _handler(endpoint: MockEndpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            if endpoint.models_drip:
                self._drip(endpoint.models_drip)
            else:
                self._send(200, json.dumps(endpoint.models()).encode(), {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = endpoint.answer(body, dict(self.headers))
            time.sleep(answer.wait_s)
            if answer.drips:
                self._drip(answer.drips)
                return
            raw = answer.raw
            if raw is None:
                choice = {
                    "index": 0,
                    "message": {"role": "assistant", "content": answer.content},
                    "finish_reason": answer.finish_reason,
                }
                usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
                raw = json.dumps({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()
            try:
                self._send(answer.status, raw, answer.headers, answer.is_truncated)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client did not wait

        def _send(self, status: int, raw: bytes, headers: dict[str, str], is_truncated: bool = False) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw[: len(raw) // 2] if is_truncated else raw)
            if is_truncated:
                self.close_connection = True

        def _drip(self, what: str) -> None:
            start = b"X-Slow: " if what == "headers" else b"Transfer-Encoding: chunked\r\n\r\n"
            piece = b"x" if what == "headers" else b"1\r\n \r\n"
            self.wfile.write(b"HTTP/1.1 200 OK\r\n" + start)
            self.close_connection = True
            with suppress(BrokenPipeError, ConnectionResetError):  # the client went
                while True:
                    self.wfile.write(piece)
                    time.sleep(0.01)

        def log_message(self, *_) -> None:
            pass

    return Handler


def five_percent_faults(asked: Asked) -> Answer:
    """A server that fails for one request in twenty, each time otherwise, and for some episodes always.

    Tasks end in the number of their episode. The episodes 19, 119, 219, ... never get a valid reply.
    """
    number = int(re.search(r"(\d+)$", asked.data["task"])[1])
    good = Answer(good_steps(asked.data))
    if number % 100 == 19:
        return Answer("I can't see a robot.")
    if number % 20 != 7 or asked.attempt > 1:
        return good
    faults = [
        Answer(good.content, wait_s=0.3),
        Answer(status=429, headers={"Retry-After": "0.1"}, raw=b'{"error": "slow down"}'),
        Answer(status=500, raw=b"Internal Server Error"),
        Answer(good.content, is_truncated=True),
        Answer(raw=b"<html>oops</html>"),
        Answer('{"steps": [{"start_s": 0.0}]}'),
        Answer("not JSON at all"),
        Answer(good.content[:-30], finish_reason="length"),
    ]
    return faults[number // 20 % len(faults)]


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--latency_s", type=float, default=0.2)
    args = cli.parse_args()
    endpoint = MockEndpoint(lambda asked: Answer(good_steps(asked.data), wait_s=args.latency_s))
    print(endpoint.api_base, flush=True)
    endpoint.serve()


if __name__ == "__main__":
    main()
