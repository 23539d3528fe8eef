"""What tools find out from a running node: health, and the services by reflection."""

from __future__ import annotations

import json
import shutil
import subprocess

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from swarm import ROOT, SOON_S, Node, Swarm

from node.v1 import generate_pb2

Pair = tuple[Swarm, list[Node]]


def reflect(node: Node, **asked: str) -> reflection_pb2.ServerReflectionResponse:
    stub = reflection_pb2_grpc.ServerReflectionStub(node.client.channel)
    answers = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(**asked)]), timeout=SOON_S)
    return next(iter(answers))


def test_services_are_listed(fakes: Pair) -> None:
    """Those of the local listener: Vote is for nodes, on the mesh listener."""
    _, (one, _) = fakes
    found = {s.name for s in reflect(one, list_services="").list_services_response.service}
    assert found == {
        "node.v1.Generate",
        "node.v1.KVSync",
        "node.v1.Mesh",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }


def test_reflection_says_what_the_proto_files_say(fakes: Pair) -> None:
    _, (one, _) = fakes
    answer = reflect(one, file_containing_symbol="node.v1.Generate").file_descriptor_response
    files = [descriptor_pb2.FileDescriptorProto.FromString(f) for f in answer.file_descriptor_proto]
    file = next(f for f in files if f.name == "node/v1/generate.proto")
    assert {m.name for s in file.service for m in s.method} == {"Generate", "Stream", "Embed"}
    told = next(m for m in file.message_type if m.name == "GenerateRequest")
    assert {f.name for f in told.field} == {f.name for f in generate_pb2.GenerateRequest.DESCRIPTOR.fields}


@pytest.mark.parametrize("service", ["", "node.v1.Generate", "node.v1.Mesh"])
def test_health(fakes: Pair, service: str) -> None:
    _, nodes = fakes
    for node in nodes:
        answer = node.client.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=SOON_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("service", ["node.v1.Vote", "node.v1.Nonsense"])
def test_health_of_what_is_not_served_here(fakes: Pair, service: str) -> None:
    _, (one, _) = fakes
    with pytest.raises(grpc.RpcError) as e:
        one.client.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=SOON_S)
    assert e.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def buf() -> str:
    """The program `buf`, from where set-up keeps it."""
    if not shutil.which("npm"):
        pytest.skip("npm is not installed, and buf comes from it")
    import proto

    return str(proto._buf())


@pytest.mark.timeout(240)
def test_buf_curl(llamas: Pair, buf: str) -> None:
    """Without grpcurl: by the .proto files and by reflection."""
    _, (one, two) = llamas

    def curl(method: str, *flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [buf, "curl", "--protocol", "grpc", "--http2-prior-knowledge", *flags, f"http://{one.address}/{method}"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=60,
            check=False,
        )

    for source in (("--schema", "proto"), ("--reflect",)):
        done = curl("node.v1.Mesh/Status", *source)
        assert done.returncode == 0, done.stderr
        assert {n["id"] for n in json.loads(done.stdout)["nodes"]} == {one.id, two.id}
    asked = {"messages": [{"role": "user", "content": "What is 12 + 30?"}]}
    done = curl("node.v1.Generate/Generate", "--reflect", "--data", json.dumps(asked))
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["outcome"]["planned"] == 8
    assert answer["outcome"]["clusters"][0]["key"] == "42"
    done = curl("node.v1.Generate/Generate", "--reflect", "--data", "{}")
    assert done.returncode != 0
    assert json.loads(done.stderr)["code"] == "invalid_argument"
