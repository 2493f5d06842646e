"""Headless Chromium for tests of pages."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

WIDTHS = [360, 1280]
"""Of a phone and of a laptop, px: every page is looked at in both."""

# What nobody sees without scrolling sideways: beside the window, beyond the edge of its own box, or of its own picture.
_OUT_OF_SIGHT = """(within => {
  const found = [], width = document.documentElement.clientWidth;
  const name = (e, why) => found.push(`${e.tagName.toLowerCase()}.${e.getAttribute("class") ?? ""} ${why}: ` +
    e.textContent.trim().replace(/\\s+/g, " ").slice(0, 60));
  for (const e of document.querySelectorAll(`${within} *`)) {
    const box = e.getBoundingClientRect(), style = getComputedStyle(e);
    if (!box.width || !box.height || style.visibility === "hidden") continue;
    // Blanks hang beyond the end of a wrapped line.
    if (style.display === "inline" && e.firstChild && !e.textContent.trim()) continue;
    if (box.left < -1 || box.right > width + 1) name(e, `from ${box.left | 0} to ${box.right | 0} px of ${width}`);
    else if (style.overflowX !== "visible" && e.clientWidth && e.scrollWidth > e.clientWidth + 1)
      name(e, `shows ${e.clientWidth} of its ${e.scrollWidth} px`);
    const picture = e.tagName === "text" && e.closest("svg");
    if (!picture || getComputedStyle(picture).overflowX === "visible") continue;
    const edge = picture.getBoundingClientRect();
    if (box.left < edge.left - 1 || box.right > edge.right + 1) name(e, "is cut off by its picture");
  }
  return found;
})"""


class Browser:
    """Headless Chromium, driven through its debugging pipe (file descriptors 3 and 4)."""

    def __init__(self, profile: Path):
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()

        def as_3_and_4() -> None:
            # Through high numbers first, so that neither is overwritten before it is moved.
            high = os.dup(to_browser), os.dup(from_browser)
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        self._log = (profile.parent / "chromium.log").open("w")
        self.process = subprocess.Popen(
            command, preexec_fn=as_3_and_4, close_fds=False, stdout=self._log, stderr=self._log
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer, self._n, self._session = b"", 0, None
        self.errors: list[str] = []
        target = next(t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params) -> dict:
        self._n += 1
        message = {"id": self._n, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._n:
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.errors.append(json.dumps(answer["params"]))
            if answer.get("method") == "Network.requestWillBeSent":
                url = answer["params"]["request"]["url"]
                if not url.startswith(("file:", "data:")):
                    self.errors.append(f"requested {url}")
        assert "error" not in answer, answer
        return answer["result"]

    def _receive(self) -> dict:
        while b"\0" not in self._buffer:
            assert select.select([self._read], [], [], 60)[0], "Chromium does not answer"
            chunk = os.read(self._read, 1 << 16)
            assert chunk, "Chromium ended"
            self._buffer += chunk
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def evaluate(self, script: str):
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def open(self, path: Path) -> None:
        self.send("Page.navigate", url=path.as_uri())
        deadline = time.monotonic() + 60
        while self.evaluate("location.protocol + document.readyState") != "file:complete":
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def press(self, key: str) -> None:
        text = {"text": key} if len(key) == 1 else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._read)
        os.close(self._write)
        self._log.close()

    def look(self, width: int, scheme: str, height: int = 800) -> None:
        """Show pages in a window of that size (px), as a device that is set to "light" or "dark"."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def out_of_sight(self, within: str = "body") -> list[str]:
        """What of the page can't be seen without scrolling sideways, everything that can be opened being open.

        Args:
            within: CSS selector of the parts that are looked at.
        """
        self.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
        return self.evaluate(f"{_OUT_OF_SIGHT}({json.dumps(within)})")

    def screenshot(self, path: Path) -> None:
        """Write the whole page as a PNG."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.send("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))
