"""Readers: from a text, and the flag or variable that it came from, to a value, or InvalidRequest in one line."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Callable
from typing import Any

from node.address import with_port
from node.config import DEFAULT_PORT, LEAST_MEMORY, MOST_MEMORY, SWA, check_address, size
from node.errors import InvalidRequest
from node.types import Strategy

MAX_NAME_BYTES = 256  # node.wire's; importing that would load grpc for `--help`.
# A node's name, its id, or both, as `status` has them; a word with a dot is rather an address without its port.
_CALLED = re.compile(r"[^\s.:,/\[\]]{1,64}(?:/[a-z2-7]{1,16})?")
Reader = Callable[[str, str], Any]


def nearest(word: str, known: Any) -> str:
    """`: did you mean X?`, or nothing if nothing is like it."""
    bare = {name.lstrip("-"): name for name in known}  # dashes are like each other in all flags
    close = difflib.get_close_matches(word.lstrip("-"), list(bare), n=1, cutoff=0.6)
    return f": did you mean {bare[close[0]]}?" if close else ""


def switch(source: str, text: str) -> bool:
    """On or off."""
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise InvalidRequest(f"{source} is {text!r}: it must be 1 or 0")


def utf8(source: str, text: str) -> str:
    """A text that came as bytes: refused when they were not UTF-8 (Python then leaves lone surrogates)."""
    try:
        # Under LC_ALL=C Python may have read good UTF-8 as ASCII with such surrogates: the bytes count.
        return os.fsencode(text).decode()
    except UnicodeError:
        raise InvalidRequest(f"{source} is not valid UTF-8") from None


def name(source: str, text: str) -> str:
    """A name: no control characters, and not too long."""
    text = utf8(source, text)
    if not text.strip():
        raise InvalidRequest(f"{source} is empty: give a name")
    if len(text.encode()) > MAX_NAME_BYTES:
        raise InvalidRequest(f"{source} is {len(text.encode())} bytes long: at most {MAX_NAME_BYTES}")
    if any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise InvalidRequest(f"{source} {text!r} has control characters")
    return text


def whole(low: int, high: int | None = None) -> Reader:
    """Whole numbers of a range."""

    def read(source: str, text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise InvalidRequest(f"{source} is {text!r}: it must be a whole number") from None
        if value < low or (high is not None and value > high):
            bounds = f"{low} or more" if high is None else f"{low} to {high}"
            raise InvalidRequest(f"{source} is {value}: it must be {bounds}")
        return value

    return read


def number(low: float, high: float) -> Reader:
    """Numbers of a range."""

    def read(source: str, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise InvalidRequest(f"{source} is {text!r}: it must be a number") from None
        if not (math.isfinite(value) and low <= value <= high):
            raise InvalidRequest(f"{source} is {text}: it must be {low:g} to {high:g}")
        return value

    return read


def strategy(source: str, text: str) -> str:
    """A strategy's name."""
    if text not in tuple(Strategy):
        close = nearest(text, list(Strategy))
        raise InvalidRequest(f"{source} {text!r} is unknown{close or ': it must be one of ' + ', '.join(Strategy)}")
    return text


def addresses(source: str, text: str) -> tuple[str, ...]:
    """Addresses, with commas between them."""
    found = tuple(a.strip() for a in text.split(",") if a.strip())
    if not found:
        raise InvalidRequest(f"{source} is empty; write HOST:PORT, such as 127.0.0.1:{DEFAULT_PORT}")
    for address in found:
        try:
            check_address(address, source)
        except InvalidRequest:
            lacks = ": its port is missing" if re.fullmatch(r"[\w.-]+", address) else ""
            raise InvalidRequest(
                f"{source}: {address!r} is not an address{lacks}; write HOST:PORT, such as 127.0.0.1:{DEFAULT_PORT}"
            ) from None
    return found


def clients(source: str, text: str) -> tuple[str, ...]:
    """Addresses that nodes have for clients: without a port the default one is meant; or what a node of this machine is
    called."""
    given = [with_port(a.strip(), DEFAULT_PORT) for a in text.split(",")]
    if not any(given):
        addresses(source, "")
    return tuple(a if _CALLED.fullmatch(a) else addresses(source, a)[0] for a in given if a)


def memory(source: str, text: str) -> tuple[int, ...]:
    """Sizes such as 24, 24GiB or 24GB (`node.config.size`), several with commas; bytes."""
    found = tuple(size(each) for each in text.split(","))
    if not all(LEAST_MEMORY <= each <= MOST_MEMORY for each in found):
        what = "write a size such as 24GiB, or 24 (256MiB at least), for several GPUs 24GiB,24GiB"
        raise InvalidRequest(f"{source} is {text!r}: {what}")
    return found


def swa(source: str, text: str) -> str:
    """How KV of sliding windows is kept."""
    if text not in SWA:
        raise InvalidRequest(f"{source} is {text!r}: it must be one of {', '.join(SWA)}")
    return text
