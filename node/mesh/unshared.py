"""Whether this machine's token is only its own: no other machine was ever met with it, so another may take its place.

The file `token.unshared` beside the token says so, and holds its digest, so that it says nothing of a token that
somebody puts there by hand. Without it a token counts as shared: replacing it may part machines.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

FILE = "token.unshared"


def mark(config: Path, token: str) -> None:
    """`token`, which is the stored one, was just made or brought here; a full disk leaves it unmarked."""
    with contextlib.suppress(OSError):
        (config / FILE).write_text(_digest(token) + "\n")


def is_unshared(config: Path) -> bool:
    """Whether there is a stored token, and no other machine was met with it."""
    try:
        token = (config / "token").read_text(encoding="utf-8", errors="replace")
        return (config / FILE).read_text(encoding="utf-8", errors="replace").strip() == _digest(token)
    except OSError:
        return False


def met(config: Path, token: str) -> None:
    """Another machine has `token` too."""
    with contextlib.suppress(OSError):
        if (config / FILE).read_text(encoding="utf-8", errors="replace").strip() == _digest(token):
            (config / FILE).unlink()


def _digest(token: str) -> str:
    """What names a token and does not give it away: 32 random bytes are in it."""
    return hashlib.sha256(token.strip().encode()).hexdigest()
