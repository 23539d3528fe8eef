"""A stand-in for huggingface.co on loopback: the two calls that a download makes, and what goes wrong.

As the hub answers them (huggingface_hub's `file_download.py` and `hf_api.py`): `/api/models/REPO` lists files with
sizes and SHA-256; HEAD of `/REPO/resolve/REVISION/FILE` has the commit and the ETag, GET serves ranges.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Repositories by name, each file name -> bytes. `gated` repositories want a token, `claims` are false SHA-256,
    `cut` files stop after so many bytes (once) and then hold the line until `release`."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.claims: dict[str, str] = {}
        self.cut: dict[str, int] = {}
        self.requests: list[tuple[str, str, str]] = []  # method, path, range
        self.has_stopped = threading.Event()
        self.release = threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                hub._answer(self)

            def do_GET(self) -> None:
                hub._answer(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.split("?")[0]
        asked = request.headers.get("Range", "")
        self.requests.append((request.command, path, asked))
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        match = api or file
        if match is None or match[1] not in self.repos:
            return self._send(request, 401, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "not found"})
        if match[1] in self.gated and not request.headers.get("Authorization"):
            return self._send(request, 401, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
        files = self.repos[match[1]]
        if api:
            return self._send(request, 200, json.dumps(self._info(match[1], files)).encode(), {})
        assert file is not None
        if file[2] not in files:
            return self._send(request, 404, b"", {"X-Error-Code": "EntryNotFound"})
        data = files[file[2]]
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        start = int(re.fullmatch(r"bytes=(\d+)-.*", asked)[1]) if asked else 0  # type: ignore[index]
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        stop = self.cut.pop(file[2], None) if request.command == "GET" else None
        self._send(request, 206 if asked else 200, data[start:], headers, stop)

    def _info(self, repo: str, files: dict[str, bytes]) -> dict[str, Any]:
        siblings = [
            {
                "rfilename": name,
                "size": len(data),
                "blobId": "0" * 40,
                "lfs": {
                    "sha256": self.claims.get(name, hashlib.sha256(data).hexdigest()),
                    "size": len(data),
                    "pointerSize": 1,
                },
            }
            for name, data in files.items()
        ]
        return {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}

    def _send(
        self, request: BaseHTTPRequestHandler, code: int, body: bytes, headers: dict[str, str], stop: int | None = None
    ) -> None:
        request.send_response(code)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "HEAD":
            return
        request.wfile.write(body if stop is None else body[:stop])
        request.wfile.flush()
        if stop is not None:
            self.has_stopped.set()
            self.release.wait(30)
            request.close_connection = True
