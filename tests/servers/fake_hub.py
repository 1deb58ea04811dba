"""A hub of one data set in this process: files by commit, and the errors that the real one gives."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class FakeHub:
    """`commits` are files by name by commit; `asked` what was asked for. `is_gated`: nobody gets a file.

    `fault` is a status that everybody gets.
    """

    repository: str
    commits: dict[str, dict[str, bytes]]
    asked: list[str] = field(default_factory=list)
    endpoint: str = ""
    is_gated: bool = False
    fault: int = 0


@contextmanager
def fake_hub(repository: str, commits: Mapping[str, Mapping[str, bytes]]) -> Iterator[FakeHub]:
    """Serve the data set on a port of its own until the block ends."""
    hub = FakeHub(repository, {name: dict(files) for name, files in commits.items()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers for the data set that a subclass names."""

    hub: FakeHub

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].replace("%2F", "/")
        self.hub.asked.append(path)
        if self.hub.fault:
            self._answer(self.hub.fault, b"", {})
        elif found := re.fullmatch(rf"/datasets/{self.hub.repository}/resolve/([^/]+)/(.+)", path):
            self._file(*found.groups())
        elif found := re.fullmatch(rf"/api/datasets/{self.hub.repository}/(?:revision|tree)/([^/]+)", path):
            self._listing(found[1], is_tree="/tree/" in path)
        else:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def _file(self, commit: str, name: str) -> None:
        if self.hub.is_gated:
            return self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
        if commit not in self.hub.commits:
            return self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if name not in self.hub.commits[commit]:
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = self.hub.commits[commit][name]
        etag = hashlib.sha256(content).hexdigest()
        return self._answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": commit})

    def _listing(self, commit: str, *, is_tree: bool) -> None:
        if commit not in self.hub.commits:
            return self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        names = list(self.hub.commits[commit])
        told: Any = {
            "id": self.hub.repository,
            "sha": commit,
            "siblings": [{"rfilename": it} for it in names],
        }
        if is_tree:
            told = [
                {"type": "file", "path": it, "size": len(self.hub.commits[commit][it]), "oid": "0" * 40}
                for it in names
            ]
        return self._answer(200, json.dumps(told).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""
