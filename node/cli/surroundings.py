"""What `doctor` looks at around a node: who may use its HTTP port, whether it runs as a service, completion, traces."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import ssl
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from node import tracing
from node.cli import completion
from node.cli.check import FAIL, OK, WARN, Check
from node.config import Config

SHORT_KEY = 16  # characters; shorter ones are guessed sooner than they are forgotten
SOON_S = 14 * 86400.0  # a certificate that ends within this time is worth a word
REACHED_S = 1.0
SYSTEMD, LAUNCHD = Path(".config/systemd/user/conclave.service"), Path("Library/LaunchAgents/conclave.plist")


def http(config: Config, now: float) -> Check:
    """Whether the HTTP port is as locked as it must be, and its certificate is good; `now` is Unix time."""
    name, keys = "HTTP access", config.api_keys
    if config.http_port == 0:
        return Check(name, OK, "there is no HTTP port")
    which = "without an API key" if not keys else f"with {len(keys)} API key{'s' if len(keys) > 1 else ''}"
    found = f"{config.http_host}, {which}, {'TLS' if config.http_cert else 'plain HTTP'}"
    if config.http_cert:
        problem, left = _certificate(config.http_cert, config.http_key, now)
        if problem:
            return Check(name, FAIL, f"--http-cert and --http-key cannot be used: {problem}", "give a valid pair")
        if left is not None and left < 0:
            return Check(name, FAIL, f"the certificate {config.http_cert} has expired", "renew it")
        if left is not None and left < SOON_S:
            days = left / 86400
            return Check(name, WARN, f"{found}; the certificate ends in {days:.0f} days", "renew it")
    if ipaddress.ip_address(config.http_host).is_loopback:
        return Check(name, OK, found)
    if not keys:
        return Check(name, WARN, f"{found}: whoever reaches it may use this node", "set CONCLAVE_API_KEY to a secret")
    if not config.http_cert:
        return Check(name, WARN, f"{found}: others on the network can read the key", "give --http-cert")
    if min(map(len, keys)) < SHORT_KEY:
        return Check(name, WARN, f"{found}, of less than {SHORT_KEY} characters", "use a longer one")
    return Check(name, OK, found)


def _certificate(file: str, key: str, now: float) -> tuple[str, float | None]:
    """What is wrong with a certificate, and how many seconds it has left."""
    from cryptography import x509

    path = os.path.expanduser(file)
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
            path, os.path.expanduser(key) or None, password=lambda: b""
        )
        first = x509.load_pem_x509_certificates(Path(path).read_bytes())[0]
    except (OSError, ValueError) as e:  # ssl.SSLError is an OSError
        return str(getattr(e, "strerror", "") or getattr(e, "reason", "") or e), None
    return "", first.not_valid_after_utc.timestamp() - now


def service(home: Path, platform: str = sys.platform) -> Check:
    """Whether a node starts by itself; not to is no fault."""
    name = "service"
    if platform == "darwin":
        file, how = home / LAUNCHD, "scripts/service/conclave.plist says how"
        started = file.exists()
    else:
        file, how = home / SYSTEMD, "scripts/service/conclave.service says how"
        started = (file.parent / "default.target.wants" / file.name).is_symlink()
    try:
        text = file.read_text(errors="replace")
        override = file.parent / f"{file.name}.d" / "override.conf"
        text += override.read_text(errors="replace") if override.exists() else ""
    except FileNotFoundError:
        return Check(name, OK, f"not installed: a node runs as long as its terminal does ({how})")
    except OSError as e:
        return Check(name, WARN, f"{file}: {e.strerror}", "make it readable for you")
    programs = _programs(text, home)
    if programs and not os.access(programs[-1], os.X_OK):
        found = f"{file} starts {programs[-1]}, which is not there"
        return Check(name, FAIL, found, f"install it again from the clone: {how}")
    if not started:
        return Check(name, WARN, f"{file} is installed and not enabled", "systemctl --user enable --now conclave")
    return Check(name, OK, f"{file}, enabled")


def _programs(text: str, home: Path) -> list[Path]:
    """The programs that a unit or an agent starts; the last one counts, as an override comes last."""
    found = re.findall(r"^ExecStart=(\S+)", text, re.MULTILINE) + re.findall(r'exec "([^"]+)"', text)
    return [Path(f.replace("%h", str(home)).replace("$HOME", str(home))) for f in found]


def completes(environ: Mapping[str, str], home: Path) -> Check:
    """Whether the user's shell completes commands, and by this version's script."""
    name, shell = "completion", Path(environ.get("SHELL", "")).name
    places = {
        "bash": home / ".local/share/bash-completion/completions/conclave",
        "fish": home / ".config/fish/completions/conclave.fish",
        "zsh": home / ".zshrc",
    }
    if shell not in places:
        return Check(name, OK, f"none for {shell or 'this shell'}: there are {', '.join(completion.SHELLS)}")
    file = places[shell]
    write = f"conclave completion {shell} > {file}"
    if not file.parent.is_dir():
        write = f"mkdir -p {file.parent} && {write}"
    try:
        text = file.read_text(errors="replace")
    except OSError:
        text = ""
    if shell == "zsh":
        if "conclave completion" in text:
            return Check(name, OK, f"in {file}")
        return Check(name, OK, f"not set up: `source <(conclave completion zsh)` in {file} does it")
    if not text:
        return Check(name, OK, f"not set up: `{write}` does it")
    if text != completion.script(shell):
        return Check(name, WARN, f"{file} is of another version", write)
    return Check(name, OK, str(file))


def traces(environ: Mapping[str, str]) -> Check:
    """Whether the traces that are asked for can be made, and somebody takes them."""
    name = "traces"
    if not tracing.is_asked(environ):
        return Check(name, OK, "not asked for")
    if problem := tracing.problem(environ):
        found, _, advice = problem.removeprefix("no traces: ").partition(": ")
        return Check(name, FAIL, found, advice)
    address = tracing.endpoint(environ)
    if not address:
        return Check(name, OK, "to the console")
    url = urlsplit(address)
    try:
        port = url.port or (443 if url.scheme == "https" else 80)
        with socket.create_connection((url.hostname or "", port), REACHED_S):
            return Check(name, OK, f"to {address}")
    except (OSError, ValueError) as e:
        said = getattr(e, "strerror", None) or str(e)
        return Check(name, WARN, f"nobody takes them at {address}: {said}", "start a collector there")


def all_around(config: Config, environ: Mapping[str, str]) -> list[Check]:
    """All of these."""
    home = Path(environ.get("HOME") or Path.home())
    return [http(config, time.time()), service(home), completes(environ, home), traces(environ)]
