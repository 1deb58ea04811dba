"""A headless Chromium for pages in pictures and tests, over a pipe with the DevTools protocol; needs nothing but Chromium.

One page at a time. Messages are JSON with a zero byte at their end, on the file descriptors 3 and 4 of the browser
(`--remote-debugging-pipe`, https://chromedevtools.github.io/devtools-protocol/).
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",  # root may run it, for whom Chromium refuses to start with one
    "--no-first-run",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--hide-scrollbars",
)
ANSWER_LIMIT_S = 60.0
_POLL_S = 0.25


def chromium() -> str | None:
    """The browser's path; None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """A browser's only page. Make it with `opened`."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._buffer = b""
        self._num_sent = 0
        self._session: str | None = None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._call("Page.enable")

    def set_size(self, width: int, height: int) -> None:
        """The window's size in CSS pixels."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def set_scheme(self, *, is_dark: bool) -> None:
        """The colours that a page is asked for."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def go(self, url: str) -> None:
        """Open an address anew, also where only the part behind its `#` differs."""
        self._call("Page.navigate", url="about:blank")
        self._call("Page.navigate", url=url)

    def open_file(self, path: Path) -> None:
        """Open a file, and wait until all of it is there. Raises TimeoutError where it is not."""
        url = path.resolve().as_uri()
        self.go(url)
        if not self.wait_for(f"document.readyState === 'complete' && location.href === {json.dumps(url)}"):
            raise TimeoutError(f"{path} has not loaded")

    def move_to(self, x: float, y: float) -> None:
        """Put the pointer at a place of the window."""
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page. Raises RuntimeError with what it threw."""
        told = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in told:
            raise RuntimeError(f"{told['exceptionDetails']} in {script}")
        return told["result"].get("value")

    def wait_for(self, condition: str, limit_s: float = 30.0) -> bool:
        """Wait until the expression is true; False where it was not within `limit_s`."""
        deadline_s = time.monotonic() + limit_s
        while not self.evaluate(f"Boolean({condition})"):
            if time.monotonic() > deadline_s:
                return False
            time.sleep(_POLL_S)
        return True

    def png(self) -> bytes:
        """A picture of the window."""
        return base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"])

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._num_sent += 1
        message: dict[str, Any] = {"id": self._num_sent, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._next_message())
            if answer.get("id") != self._num_sent:
                continue  # an event, which nobody here waits for
            if "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']}")
            return dict(answer["result"])

    def _next_message(self) -> bytes:
        while b"\0" not in self._buffer:
            if not select.select([self._from], [], [], ANSWER_LIMIT_S)[0]:
                raise TimeoutError(f"Chromium has not answered for {ANSWER_LIMIT_S:.0f} s")
            read = os.read(self._from, 1 << 16)
            if not read:
                raise RuntimeError("Chromium has ended")
            self._buffer += read
        message, _, self._buffer = self._buffer.partition(b"\0")
        return message


@contextmanager
def opened(width: int, height: int) -> Iterator[Page]:
    """A page of a browser of its own, with a profile that nobody has used; closed at the end.

    Raises RuntimeError where there is no Chromium.
    """
    program = chromium()
    if program is None:
        raise RuntimeError("there is no Chromium here: `apt-get install chromium`")
    their_in, our_out = os.pipe()
    our_in, their_out = os.pipe()
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        # The browser wants its pipe as 3 and 4, and a shell puts it there whatever numbers it has here.
        command = [
            program,
            *ARGUMENTS,
            f"--user-data-dir={profile}",
            "--remote-debugging-pipe",
            "about:blank",
        ]
        moved = f'exec "$@" 3<&{their_in} 4>&{their_out}'
        browser = subprocess.Popen(
            ["bash", "-c", moved, "bash", *command], pass_fds=(their_in, their_out), stderr=subprocess.DEVNULL
        )
        os.close(their_in)
        os.close(their_out)
        try:
            page = Page(our_out, our_in)
            page.set_size(width, height)
            yield page
        finally:
            browser.terminate()
            browser.wait(ANSWER_LIMIT_S)
            os.close(our_out)
            os.close(our_in)
