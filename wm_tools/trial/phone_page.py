"""The page on a phone: start, stop, and say what came out. Standard library only; one page and one JSON state."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import signal
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from wm_tools.trial.blinded_trial import BlindedTrial, TrialRun, page_state

PAGE = Path(__file__).with_name("phone_page.html")
_MAX_BODY = 10_000


class RobotRun:
    """The command that moves the robot, for one run at a time.

    Args:
        command: What is typed to run a policy; {policy} is its checkpoint, {setup} and {turn} count from 1.
        log: File that everything it prints goes to: it may say which policy it is.
    """

    def __init__(self, command: str, log: Path):
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            # A shell lets its background jobs ignore it, and so would the command: the robot would move on for seconds.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._words, self._log = shlex.split(command), log
        self._process: subprocess.Popen | None = None
        self._started = 0.0
        self.seconds = 0.0

    @property
    def is_running(self) -> bool:
        """Whether the robot is being moved."""
        return self._process is not None and self._process.poll() is None

    @property
    def is_over(self) -> bool:
        """Whether a run has ended and waits to be judged."""
        if self._process is None or self._process.poll() is None:
            return False
        if not self.seconds:
            self.seconds = time.monotonic() - self._started
        return True

    @property
    def has_failed(self) -> bool:
        """Whether the command ended by itself with an error: then it wasn't the policy."""
        return self.is_over and self._process.returncode > 0 and not self._was_stopped

    def start(self, run: TrialRun, checkpoint: str) -> None:
        """Run a policy."""
        values = {"policy": checkpoint, "setup": run.setup + 1, "turn": run.turn + 1}
        words = [word.format(**values) for word in self._words]
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        self._started, self.seconds, self._was_stopped = time.monotonic(), 0.0, False

    def stop(self) -> None:
        """End it as Ctrl-C does, and harder if it doesn't listen for ten seconds."""
        if not self.is_running:
            return
        self._was_stopped = True
        for how, patience_s in ((signal.SIGINT, 10), (signal.SIGKILL, 10)):
            try:
                os.killpg(self._process.pid, how)
                self._process.wait(patience_s)
                return
            except subprocess.TimeoutExpired:
                continue
            except ProcessLookupError:
                return

    def forget(self) -> None:
        """The run was judged."""
        self._process = None


class TrialServer(ThreadingHTTPServer):
    """Serves one trial to whoever knows its secret address.

    Args:
        address: Host and port; port 0 takes a free one.
        trial: The trial.
        robot: What runs a policy.
    """

    daemon_threads = True

    def __init__(self, address: tuple[str, int], trial: BlindedTrial, robot: RobotRun):
        self.trial, self.robot, self.secret = trial, robot, secrets.token_urlsafe(9)
        self.lock, self.has_ended = threading.Lock(), threading.Event()
        super().__init__(address, _Handler)

    @property
    def url(self) -> str:
        """What is opened on the phone."""
        host, port = self.server_address[:2]
        return f"http://{host}:{port}/{self.secret}/"

    def state(self) -> dict:
        """What the page shows."""
        return page_state(self.trial, self.robot.is_running, self.robot.is_over, self.robot.has_failed)

    def act(self, asked: dict) -> dict:
        """Do what a button says; what doesn't fit the phase (a second tap, an old page) changes nothing."""
        with self.lock:
            state = self.state()
            run, action = self.trial.next_run, asked.get("action")
            if (asked.get("setup"), asked.get("turn")) != (state.get("setup"), state.get("turn")):
                return state
            if action == "start" and state["phase"] == "ready":
                self.trial.begin(run)
                self.robot.start(run, self.trial.policies[run.policy])
            elif action == "stop" and state["phase"] == "running":
                self.robot.stop()
            elif action == "again" and state["phase"] == "judge":
                self.trial.throw_away(run, str(asked.get("why", ""))[:200])
                self.robot.forget()
            elif action == "judge" and state["phase"] == "judge" and isinstance(asked.get("success"), bool):
                stages = [bool(reached) for reached in asked.get("stages", [])][: len(self.trial.stages)]
                self.trial.note(run, asked["success"], stages, self.robot.seconds)
                self.robot.forget()
            return self.state()


class _Handler(BaseHTTPRequestHandler):
    server: TrialServer

    def do_GET(self) -> None:
        match self._path():
            case "":
                self._answer(PAGE.read_bytes(), "text/html; charset=utf-8")
            case "state":
                self._show(self.server.state())
            case _:
                self.send_error(404)

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if self._path() != "act" or not length.isdecimal() or int(length) > _MAX_BODY:
            self.send_error(404)
            return
        try:
            asked = json.loads(self.rfile.read(int(length)))
        except ValueError:
            asked = None
        if not isinstance(asked, dict):
            self.send_error(400)
            return
        self._show(self.server.act(asked))

    def _path(self) -> str | None:
        """What is asked for below the secret; None where that is wrong."""
        secret, _, rest = self.path.lstrip("/").partition("/")
        return rest if secrets.compare_digest(secret.encode(), self.server.secret.encode()) else None

    def _show(self, state: dict) -> None:
        self._answer(json.dumps(state).encode(), "application/json")
        if state["phase"] == "ended":  # after the phone was told: the command ends with it
            self.server.has_ended.set()

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        """Nothing: the address holds the secret."""
