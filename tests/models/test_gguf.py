"""The head of a GGUF file: what a sound one says, and that a broken one costs one line and no more than that."""

import os
import random
import struct
import time
import tracemalloc
from pathlib import Path

import pytest

from node.errors import BackendError, ConclaveError, InvalidRequest, NotFound
from node.models import gguf, resolve

U8, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def strings(values: list[str]) -> bytes:
    return struct.pack("<IQ", STRING, len(values)) + b"".join(map(text, values))


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: list[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


PAIRS = [
    pair("general.architecture", STRING, text("llama")),
    pair("general.name", STRING, text("Tiny\x1b[31m model")),
    pair("llama.context_length", U32, struct.pack("<I", 2048)),
    pair("llama.rope.freq_base", F32, struct.pack("<f", 10_000.0)),
    pair("tokenizer.ggml.add_bos_token", BOOL, b"\x01"),
    pair("tokenizer.ggml.tokens", ARRAY, strings(["<s>", "a", "ü"])),
    pair("tokenizer.ggml.token_type", ARRAY, struct.pack("<IQ3I", U32, 3, 3, 1, 1)),
    pair("tokenizer.chat_template", STRING, text("{{ messages }}")),
]
TENSORS = [tensor("token_embd.weight", [32, 3], 0, 0), tensor("output.weight", [32, 3], 8, 384)]
DATA = bytes(range(256)) * 2


def file_of(
    pairs: list[bytes] = PAIRS,
    tensors: list[bytes] = TENSORS,
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    data: bytes = DATA,
) -> bytes:
    many = counts or (len(tensors), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", version, *many) + b"".join(pairs) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + data


@pytest.fixture
def read(tmp_path: Path):  # type: ignore[no-untyped-def]
    def write_and_read(data: bytes) -> gguf.Gguf:
        path = tmp_path / "model.gguf"
        path.write_bytes(data)
        return gguf.read(path)

    return write_and_read


def test_a_sound_head(read) -> None:  # type: ignore[no-untyped-def]
    head = read(file_of())
    assert head.metadata == {
        "general.architecture": "llama",
        "general.name": "Tiny\x1b[31m model",
        "llama.context_length": 2048,
        "llama.rope.freq_base": 10_000.0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": "{{ messages }}",
    }
    assert head.tensors == 2
    assert head.data_offset % 32 == 0
    assert head.size - head.data_offset == len(DATA)
    assert head.name == "Tiny[31m model", "no control characters reach a terminal"
    assert read(file_of(version=2)).metadata == head.metadata


def test_the_bundled_model_is_read() -> None:
    file = resolve.resolve("bundled")
    assert file == resolve.resolve("auto")
    assert file.is_demo
    assert file.head.tensors > 10
    assert file.head.metadata["general.architecture"]


def fingerprint_with(read, **change: object) -> str:  # type: ignore[no-untyped-def]
    return str(read(file_of(**change)).fingerprint("f16"))


@pytest.mark.parametrize(
    "change",
    [
        {"pairs": [*PAIRS[:7], pair("tokenizer.chat_template", STRING, text("{{ message }}"))]},
        {"pairs": [*PAIRS[:3], pair("llama.rope.freq_base", F32, struct.pack("<f", 10_001.0)), *PAIRS[4:]]},
        {"pairs": [*PAIRS[:5], pair("tokenizer.ggml.tokens", ARRAY, strings(["<s>", "b", "ü"])), *PAIRS[6:]]},
        {"tensors": [TENSORS[0], tensor("output.weight2", [32, 3], 8, 384)]},
        {"tensors": [TENSORS[0], tensor("output.weight", [3, 32], 8, 384)]},
        {"tensors": [TENSORS[0], tensor("output.weight", [32, 3], 2, 384)]},
        {"data": bytes(range(255, -1, -1)) * 2},
        {"data": DATA + b"\0"},
    ],
    ids="template rope tokens name shape type bytes size".split(),
)
def test_the_fingerprint_sees_every_change(read, change: dict[str, object]) -> None:  # type: ignore[no-untyped-def]
    same = fingerprint_with(read)
    assert fingerprint_with(read) == same
    assert fingerprint_with(read, **change) != same


def test_the_fingerprint_covers_how_the_model_is_loaded_and_not_where_it_lies(tmp_path: Path) -> None:
    one, two = tmp_path / "one.gguf", tmp_path / "two.gguf"
    one.write_bytes(file_of())
    two.write_bytes(file_of())
    assert gguf.read(one).fingerprint("f16") == gguf.read(two).fingerprint("f16")
    assert gguf.read(one).fingerprint("f16") != gguf.read(one).fingerprint("q8_0")
    head = gguf.read(one)
    one.unlink()
    with pytest.raises(BackendError, match="cannot be read"):
        head.fingerprint()


HUGE = 1 << 62
REFUSED = {
    "empty": (b"", "no GGUF"),
    "other magic": (b"PK\3\4" + b"\0" * 60, "no GGUF"),
    "big-endian or of the future": (file_of(version=1 << 24), "version 16777216"),
    "no model": (file_of(PAIRS[:1], []), "without a model"),
    "no architecture": (file_of(PAIRS[1:]), "without a model"),
    "weights cut off": (file_of()[:-300], "bytes are missing"),
    "huge pair count": (file_of(counts=(2, HUGE)), "damaged"),
    "huge tensor count": (file_of(counts=(HUGE, len(PAIRS))), "damaged"),
    "huge string": (file_of([pair("k", STRING, struct.pack("<Q", HUGE))]), "damaged"),
    "huge array of numbers": (file_of([pair("k", ARRAY, struct.pack("<IQ", U64, HUGE))]), "damaged"),
    "huge array of texts": (file_of([pair("k", ARRAY, struct.pack("<IQ", STRING, HUGE))]), "damaged"),
    "array of arrays": (file_of([pair("k", ARRAY, struct.pack("<IQ", ARRAY, 1))]), "damaged"),
    "unknown type": (file_of([pair("k", 99, b"")]), "damaged"),
    "alignment 0": (file_of([*PAIRS, pair("general.alignment", U32, b"\0\0\0\0")]), "alignment"),
    "alignment that is a text": (file_of([*PAIRS, pair("general.alignment", STRING, text("x" * 999))]), "alignment"),
    "many dimensions": (file_of(PAIRS, [tensor("t", [1] * 5, 0, 0)]), "damaged"),
    "huge shape": (file_of(PAIRS, [tensor("t", [HUGE] * 4, 0, 0)]), "bytes are missing"),
    "huge offset": (file_of(PAIRS, [tensor("t", [1], 0, HUGE)]), "bytes are missing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_broken_file_is_refused_in_one_line(read, case: str) -> None:  # type: ignore[no-untyped-def]
    data, line = REFUSED[case]
    with pytest.raises(BackendError, match=line) as caught:
        read(data)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400


def test_counts_are_not_believed_even_where_the_file_is_large(tmp_path: Path) -> None:
    """A sparse file of 8 GiB, so that the file's size alone refuses nothing."""
    path = tmp_path / "sparse.gguf"
    for value in (struct.pack("<IQ", U64, 1 << 29), struct.pack("<IQ", STRING, 1 << 29), struct.pack("<Q", 1 << 32)):
        kind = STRING if len(value) == 8 else ARRAY
        path.write_bytes(file_of([pair("k", kind, value)]))
        os.truncate(path, 8 << 30)
        tracemalloc.start()
        with pytest.raises(BackendError, match="damaged"):
            gguf.read(path)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 200 << 20


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(file_of())
    assert gguf.read(path)
    for length in reversed(range(len(file_of()) - len(DATA))):
        os.truncate(path, length)
        with pytest.raises(BackendError):
            gguf.read(path)


def test_mutations_give_a_result_or_one_of_our_errors(tmp_path: Path) -> None:
    whole, random_ = file_of(), random.Random(7)
    path = tmp_path / "model.gguf"
    path.touch()
    head = len(whole) - len(DATA)
    outcomes = {True: 0, False: 0}
    started = time.process_time()
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(random_.randint(1, 4)):
            at = random_.randrange(head)
            data[at] = random_.choice((0, 1, 0x7F, 0x80, 0xFF, random_.randrange(256)))
        try:
            with path.open("r+b") as file:  # in place, which is much quicker than anew
                file.write(data)
            found = gguf.read(path)
            assert isinstance(found.name, str)
            outcomes[True] += 1
        except ConclaveError as e:
            assert "\n" not in e.message  # noqa: PT017 (either outcome is fine)
            outcomes[False] += 1
    assert min(outcomes.values()) > 100, f"one-sided mutations: {outcomes}"
    assert time.process_time() - started < 60


def test_a_real_vocabulary_is_read_quickly(read) -> None:  # type: ignore[no-untyped-def]
    tokens = strings([f"token{i}" for i in range(151_936)])
    merges = strings([f"to ken{i}" for i in range(151_387)])
    scores = struct.pack("<IQ", F32, 151_936) + b"\0" * (4 * 151_936)
    pairs = [
        *PAIRS,
        pair("tokenizer.ggml.tokens", ARRAY, tokens),
        pair("tokenizer.ggml.merges", ARRAY, merges),
        pair("tokenizer.ggml.scores", ARRAY, scores),
    ]
    data = file_of(pairs)
    started = time.process_time()
    assert read(data).tensors == 2
    assert time.process_time() - started < 10


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        gguf.read(tmp_path / "nowhere.gguf")
    with pytest.raises(NotFound, match="no path"):
        gguf.read(tmp_path / "nul\0.gguf")
    with pytest.raises(BackendError, match="is a directory: --model takes a GGUF file"):
        gguf.read(tmp_path)
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(BackendError, match="no regular file"):
        gguf.read(tmp_path / "pipe.gguf")  # opening it would wait for a writer


def test_what_model_takes(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(file_of())
    file = resolve.resolve(str(path))
    assert (file.path, file.is_demo) == (path, False)
    assert file.name == "tiny" != file.head.name, "as `models list` has it"
    odd = path.rename(tmp_path / "ti\x1bny\udcff.gguf")
    assert resolve.resolve(str(odd)).name == "tiny", "others see it"
    assert resolve.resolve("conclave-demo") == resolve.resolve("bundled")
    for model in ("https://example.org/x.gguf", "no-such-model"):
        with pytest.raises(InvalidRequest, match="--model"):
            resolve.resolve(model)
    with pytest.raises(NotFound, match="home directory"):
        resolve.resolve("~nobody-of-this-name/x.gguf")
