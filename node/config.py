"""One frozen `Config`: flag > environment (`CONCLAVE_*`) > TOML file > default; validated once, here.

Every option is spelled once: the field `mesh_port` is the flag `--mesh-port`, the variable `CONCLAVE_MESH_PORT` and the
TOML key `mesh_port`.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from node.address import split_address, with_port
from node.errors import InvalidRequest
from node.types import EarlyStop, Strategy

LEAST_MEMORY, MOST_MEMORY = 1 << 28, 1 << 45  # bytes that somebody may mean when they state a size
DEFAULT_PORT = 7420
DEFAULT_MESH_PORT = 7421
DEFAULT_HTTP_PORT = 7422
KV_TYPES = ("f16", "q8_0")
SWA = ("full", "small")
ALL_REPLICAS = 1 << 16
BACKENDS = ("auto", "llama", "mlx", "openai", "fake")


def _option(default: Any, help: str, *, choices: tuple[str, ...] = (), metavar: str = "", bare: str = "") -> Any:
    """A field with what the command line needs to describe it; `bare` is its value when the flag stands alone."""
    return field(default=default, metadata={"help": help, "choices": choices, "metavar": metavar, "bare": bare})


@dataclass(frozen=True, slots=True)
class Config:
    """What a node was told. Build one with `load`, which checks it; ports None mean "the default or the next free"."""

    join: str = _option(
        "auto", "find peers: auto (mDNS), none, addresses, or auto and addresses", metavar="auto|none|HOST[:PORT][,…]"
    )
    model: str = _option(
        "auto",
        "auto: the biggest on this machine that fits and chats, else bundled; a name that `models list` shows; a file; "
        "or a repository, which is downloaded",
        metavar="bundled|auto|NAME|PATH.gguf|hf:OWNER/NAME",
    )
    backend: str = _option("auto", "what computes", choices=BACKENDS)
    url: str = _option("", "the server that --backend openai uses (its key: CONCLAVE_BACKEND_KEY)", metavar="URL")
    candidates: int = _option(0, "candidates a prompt over the mesh; 0: four for each node taking part", metavar="N")
    strategy: str = _option("auto", "how votes are counted", choices=tuple(Strategy))
    ensemble: str = _option(
        "auto",
        "auto: on what is asked here, nodes with other models vote too, weighted by their record; off: they do not",
        choices=("auto", "off"),
    )
    early_stop: str = _option(
        "adaptive",
        "stop a vote when a change is unlikely (adaptive), impossible (exact), or never (off)",
        choices=tuple(EarlyStop),
    )
    quorum: str = _option(
        "half", "half: answer with what came by the deadline; strict: fail", choices=("half", "strict")
    )
    slots: int | None = _option(None, "sequences decoded at once (default: what fits, at most 16)", metavar="N")
    ctx: int = _option(0, "tokens a sequence may hold; 0: what fits, as `models plan` says", metavar="TOKENS")
    kv_memory: int = _option(1024, "MiB of memory for the KV of idle topics; 0: none is kept outside", metavar="MIB")
    kv_disk: int = _option(4096, "MiB of disk for what memory has no room for; 0: none", metavar="MIB")
    draft: int = _option(7, "tokens guessed at once from what was there before; 0: none", metavar="N")
    kv_type: str = _option("f16", "precision of the KV cache", choices=KV_TYPES)
    swa: str = _option(
        "full",
        "KV of sliding-window layers: full (fast to fork and to go back in), or small (less memory)",
        choices=SWA,
    )
    max_memory: str = _option(
        "", "GiB that the model may take with its KV; empty: what `models plan` says of this machine", metavar="GIB"
    )
    threads: int = _option(0, "threads that compute; 0: one for each fast physical core", metavar="N")
    pool: str = _option(
        "",
        "lend memory of this machine to nodes of the mesh, for models too big for one: GiB, or auto (what is free)",
        metavar="GIB|auto",
        bare="auto",
    )
    borrow: str = _option(
        "auto",
        "memory of nodes with --pool: for a model that does not fit here (auto), never (no), or in equal parts (even)",
        choices=("auto", "no", "even"),
    )
    gpu_layers: int = _option(-1, "layers on the GPU; -1: all, where llama.cpp was built for one", metavar="N")
    port: int | None = _option(
        None, f"local listener for clients (default {DEFAULT_PORT} or the next free)", metavar="PORT"
    )
    mesh_port: int | None = _option(
        None, f"listener for peers (default {DEFAULT_MESH_PORT} or the next free)", metavar="PORT"
    )
    http_port: int | None = _option(
        None,
        f"HTTP listener, OpenAI's API and the page (default {DEFAULT_HTTP_PORT} or the next free; 0: none)",
        metavar="PORT",
    )
    http_host: str = _option(
        "127.0.0.1",
        "IP address of the HTTP listener; beyond this machine only with --api-key or --http-cert",
        metavar="IP",
    )
    api_key: str = _option("", "what HTTP clients must send; better set in the environment", metavar="KEY[,KEY]")
    http_cert: str = _option("", "TLS certificate of the HTTP listener (PEM, with its chain)", metavar="FILE")
    http_key: str = _option("", "its private key (PEM), if it is in a file of its own", metavar="FILE")
    interface: str = _option("", "IP addresses to meet peers on; empty: all interfaces", metavar="IP[,IP]")
    data_dir: str = _option("", "where this node keeps its id and data; empty: the next free default", metavar="DIR")
    token: str = _option(
        "",
        "the mesh's token, which is then kept, unless this machine has one that other machines share (what the "
        "environment or the file says is never kept); empty: the one of this machine",
        metavar="clv1-…",
    )
    name: str = _option("", "name for people; empty: the host's", metavar="NAME")
    replicas: str = _option("2", "other nodes that keep each conversation: a number, or all", metavar="N|all")
    durability: str = _option(
        "peer", "a turn is answered when it is on this disk (local), and a peer's if one is alive (peer)",
        choices=("peer", "local"),
    )  # fmt: skip
    disk_budget: int = _option(8192, "MiB of disk for the KV of conversations; 0: none is kept or taken", metavar="MIB")
    sync_mbps: int = _option(0, "Mbit/s that replication of KV may take; 0: no limit", metavar="MBIT")
    sync_codec: str = _option(
        "auto", "compression of KV; auto: lz4 where the link is slow enough", choices=("auto", "none", "lz4", "zstd")
    )
    log: str = _option(
        "text", "the log on stderr: text, or json with a line for each request", choices=("text", "json")
    )
    queue: int = _option(64, "requests that may wait for a free sequence", metavar="N")

    @property
    def join_addresses(self) -> tuple[str, ...]:
        """The HOST:PORT addresses of `join`; none for auto and none. `auto,HOST:PORT` is both."""
        if self.join == "none":
            return ()
        return tuple(a.strip() for a in self.join.split(",") if a.strip() != "auto")

    @property
    def api_keys(self) -> tuple[str, ...]:
        """The keys of `api_key`; empty means that none is wanted."""
        return tuple(k.strip() for k in self.api_key.split(",") if k.strip())

    @property
    def replica_count(self) -> int:
        """`replicas` as a number; all is more than there can be."""
        return ALL_REPLICAS if self.replicas == "all" else int(self.replicas)

    @property
    def pool_bytes(self) -> int:
        """`pool` in bytes; 0 for none, and for auto."""
        return 0 if self.pool in ("", "auto") else size(self.pool)

    @property
    def max_memory_bytes(self) -> int:
        """`max_memory` in bytes; 0: no limit."""
        return size(self.max_memory)

    @property
    def interfaces(self) -> tuple[str, ...]:
        """The addresses of `interface`; empty means all."""
        return tuple(i.strip() for i in self.interface.split(",") if i.strip())


def size(text: str) -> int:
    """Bytes, of a size such as 24, 24GiB, 24GB or 512MiB: a bare number is GiB, and units are binary, as memory is
    sold. 0 for what is none."""
    units = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
    match = re.fullmatch(r"\s*([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*(?:([kmgt])(?:i?b)?|(b))?\s*", text.lower(), re.ASCII)
    return int(float(match[1]) * units[match[2] or match[3] or "g"]) if match else 0


def load(flags: Mapping[str, object], environ: Mapping[str, str], file: Path | None = None) -> Config:
    """Build a Config from its four sources. Raises InvalidRequest with one line that names the source at fault.

    `flags` holds only what was given on the command line (None counts as not given).
    """
    known = {f.name: f for f in fields(Config)}
    values: dict[str, tuple[object, str]] = {}
    if file is not None:
        try:
            text = file.read_text("utf-8")
            table = tomllib.loads(text)
        except (FileNotFoundError, NotADirectoryError):
            table = {}
        except tomllib.TOMLDecodeError as e:
            raise InvalidRequest(
                f'{file} cannot be read: {e}; write NAME = VALUE in each line, and a text in quotes: "…"'
            ) from None
        except (OSError, UnicodeDecodeError) as e:
            raise InvalidRequest(f"{file} cannot be read: {getattr(e, 'strerror', None) or e}") from None
        for key, value in table.items():
            if isinstance(value, dict) and key not in known:
                raise InvalidRequest(f"{_in_file(key, file, text)} is a section: an option stands in none")
            values[key] = (value, _in_file(key, file, text))
    for name in known:
        variable = f"CONCLAVE_{name.upper()}"
        if environ.get(variable, "") != "":
            values[name] = (environ[variable], variable)
        if flags.get(name) is not None:
            values[name] = (flags[name], f"--{name.replace('_', '-')}")
    unknown = sorted(set(values) - set(known))
    if unknown:
        near = difflib.get_close_matches(unknown[0].replace("-", "_"), known, n=1)
        said = f": did you mean {near[0]}?" if near else f"; options are {', '.join(sorted(known))}"
        raise InvalidRequest(f"{values[unknown[0]][1]} is not an option{said}")
    checked: dict[str, Any] = {}
    for name, (value, source) in values.items():
        if name in ("replicas", "pool", "max_memory") and type(value) in (int, float):  # a number in the file
            value = str(value)
        checked[name] = _typed(value, source, is_int=str(known[name].type).startswith("int"))
        choices = known[name].metadata["choices"]
        if name == "join":
            words = [w.strip() for w in checked[name].split(",")]
            checked[name] = ",".join(w if w in ("auto", "none") else with_port(w, DEFAULT_MESH_PORT) for w in words)
        if choices and checked[name] not in choices:
            raise InvalidRequest(f"{source} is {value!r}: it must be one of {', '.join(choices)}")
    config = Config(**checked)
    _check(config, {name: source for name, (_, source) in values.items()})
    return config


def _in_file(key: str, file: Path, text: str) -> str:
    """Where a key stands. tomllib does not say: the first line that looks like it is the one, but inside a text."""
    found = re.search(
        rf"""^[ \t]*(?:(["']?){re.escape(key)}\1[ \t]*[=.]|\[+[ \t]*["']?{re.escape(key)}\b)""", text, re.M
    )
    return f"{key} in {file}" + (f" (line {text.count(chr(10), 0, found.start()) + 1})" if found else "")


def _typed(value: Any, source: str, *, is_int: bool) -> Any:
    if not is_int:
        if not isinstance(value, str):
            raise InvalidRequest(f"{source} is {value!r}: it must be a text")
        return value
    try:
        if isinstance(value, bool | float):
            raise ValueError
        return int(value)
    except (TypeError, ValueError):
        raise InvalidRequest(f"{source} is {value!r}: it must be a whole number") from None


def _check(c: Config, sources: Mapping[str, str]) -> None:
    def bounded(name: str, low: int, high: int, also: tuple[int | None, ...] = ()) -> None:
        value = getattr(c, name)
        if value not in also and not low <= value <= high:
            least = "0 (automatic) or " if 0 in also else ""
            raise InvalidRequest(f"{sources.get(name, name)} is {value}: it must be {least}{low} to {high}")

    bounded("candidates", 1, 64, also=(0,))
    bounded("slots", 1, 256, also=(None,))  # llama.cpp's LLAMA_MAX_SEQ
    bounded("ctx", 64, 1 << 20, also=(0,))
    bounded("threads", 1, 512, also=(0,))
    bounded("kv_memory", 0, 1 << 20)
    bounded("kv_disk", 0, 1 << 24)
    bounded("draft", 0, 64)
    bounded("gpu_layers", -1, 10_000)
    bounded("port", 1, 65535, also=(None,))
    bounded("mesh_port", 1, 65535, also=(None,))
    bounded("http_port", 0, 65535, also=(None,))
    bounded("queue", 1, 100_000)
    bounded("disk_budget", 0, 1 << 24)
    bounded("sync_mbps", 0, 1_000_000)
    ports = [(name, getattr(c, name)) for name in ("port", "mesh_port", "http_port") if getattr(c, name)]
    for i, (name, port) in enumerate(ports):
        if same := [other for other, its in ports[:i] if its == port]:
            raise InvalidRequest(
                f"{sources.get(same[0], same[0])} and {sources.get(name, name)} are both {port}: each needs its own"
            )
    if c.replicas != "all" and not (c.replicas.isdecimal() and c.replicas.isascii() and int(c.replicas) <= 64):
        raise InvalidRequest(f"{sources.get('replicas', 'replicas')} is {c.replicas!r}: it must be 0 to 64, or all")
    if c.pool not in ("", "auto") and not 0 < size(c.pool) <= MOST_MEMORY:
        raise InvalidRequest(f"{sources.get('pool', 'pool')} is {c.pool!r}: it must be a number of GiB, or auto")
    if c.max_memory and not LEAST_MEMORY <= size(c.max_memory) <= MOST_MEMORY:
        said = f"{sources.get('max_memory', 'max_memory')} is {c.max_memory!r}"
        raise InvalidRequest(f"{said}: it must be a number of GiB (0.25 at least), such as 8")
    _check_http(c, sources)
    if c.backend != "auto" and (c.backend == "openai") != bool(c.url):
        missing = "--url is for --backend openai" if c.url else "say with --url which server, as http://HOST:PORT/v1"
        raise InvalidRequest(f"{sources.get('backend', 'backend')} is {c.backend}: {missing}")
    for peer in c.join_addresses:
        check_address(peer, sources.get("join", "join"))
    for interface in c.interfaces:
        try:
            ipaddress.ip_address(interface)
        except ValueError:
            raise InvalidRequest(
                f"{sources.get('interface', 'interface')} is {interface!r}: give the IP address of an interface"
            ) from None


def _check_http(c: Config, sources: Mapping[str, str]) -> None:
    """A listener that leaves this machine is locked, or does not start."""
    try:
        host = ipaddress.ip_address(c.http_host)
    except ValueError:
        raise InvalidRequest(
            f"{sources.get('http_host', 'http_host')} is {c.http_host!r}: give an IP address of this machine"
        ) from None
    if any(not k.isascii() or not k.isprintable() for k in c.api_keys):
        raise InvalidRequest(f"{sources.get('api_key', 'api_key')} must be printable ASCII, as HTTP headers are")
    if not host.is_loopback and not c.api_keys and not c.http_cert and c.http_port != 0:
        raise InvalidRequest(
            f"{sources.get('http_host', 'http_host')} {c.http_host} would let anyone on the network use this node: set "
            f"CONCLAVE_API_KEY to a secret, or give a certificate with --http-cert"
        )


def check_address(text: str, source: str) -> tuple[str, int]:
    """Split HOST:PORT ([v6]:PORT for IPv6). Raises InvalidRequest with `source` named."""
    found = split_address(text)
    if found is None:
        raise InvalidRequest(
            f"{source}: {text!r} is not an address; write HOST:PORT, such as 192.168.1.7:{DEFAULT_MESH_PORT}"
        )
    return found
