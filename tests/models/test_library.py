"""Models that other programs have: found where they stand and never touched; what `--model` makes of them."""

import json
from pathlib import Path

import pytest

from node.core.plan import GIB, memory_room
from node.errors import ConclaveError, InvalidRequest, NotFound
from node.models import library, resolve
from node.models.resolve import BUNDLED

MODEL = BUNDLED.read_bytes()


def put(path: Path, data: bytes = MODEL) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def ollama(user: Path, name: str, data: bytes = MODEL) -> Path:
    digest = f"sha256:{len(data):064x}"
    model, _, tag = name.rpartition(":")
    manifest = {
        "layers": [
            {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:1"},
            {"mediaType": "application/vnd.ollama.image.model", "digest": digest, "size": len(data)},
        ]
    }
    root = user / ".ollama/models"
    folder = model if "/" in model else f"library/{model}"
    put(root / "manifests/registry.ollama.ai" / folder / tag, json.dumps(manifest).encode())
    return put(root / "blobs" / digest.replace(":", "-"), data)


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "LLAMA_CACHE", "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CONCLAVE_HOME", str(tmp_path / "conclave"))
    return tmp_path


def found(user: Path) -> dict[str, str]:
    return {m.name: m.place for m in library.find({"HOME": str(user)}, user / "conclave/data")}


def test_every_place(user: Path) -> None:
    blob = put(user / ".cache/huggingface/hub/models--a--b/blobs/abc")
    snapshot = user / ".cache/huggingface/hub/models--a--b/snapshots/c0ffee/b-Q4_K_M.gguf"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(blob)
    put(user / ".lmstudio/models/someone/c-GGUF/c-Q6_K.gguf")
    put(user / ".lmstudio/models/someone/c-GGUF/mmproj-c.gguf")
    put(user / ".cache/llama.cpp/d.gguf")
    put(user / ".cache/llama.cpp/e-00001-of-00002.gguf")
    put(user / ".cache/llama.cpp/e-00002-of-00002.gguf")
    put(user / ".cache/llama.cpp/half-00001-of-00002.gguf")
    put(user / ".cache/llama.cpp/notes.txt")
    ollama(user, "qwen2.5:7b")
    ollama(user, "someone/f:latest", MODEL + b"1")
    put(user / "conclave/data/models/g.gguf")
    assert found(user) == {
        "g": "conclave", "b-Q4_K_M": "hugging face", "c-Q6_K": "lm studio", "d": "llama.cpp", "e": "llama.cpp",
        "qwen2.5:7b": "ollama", "someone/f:latest": "ollama",
    }  # fmt: skip
    sizes = {m.name: m.size for m in library.find({"HOME": str(user)}, user / "conclave/data")}
    assert sizes["e"] == 2 * len(MODEL)
    assert sizes["b-Q4_K_M"] == len(MODEL)


def test_places_that_the_environment_names(user: Path) -> None:
    put(user / "hf/hub/models--a--b/snapshots/1/x.gguf")
    put(user / "llama/y.gguf")
    environ = {"HOME": str(user), "HF_HOME": str(user / "hf"), "LLAMA_CACHE": str(user / "llama")}
    assert [m.name for m in library.find(environ, user / "none")] == ["x", "y"]


def test_broken_manifests_are_passed_over(user: Path) -> None:
    blob = ollama(user, "good:1")
    folder = user / ".ollama/models/manifests/registry.ollama.ai/library/bad"
    for i, text in enumerate(("", "[]", "{}", '{"layers": 3}', '{"layers": []}', '{"layers": [{}]}', '"x"')):
        put(folder / str(i), text.encode())
    outside = {"mediaType": "application/vnd.ollama.image.model", "digest": "../../../../secret"}
    put(folder / "outside", json.dumps({"layers": [outside]}).encode())
    put(user / "secret")
    assert found(user) == {"good:1": "ollama"}
    blob.unlink()
    assert found(user) == {}


def test_model_by_name(user: Path) -> None:
    ollama(user, "qwen2.5:7b")
    small = put(user / ".cache/llama.cpp/Qwen3-8B-Q4_K_M.gguf")
    large = put(user / ".cache/llama.cpp/Qwen3-8B-Q8_0.gguf", MODEL + b"1")
    assert resolve.resolve("qwen2.5:7b").path.parent.name == "blobs"
    assert resolve.resolve("qwen3-8b").path == large
    assert resolve.resolve("qwen3-8b-q4_k_m").path == small
    with pytest.raises(
        NotFound, match=r"Qwen3-14B is not on this machine: `python -m node models pull Qwen3-14B`.*9\.0 GB"
    ):
        resolve.resolve("qwen3-14b")
    with pytest.raises(InvalidRequest, match="models list"):
        resolve.resolve("nothing-of-this-name")


def test_auto_takes_the_biggest_that_fits_and_chats(user: Path) -> None:
    room = memory_room("RAM", 16 * GIB, 12 * GIB)
    assert resolve.resolve("auto", room=room).is_demo
    put(user / ".cache/llama.cpp/broken.gguf", MODEL[: len(MODEL) // 2])
    put(user / ".cache/llama.cpp/small.gguf")
    best = put(user / ".lmstudio/models/a/b/best.gguf", MODEL + bytes(1000))
    mute = MODEL.replace(b"tokenizer.chat_template", b"tokenizer.chat_templatx") + bytes(2000)
    put(user / ".lmstudio/models/a/b/no-template.gguf", mute)
    chosen = resolve.resolve("auto", room=room)
    assert (chosen.path, chosen.is_demo) == (best, False)
    tiny = memory_room("RAM", 100 << 20, 1 << 20)
    assert resolve.resolve("auto", room=tiny).is_demo
    assert resolve.resolve("auto").is_demo


def test_auto_passes_over_what_would_write_slowly(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says so. A megabyte a second, without a cache: half a token."""
    monkeypatch.setattr("node.core.plan.IN_CACHES", 0)
    room = memory_room("RAM", 16 * GIB, 12 * GIB)
    small = put(user / ".cache/llama.cpp/small.gguf")
    best = put(user / ".lmstudio/models/a/b/best.gguf", MODEL + bytes(1000))
    said: list[str] = []
    assert resolve.resolve("auto", room=room, notice=said.append, bytes_per_s=1e9).path == best
    assert said == []
    assert resolve.resolve("auto", room=room, notice=said.append, bytes_per_s=1e6).path == small
    assert len(said) == 2
    assert said[0].startswith("best fits, but would write about 0.")
    assert said[0].endswith("so it is passed over: --model best takes it all the same")
    assert said[1].endswith("and no other model of this machine is quicker")


def test_a_cache_that_is_hostile(user: Path) -> None:
    """Loops of links, folders that are named like files, and names that are no text cost nothing but themselves."""
    folder = user / ".cache/llama.cpp"
    folder.mkdir(parents=True)
    (folder / "loop").symlink_to(folder)
    (folder / "dir.gguf").mkdir()
    (folder / "nowhere.gguf").symlink_to(folder / "missing")
    put(folder / "a\udcff.gguf".encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape"))
    deep = folder.joinpath(*(str(i) for i in range(12)), "deep.gguf")
    put(deep)
    assert "deep" not in found(user)
    with pytest.raises(ConclaveError):
        resolve.resolve("nowhere")
