"""What others check an HTTP API with: Prometheus, promtool, schemathesis; and how the listener starts and is locked."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import installed
import pytest
from prometheus_client.parser import text_string_to_metric_families
from swarm import SOON_S, Node, Swarm, until

from node.mesh.identity import Identity
from node.mesh.peer import Peer
from node.v1 import kvsync_pb2

Nodes = tuple[Swarm, list[Node]]
SCHEMATHESIS = ("schemathesis==4.32.5",)


def get(url: str, **headers: str) -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=SOON_S) as answer:
        body = answer.read()
    return json.loads(body) if body[:1] in b"{[" else body.decode()


def needed(program: str, package: str) -> str:
    if not shutil.which(program) and not os.environ.get("CI"):
        pytest.skip(f"{program} is not installed: apt-get install {package}")
    return program


def test_prometheus_reads_the_metrics(fakes: Nodes, tmp_path: Path) -> None:
    one, two = fakes[1]
    one.client.ask("hello", candidates=4)
    text = get(f"http://{one.http_address}/metrics")
    checked = subprocess.run(
        [needed("promtool", "prometheus"), "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    targets = [one.http_address, two.http_address]
    config = {
        "scrape_configs": [{"job_name": "conclave", "scrape_interval": "1s", "static_configs": [{"targets": targets}]}]
    }
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    log = tmp_path / "log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            [
                *("prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"),
                "--web.listen-address=127.0.0.1:0",
            ],
            stdout=out,
            stderr=out,
        )

    def query(what: str) -> dict[str, float]:
        try:
            found = get(f"http://127.0.0.1:{port}/api/v1/query?query={what}")
        except (OSError, urllib.error.URLError):
            return {}
        return {r["metric"]["instance"]: float(r["value"][1]) for r in found["data"]["result"]}

    try:
        listens = until(lambda: re.search(r"Listening on.*address=\S*?:(\d+)", log.read_text()), "it listens")
        port = listens[1]
        both = dict.fromkeys(targets, 1.0)
        until(lambda: query("up") == both, "both nodes are scraped")
        until(lambda: query("conclave_generation_tokens_total").get(one.http_address, 0) >= 4, "tokens are counted")
        until(lambda: query("sum(conclave_peers{state=%22alive%22})by(instance)") == both, "each has a peer")
    finally:
        server.terminate()
        server.wait(SOON_S)


def counted(node: Node) -> dict[str, float]:
    """What a node counted, by `name{labels}`, without what is 0."""
    families = text_string_to_metric_families(get(f"http://{node.http_address}/metrics"))
    found = {}
    for s in (s for family in families for s in family.samples):
        labels = ",".join(f"{k}={v}" for k, v in sorted(s.labels.items()))
        found[f"{s.name.removeprefix('conclave_')}{{{labels}}}"] = s.value
    return found


async def test_replication_is_counted_on_both_nodes_by_reason(llamas: Nodes) -> None:
    made, (one, two) = llamas
    before = {node.id: await asyncio.to_thread(counted, node) for node in (one, two)}

    def grown(node: Node, kind: str) -> float:
        return counted(node).get(kind, 0.0) - before[node.id].get(kind, 0.0)

    await asyncio.to_thread(
        lambda: one.client.ask("How many legs do nineteen horses have?", topic="counted", candidates=2)
    )
    for reason in ("log", "snapshot"):
        for node, direction in ((one, "sent"), (two, "received")):
            kind = f"sync_bytes_total{{direction={direction},reason={reason}}}"
            await asyncio.to_thread(until, lambda n=node, k=kind: grown(n, k) > 0, f"{node.id} counts {kind}")  # type: ignore[misc]

    def is_level() -> bool:
        sent = grown(one, "sync_bytes_total{direction=sent,reason=log}")
        return sent == pytest.approx(grown(two, "sync_bytes_total{direction=received,reason=log}"), rel=0.01)

    await asyncio.to_thread(until, is_level, "what one node sent came to the other")
    identity = Identity((await asyncio.to_thread(made.run, "token", "show")).out.strip(), "mmmmmmmmm2")
    peer = Peer(identity, two.mesh_address, two.id)
    try:
        answer = await peer.call(peer.kvsync.Offer, kvsync_pb2.OfferRequest(header=b"nonsense"), 30.0)
        assert answer.reason
        kind = f"snapshots_refused_total{{reason={answer.reason}}}"
        assert await asyncio.to_thread(grown, two, kind) >= 1
    finally:
        await peer.close()


@pytest.mark.slow
@pytest.mark.timeout(installed.INSTALL_S + 320)
def test_schemathesis_finds_nothing(fakes: Nodes, tmp_path: Path) -> None:
    python = installed.python("schemathesis", *SCHEMATHESIS)
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    flags = ["--checks", checks, "--max-examples", "30", "--seed", "7", "--no-color"]
    done = subprocess.run(
        [str(python.parent / "schemathesis"), "run", f"http://{fakes[1][0].http_address}/openapi.json", *flags],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout.split("Test cases:")[1]


def test_a_listener_that_leaves_this_machine_is_locked(own: Swarm, tmp_path: Path) -> None:
    flags = ("--join", "none", "--backend", "fake")
    refused = own.run(*flags, "--http-host", "0.0.0.0")
    assert (refused.code, "set CONCLAVE_API_KEY" in refused.err) == (2, True)
    bad = own.run(*flags, "--http-cert", str(tmp_path / "none.pem"))
    assert (bad.code, "cannot be used" in bad.err, "Traceback" in bad.err) == (1, True, False)
    pem = tmp_path / "own.pem"
    wish = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(["openssl", *wish, *names, "-keyout", pem, "-out", pem], check=True, capture_output=True)
    node = own.start(*flags, "--http-host", "0.0.0.0", "--http-cert", str(pem))
    locked = own.start(*flags, "--http-host", "0.0.0.0", CONCLAVE_API_KEY="k")
    own.ready(node, locked)
    port = node.http_address.rpartition(":")[2]
    trusting = ssl.create_default_context(cafile=pem)
    with urllib.request.urlopen(f"https://127.0.0.1:{port}/health", context=trusting, timeout=SOON_S) as answer:
        assert json.load(answer) == {"status": "ok"}
    address = f"http://127.0.0.1:{locked.http_address.rpartition(':')[2]}/v1/models"
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(address)
    assert caught.value.code == 401
    caught.value.close()
    assert get(address, authorization="Bearer k")["data"]


def test_ports(own: Swarm) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        refused = own.run("--join", "none", "--backend", "fake", "--http-port", port)
    assert (refused.code, refused.err.startswith(f"error: --http-port {port} is taken")) == (1, True)
    without = own.start("--join", "none", "--backend", "fake", "--http-port", "0")
    own.ready(without)
    assert without.http_address == ""


def test_logs_of_all_nodes_tell_of_a_request_by_its_id(own: Swarm) -> None:
    one, two = own.up(2, "--backend", "fake", "--log", "json")
    body = json.dumps({"model": "conclave:8", "messages": [{"role": "user", "content": "a secret"}]}).encode()
    wish = urllib.request.Request(f"http://{one.http_address}/v1/chat/completions", body)
    wish.add_header("content-type", "application/json")
    with urllib.request.urlopen(wish, timeout=SOON_S) as answer:
        id = answer.headers["x-request-id"]

    def lines(node: Node) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in node.said().splitlines() if line.startswith("{")]
        return [f for f in found if f.get("request_id") == id]

    for node, kind in ((one, "request"), (two, "poll")):
        [line] = until(lambda node=node: lines(node), f"node {node.id} tells of it")  # type: ignore[misc]
        assert line["message"].startswith(f"{kind} {id}: ")
        assert (line["node"], line["level"], line["logger"]) == (node.id, "info", "node.coordinator.coordinator")
        assert line["time"].endswith("Z")
        assert "secret" not in node.said()
    [line] = lines(one)
    assert (line["outcome"], line["tokens"] > 0, line["seconds"] > 0) == ("ok", True, True)
