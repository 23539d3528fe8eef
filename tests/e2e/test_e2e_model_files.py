"""Model files that are missing, cut off or damaged: one line and an exit code, never a death by a signal."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from swarm import Node, Swarm, until

from node.engine.llamacpp import LlamaBackend, LlamaOptions
from node.errors import ConclaveError, InvalidRequest
from node.models import gguf
from node.models.resolve import BUNDLED
from node.v1 import types_pb2
from scripts.bench import make_model
from tests import oddmodels, recurrentmodels

DATA = BUNDLED.read_bytes()
HEAD = gguf.read(BUNDLED)
ARCHITECTURE = str(HEAD.metadata["general.architecture"])


def with_value(key: str, value: float) -> bytes:
    """The bundled model with another value under one key of its metadata."""
    name = f"{ARCHITECTURE}.{key}".encode()
    at = DATA.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)
    kind = struct.unpack_from("<I", DATA, at)[0]
    out = bytearray(DATA)
    struct.pack_into({4: "<I", 6: "<f"}[kind], out, at + 4, value)
    return bytes(out)


def flipped(seed: int, low: int, high: int, count: int) -> bytes:
    """The bundled model with some of its bytes changed."""
    rng = random.Random(seed)
    out = bytearray(DATA)
    for _ in range(count):
        out[rng.randrange(low, high)] = rng.randrange(256)
    return bytes(out)


def ends(swarm: Swarm, nodes: Iterable[Node]) -> list[tuple[int, str]]:
    """How nodes ended: by themselves, or by our SIGTERM once they had started."""
    out = []
    for node in nodes:
        until(lambda node=node: node.process.poll() is not None or "Ask it" in node.said(), "it starts or ends")  # type: ignore[misc]
        if node.process.poll() is None:
            swarm.end(node)
        out.append((node.process.returncode, node.said()))
    return out


def one_line(said: str) -> str:
    (line,) = said.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


BROKEN = {
    "text": (b"This is not a model. " * 100, "does not begin with GGUF"),
    "cut in its weights": (DATA[: len(DATA) // 2], "bytes are missing"),
    "wrong shapes": (with_value("feed_forward_length", 1), "wrong shape"),
    # These two end the process that loads them.
    "no layers": (with_value("block_count", 0), "trial process"),
    "an epsilon that is no number": (with_value("attention.layer_norm_rms_epsilon", float("nan")), "trial process"),
}


def test_broken_files_are_refused_in_one_line(own: Swarm, tmp_path: Path) -> None:
    nodes = []
    for name, (data, _) in BROKEN.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(data)
        nodes.append(own.start("--model", str(path), "--join", "none"))
    for (name, (_, why)), (code, said) in zip(BROKEN.items(), ends(own, nodes), strict=True):
        line = one_line(said)
        assert code == 1, (name, said)
        assert why in line, (name, said)
        assert f"{name}.gguf" in line


def test_flipped_bytes_never_kill_the_node(own: Swarm, tmp_path: Path) -> None:
    places = [
        (4, HEAD.data_offset, 1),
        (HEAD.data_offset - 4000, HEAD.data_offset, 3),
        (HEAD.data_offset, len(DATA), 4096),
    ]
    nodes = []
    for i, (low, high, count) in enumerate(places):
        path = tmp_path / f"{i}.gguf"
        path.write_bytes(flipped(i, low, high, count))
        nodes.append(own.start("--model", str(path), "--join", "none"))
    for i, (code, said) in enumerate(ends(own, nodes)):
        assert code in (0, 1, 2), (i, said)
        if code:
            one_line(said)


def test_every_truncation_is_found_before_native_code_sees_it(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    whole = HEAD.data_offset
    for length in [*range(0, 64), *range(64, whole, 997), whole - 1, whole, whole + 1, len(DATA) // 2, len(DATA) - 1]:
        path.write_bytes(DATA[:length])
        with pytest.raises(ConclaveError):
            gguf.read(path)


def test_every_truncation_of_a_tiny_model_is_found(tmp_path: Path) -> None:
    """To the byte inside the head; of the weights, those between too."""
    path = tmp_path / "tiny.gguf"
    oddmodels.good(path)
    whole, head = path.stat().st_size, gguf.read(path).data_offset
    for length in [*range(whole - 1, head, -97), *range(head, -1, -1)]:
        os.truncate(path, length)
        with pytest.raises(ConclaveError, match=r"cut off|damaged|does not begin with GGUF"):
            gguf.read(path)


def short_convolutions_and_windows(path: Path) -> None:
    """Recurrent layers beside ones with a sliding window, which nobody has tried to fork together."""
    recurrentmodels.write(path, "lfm2", **{"attention.sliding_window": 64})


ODD = {
    short_convolutions_and_windows: r"has recurrent layers of a kind \(lfm2\) that cannot be forked",
    oddmodels.bert: "is an embedding model",
    oddmodels.bert_with_template: "is an embedding model",
    oddmodels.without_template: "has no chat template: use an instruction-tuned model",
    oddmodels.without_tokenizer: "has no tokenizer",
    oddmodels.silent_about_its_tokenizer: "has no tokenizer",
}


@pytest.mark.parametrize("make", ODD)
def test_models_that_cannot_chat_are_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / f"{make.__name__}.gguf"
    make(path)
    with pytest.raises(InvalidRequest, match=rf"{path.name} {ODD[make]}"):
        LlamaBackend(LlamaOptions(path, "odd", "fp", sequences=2, context=64, threads=1))


def test_a_model_that_cannot_chat_is_refused_in_one_line(own: Swarm, tmp_path: Path) -> None:
    path = tmp_path / "base.gguf"
    oddmodels.without_template(path)
    ((code, said),) = ends(own, [own.start("--model", str(path), "--join", "none")])
    assert (code, f"{path.name} {ODD[oddmodels.without_template]}" in one_line(said)) == (2, True)


def test_a_model_with_a_small_window_cache_answers(own: Swarm, tmp_path: Path) -> None:
    path = tmp_path / "window.gguf"
    make_model.write(path, replace(make_model.TINY, window=64))
    node = own.start("--model", str(path), "--join", "none", "--swa", "small", "--ctx", "1024")
    own.ready(node)
    # Letters only: bytes at random are no text, and would not be the same tokens when they come back.
    params = types_pb2.SamplingParams(max_tokens=100, grammar="root ::= [a-g]{90}")
    answer = node.client.ask("What is this? " * 20, candidates=9, topic="t", params=params)
    assert len(answer.candidates) > 4, "the later ones too"
    assert answer.usage.completion_tokens == 91, "they and the end"
    again = node.client.ask("And this?", candidates=3, topic="t", append=True, params=params)
    assert again.usage.cached_tokens > answer.usage.prompt_tokens


def test_a_model_with_recurrent_layers_answers(own: Swarm, tmp_path: Path) -> None:
    path = tmp_path / "recurrent.gguf"
    recurrentmodels.write(path, "granitehybrid")
    node = own.start("--model", str(path), "--join", "none", "--ctx", "1024")
    own.ready(node)
    params = types_pb2.SamplingParams(max_tokens=8)
    answer = node.client.ask("What is this? " * 20, candidates=9, topic="t", params=params)
    assert answer.usage.prompt_tokens > 200
    again = node.client.ask("And this?", candidates=3, topic="t", append=True, params=params)
    # All but "<|im_start|>assistant\n", whether or not what it wrote at random comes back as the same tokens.
    assert again.usage.cached_tokens >= answer.usage.prompt_tokens - 11


def test_a_good_file_is_tried_once(own: Swarm, tmp_path: Path) -> None:
    path = tmp_path / "good.gguf"
    path.write_bytes(DATA)
    node = own.start("--model", str(path), "--join", "none", "--data-dir", str(tmp_path / "data"))
    own.ready(node)
    assert node.client.ask("What is 12 + 30?").text
    (known,) = json.loads((tmp_path / "data" / "models.json").read_text())
    assert known[:3] == [str(path), len(DATA), path.stat().st_mtime_ns]


@pytest.mark.parametrize(
    ("model", "code", "why"),
    [
        ("/nowhere/model.gguf", 1, "does not exist"),
        ("/tmp/", 1, "is a directory"),
        ("some-name", 2, "models list"),
        ("hf:someone", 2, "hf:OWNER/NAME"),
    ],
)
def test_what_is_no_file(own: Swarm, model: str, code: int, why: str) -> None:
    done = own.run("--model", model, "--join", "none")
    assert done.code == code
    assert why in one_line(done.err)
    assert done.out == ""
