"""Takes a screenshot of one page, inside the sandbox: `photograph.py CHROMIUM URL FOLDER RESULT`.

Drives a headless Chromium over its debugging pipe (https://chromedevtools.github.io/devtools-protocol/: JSON, each message
terminated by a zero byte). RESULT is JSON: `picture` (PNG, base64) and `snapshots` (the page's content before and after, by
DOMSnapshot), or `error`. The page is untrusted and shares our uid: the reader must not trust the result.
"""

import fcntl
import json
import os
import select
import subprocess
import sys
import time
from typing import Any

WIDTH, HEIGHT = 1280, 800
LOAD_SECONDS = 8.0
QUIET_SECONDS = 0.7  # what a page draws after it was loaded
STEP_SECONDS = 30.0

ARGUMENTS = [
    "--headless",
    "--no-sandbox",  # it runs in ours, where it cannot create another one
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    # Frames of other origins stay in the page's own process, where the snapshot sees them.
    "--disable-site-isolation-trials",
    "--disable-features=IsolateOrigins,site-per-process,HttpsUpgrades,HttpsFirstBalancedModeAutoEnable",
    "--ignore-certificate-errors",  # a door has the run's own certificate
    "--hide-scrollbars",
    "--mute-audio",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-proxy-server",
    "--password-store=basic",
    f"--window-size={WIDTH},{HEIGHT}",
    "--remote-debugging-pipe",
]


class Problem(Exception):
    """Why there is no screenshot."""


class Browser:
    """A Chromium and the pipe to it."""

    def __init__(self, chromium: str, folder: str) -> None:
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        # Out of the way of 3 and 4, which Chromium reads and writes.
        theirs_in, theirs_out = (fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (theirs_in, theirs_out))

        def arrange() -> None:
            os.dup2(theirs_in, 3)
            os.dup2(theirs_out, 4)

        self.process = subprocess.Popen(
            [chromium, *ARGUMENTS, f"--user-data-dir={folder}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=arrange,
            pass_fds=(3, 4),
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.ours_in, self.ours_out = ours_in, ours_out
        self.number = 0
        self.session = ""
        self.left = b""
        self.loaded = False

    def send(self, method: str, **parameters: Any) -> int:
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.ours_out, data) :]
        return self.number

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and return its answer. Raises Problem."""
        number = self.send(method, **parameters)
        until = time.monotonic() + STEP_SECONDS
        while True:
            message = self.message(until)
            if message is None:
                raise Problem(f"the page kept the browser busy for {STEP_SECONDS:g} s")
            if message.get("id") == number:
                if "error" in message:
                    raise Problem(f"the browser refused {method}: {message['error'].get('message')}")
                result: dict[str, Any] = message["result"]
                return result

    def wait(self, until: float) -> None:
        """Process events until then, or until the page is loaded."""
        while not self.loaded and self.message(until) is not None:
            pass

    def message(self, until: float) -> "dict[str, Any] | None":
        """The next message; None if there is none in time. Raises Problem if the browser is gone."""
        while b"\0" not in self.left:
            ready, _, _ = select.select([self.ours_in], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                return None
            data = os.read(self.ours_in, 1 << 20)
            if not data:
                raise Problem("the browser exited")
            self.left += data
        line, _, self.left = self.left.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        method = message.get("method")
        if method == "Page.loadEventFired":
            self.loaded = True
        elif method == "Page.javascriptDialogOpening":  # the page blocks until the dialog is answered
            self.send("Page.handleJavaScriptDialog", accept=False)
        return message


def photograph(browser: Browser, url: str) -> dict[str, Any]:
    target = browser.call("Target.createTarget", url="about:blank")["targetId"]
    browser.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    browser.call("Page.enable")
    browser.call("Browser.setDownloadBehavior", behavior="deny")
    browser.call("Emulation.setDeviceMetricsOverride", width=WIDTH, height=HEIGHT, deviceScaleFactor=1, mobile=False)
    browser.loaded = False
    if error := browser.call("Page.navigate", url=url).get("errorText"):
        raise Problem(f"could not load the page: {error}")
    browser.wait(time.monotonic() + LOAD_SECONDS)
    quiet = time.monotonic() + QUIET_SECONDS
    while browser.message(quiet) is not None:
        pass
    snapshots = [snapshot(browser)]
    picture = browser.call("Page.captureScreenshot", format="png")["data"]
    # What comes only while the picture is taken is in the one before or in the one after.
    snapshots.append(snapshot(browser))
    return {"picture": picture, "snapshots": snapshots}


def snapshot(browser: Browser) -> dict[str, Any]:
    """All texts, attributes and values of all frames and shadow trees, as the browser knows them."""
    found = browser.call("DOMSnapshot.captureSnapshot", computedStyles=[])
    documents = [{"url": document["documentURL"], "nodes": document["nodes"]} for document in found["documents"]]
    return {"strings": found["strings"], "documents": documents}


def main() -> None:
    chromium, url, folder, path = sys.argv[1:]
    result: dict[str, Any]
    try:
        browser = Browser(chromium, folder)
        try:
            result = photograph(browser, url)
        finally:
            browser.process.kill()
    except Problem as problem:
        result = {"error": str(problem)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        result = {"error": f"could not use the browser: {type(error).__name__}: {error}"}
    with open(path, "w") as file:  # noqa: PTH123
        json.dump(result, file)


main()
