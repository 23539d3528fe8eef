"""Whether multicast works on an interface: a question that nobody answers must come back to who asked it."""

from __future__ import annotations

import secrets
import socket
import time

MDNS = ("224.0.0.251", 5353)
MDNS_S = 0.5


def hears_itself(ip: str, timeout: float = MDNS_S) -> str:
    """Ask for a name that nobody has, and wait for the question to come back; what is wrong, or nothing."""
    label = f"doctor-{secrets.token_hex(6)}".encode()
    asked = b"".join(bytes([len(part)]) + part for part in (label, b"_conclave", b"_tcp", b"local")) + b"\0"
    packet = bytes.fromhex("000000000001000000000000") + asked + bytes.fromhex("00100001")  # one question: TXT, IN
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if hasattr(socket, "SO_REUSEPORT"):  # other responders of this machine hold the port too
                s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            s.bind(("", MDNS[1]))
            s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(MDNS[0]) + socket.inet_aton(ip))
            s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(ip))
            s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
            s.sendto(packet, MDNS)
            until = time.monotonic() + timeout
            while (left := until - time.monotonic()) > 0:
                s.settimeout(left)
                if label in s.recv(9000):
                    return ""
    except TimeoutError:
        pass
    except OSError as e:
        return e.strerror or str(e)
    return "multicast does not come back"
