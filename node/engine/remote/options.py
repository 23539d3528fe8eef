"""Where the server is, read from the configuration and the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass

import httpx2

from node.errors import InvalidRequest

KEY = "CONCLAVE_BACKEND_KEY"  # the variable with the server's API key; it is no option, which others could see in `ps`


@dataclass(frozen=True, slots=True)
class RemoteOptions:
    """Where the server is. `url` ends before /chat/completions; `model` is empty for the server's first."""

    url: str
    model: str = ""
    key: str = ""
    sequences: int = 16
    context: int = 0
    queue: int = 64


def options(url: str, model: str, sequences: int, context: int, queue: int) -> RemoteOptions:
    """Options from a configuration and the environment. Raises InvalidRequest for a URL that is none."""
    if "://" not in url:
        url = f"http://{url}"
    try:
        read = httpx2.URL(url)
    except httpx2.InvalidURL:
        raise InvalidRequest(f"--url {url!r} is no URL: write http://HOST:PORT/v1") from None
    if read.scheme not in ("http", "https") or not read.host:
        raise InvalidRequest(f"--url {url!r}: write http://HOST:PORT/v1, the server that --backend openai is to use")
    if read.userinfo:
        raise InvalidRequest(f"--url has a password in it, which others could read: set {KEY} instead")
    base = url.rstrip("/")
    if read.path in ("", "/"):
        base += "/v1"
    key = os.environ.get(KEY, "")
    return RemoteOptions(base, "" if model in ("auto", "bundled") else model, key, sequences, context, queue)
