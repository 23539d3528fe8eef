"""`doctor` on what is around a node: HTTP's locks, the service, completion, traces."""

from __future__ import annotations

import datetime
import socket
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from node import tracing
from node.cli import completion, surroundings
from node.config import Config

NOW = datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC)
LONG = "a-key-that-nobody-guesses"


def certificate(folder: Path, days: int) -> str:
    """A PEM file with a certificate that has so many days left, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "here")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - datetime.timedelta(days=300))
        .not_valid_after(NOW + datetime.timedelta(days=days))
        .sign(key, hashes.SHA256())
    )
    file = folder / f"{days}.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return str(file)


def http(**fields: object) -> tuple[str, str]:
    check = surroundings.http(Config(**fields), NOW.timestamp())  # type: ignore[arg-type]
    return check.level, f"{check.found} -> {check.advice}"


def test_http_is_as_locked_as_it_must_be(tmp_path: Path) -> None:
    assert http() == ("ok", "127.0.0.1, without an API key, plain HTTP -> ")
    assert http(http_port=0) == ("ok", "there is no HTTP port -> ")
    assert http(api_key="a,b")[1].startswith("127.0.0.1, with 2 API keys")
    good = certificate(tmp_path, 100)
    outside = {"http_host": "0.0.0.0"}
    for fields, level, line in (
        ({"api_key": LONG}, "warn", "others on the network can read the key -> give --http-cert"),
        ({"api_key": LONG, "http_cert": good}, "ok", "with 1 API key, TLS"),
        ({"api_key": "short", "http_cert": good}, "warn", "of less than 16 characters"),
        ({"http_cert": good}, "warn", "whoever reaches it may use this node"),
        ({"http_cert": certificate(tmp_path, 5)}, "warn", "the certificate ends in 5 days -> renew it"),
        ({"http_cert": certificate(tmp_path, -1)}, "fail", "has expired -> renew it"),
        ({"http_cert": str(tmp_path / "none.pem")}, "fail", "cannot be used: No such file"),
    ):
        found = http(**outside, **fields)
        assert found[0] == level, found
        assert line in found[1]
    (tmp_path / "broken.pem").write_text("nonsense")
    assert http(http_cert=str(tmp_path / "broken.pem"))[0] == "fail"
    other = tmp_path / "key.pem"
    other.write_text(Path(certificate(tmp_path, 99)).read_text())
    assert http(http_cert=good, http_key=str(other))[0] == "fail", "the key of another certificate"


def test_the_service_is_there_or_not(tmp_path: Path) -> None:
    check = surroundings.service(tmp_path, "linux")
    assert (check.level, "not installed" in check.found) == ("ok", True)
    unit = tmp_path / surroundings.SYSTEMD
    unit.parent.mkdir(parents=True)
    unit.write_text((Path(__file__).parents[2] / "scripts/service/conclave.service").read_text())
    check = surroundings.service(tmp_path, "linux")
    assert (check.level, "conclave/.venv/bin/conclave, which is not there" in check.found) == ("fail", True)
    program = tmp_path / "elsewhere" / "conclave"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    override = unit.parent / "conclave.service.d" / "override.conf"
    override.parent.mkdir()
    override.write_text("[Service]\nExecStart=\nExecStart=%h/elsewhere/conclave serve\n")
    check = surroundings.service(tmp_path, "linux")
    assert (check.level, check.advice) == ("warn", "systemctl --user enable --now conclave")
    wanted = unit.parent / "default.target.wants"
    wanted.mkdir()
    (wanted / "conclave.service").symlink_to(unit)
    assert surroundings.service(tmp_path, "linux").level == "ok"
    agent = tmp_path / surroundings.LAUNCHD
    agent.parent.mkdir(parents=True)
    agent.write_text((Path(__file__).parents[2] / "scripts/service/conclave.plist").read_text())
    assert surroundings.service(tmp_path, "darwin").level == "fail"
    agent.write_text(agent.read_text().replace("$HOME/conclave/.venv/bin", "$HOME/elsewhere"))
    assert surroundings.service(tmp_path, "darwin").level == "ok"


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_completion_is_of_this_version(tmp_path: Path, shell: str) -> None:
    environ = {"SHELL": f"/usr/bin/{shell}"}
    check = surroundings.completes(environ, tmp_path)
    assert (check.level, "not set up" in check.found) == ("ok", True)
    file = Path(check.found.split(" > ")[1].split("`")[0])
    file.parent.mkdir(parents=True)
    file.write_text("# of long ago\n")
    check = surroundings.completes(environ, tmp_path)
    assert (check.level, check.advice) == ("warn", f"conclave completion {shell} > {file}")
    file.write_text(completion.script(shell))
    assert surroundings.completes(environ, tmp_path).level == "ok"


def test_completion_of_zsh_and_of_others(tmp_path: Path) -> None:
    environ = {"SHELL": "/bin/zsh"}
    assert "not set up" in surroundings.completes(environ, tmp_path).found
    (tmp_path / ".zshrc").write_text("source <(conclave completion zsh)\n")
    assert surroundings.completes(environ, tmp_path).found == f"in {tmp_path}/.zshrc"
    assert surroundings.completes({}, tmp_path).found.startswith("none for this shell")


def test_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(**environ: str) -> tuple[str, str, str]:
        check = surroundings.traces(environ)
        return check.level, check.found, check.advice

    assert found() == ("ok", "not asked for", "")
    assert found(OTEL_TRACES_EXPORTER="console") == ("ok", "to the console", "")
    assert found(OTEL_TRACES_EXPORTER="zipkin")[0] == "fail"
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert found(OTEL_EXPORTER_OTLP_ENDPOINT=address) == ("ok", f"to {address}", "")
    level, what, _ = found(OTEL_EXPORTER_OTLP_ENDPOINT=address)
    assert (level, what.startswith(f"nobody takes them at {address}: ")) == ("warn", True)
    assert found(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:99999")[0] == "warn"
    monkeypatch.setattr(tracing, "problem", lambda _: f"no traces: it is missing: {tracing.INSTALL}")
    assert found(OTEL_EXPORTER_OTLP_ENDPOINT=address) == ("fail", "it is missing", tracing.INSTALL)


@pytest.mark.parametrize(
    ("environ", "where"),
    [
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "http://localhost:4318"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http://localhost:4317"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "host:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http://host:1"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://b"}, "http://b"),
    ],
)
def test_where_traces_go(environ: dict[str, str], where: str) -> None:
    assert tracing.endpoint(environ) == where
