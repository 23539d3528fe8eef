"""HOST:PORT as a text, the one pattern of it: what a flag, a peer or a client may say."""

from __future__ import annotations

import ipaddress
import re

# Bounded, because strangers send these: 253 characters is the longest DNS name, 45 the longest IPv6 address.
_PATTERN = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%[\w.-]{1,16})?)\]|(?P<host>[A-Za-z0-9._-]{1,253})):(?P<port>[0-9]{1,5})"
)
_MAX_V6 = 45 + 17  # with a zone


def split_address(text: str) -> tuple[str, int] | None:
    """Host, without brackets, and port; None if it is no HOST:PORT ([IPv6]:PORT) that can be dialled."""
    match = _PATTERN.fullmatch(text)
    if match is None or len(match["v6"] or "") > _MAX_V6 or not 1 <= int(match["port"]) <= 65535:
        return None
    return match["v6"] or match["host"], int(match["port"])


def is_address(text: str) -> bool:
    """Whether a text is HOST:PORT with a port that can be dialled."""
    return split_address(text) is not None


def join_address(host: str, port: int) -> str:
    """HOST:PORT, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def with_port(text: str, port: int) -> str:
    """An address that may lack its port: an IP address (an IPv6 one in brackets, else its end may be meant as the
    port), `localhost`, or a name with a dot; anything else as it is. A word without a dot is rather a slip."""
    try:
        ipaddress.IPv6Address(text[1:-1]) if text[:1] == "[" and text[-1:] == "]" else ipaddress.IPv4Address(text)
        is_host = True
    except ValueError:
        is_host = text == "localhost" or ("." in text.strip(".") and any(c.isalpha() for c in text))
    return f"{text}:{port}" if is_host and is_address(f"{text}:{port}") else text


def is_loopback(host: str) -> bool:
    """Whether a host, as `split_address` gives it, is this machine for itself alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
