"""`models`: the plan's keys and words, the list, and what is refused."""

import io
import json
from pathlib import Path

import pytest
from fakenode import Run

from node import cli
from node.cli.models import _size
from node.hardware import bandwidth
from node.models.resolve import BUNDLED


@pytest.fixture(autouse=True)
def no_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "LLAMA_CACHE", "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(bandwidth, "PASSES", 1)  # the figure is of no account here, and the time is
    monkeypatch.setattr(bandwidth, "ROUNDS", 1)
    return tmp_path


@pytest.mark.parametrize(("memory", "model", "quantization", "copies"), [
    ("24GiB", "14B", "Q4_K_M", 2), ("16GB", "7B", "Q4_K_M", 3), ("8g", "3B", "Q6_K", 2),
])  # fmt: skip
def test_plan_for_a_stated_memory(run: Run, memory: str, model: str, quantization: str, copies: int) -> None:
    done = run("models", "plan", "--memory", memory, "--json")
    assert done.code == 0, done.err
    plan = json.loads(done.out)["plan"]
    assert model in plan["model"]
    assert (plan["quantization"], plan["seed_instances"]) == (quantization, copies)
    assert plan["slots"] > 2 * copies
    assert plan["candidates"] == 8
    assert plan["bytes"] <= json.loads(done.out)["memory"]["usable"]
    assert plan["bigger"]["weight_bytes"] > plan["weight_bytes"]
    assert plan["why"]


def test_plan_for_people(run: Run) -> None:
    done = run("models", "plan", "--memory", "24GiB")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0] == "a GPU of 24 GiB: 21.6 GiB may be used: 90 % of the GPU's memory"
    assert lines[1].startswith("a copy a voter:      2 x Qwen2.5-14B-Instruct Q4_K_M, 9.2 GiB each")
    assert lines[2].startswith("Conclave:            Qwen2.5-14B-Instruct Q4_K_M once, 16 slots of 4096 tokens")
    assert lines[3].startswith("or a bigger model:   ")
    assert all(line.startswith("  because ") for line in lines[4:])


def test_plan_for_several_gpus_and_for_this_machine(run: Run) -> None:
    both = json.loads(run("models", "plan", "--memory", "24GiB,24GiB", "--json").out)
    assert both["plan"]["model"].startswith("Qwen2.5-32B")
    here = run("models", "plan", "--json")
    assert set(json.loads(here.out)) == {"plan", "memory"}


def test_plan_over_nodes_for_a_model_that_is_too_big(run: Run) -> None:
    """Who would hold what; this machine is first, and every layer is somewhere."""
    big = ("models", "plan", "qwen3-32b", "--memory", "12GiB")
    refused = run(*big)
    assert refused.code == 1
    assert "does not fit" in refused.err
    assert "--pool can hold a part" in refused.err
    assert run(*big, "--lent", "1GiB").code == 1
    done = run(*big, "--lent", "4GiB,14GiB", "--json")
    shares = json.loads(done.out)["spread"]
    assert [s["name"] for s in shares] == ["", "lender 2"]
    assert (shares[0]["first"], shares[1]["last"]) == (0, 64)
    assert shares[0]["last"] == shares[1]["first"]
    lines = run(*big, "--lent", "4GiB,14GiB").out.splitlines()
    assert lines[2].startswith("  layers 0 to ")
    assert " here (" in lines[2]
    assert " to 63 on lender 2 (" in lines[3]


def test_plan_for_a_model(run: Run) -> None:
    done = run("models", "plan", str(BUNDLED), "--json")
    assert json.loads(done.out)["plan"]["model"] == "conclave-demo"
    done = run("models", "plan", str(BUNDLED), "--memory", "8GiB")
    assert done.out.splitlines()[0] == "a GPU of 8 GiB: 7.2 GiB may be used: 90 % of the GPU's memory"
    done = run("models", "plan", "qwen3-8b:q8_0", "--memory", "16GiB", "--json")
    assert json.loads(done.out)["plan"]["quantization"] == "Q8_0"
    done = run("models", "plan", "llama-3.3-70b", "--memory", "24GiB")
    assert done.code == 1
    assert (
        "error: Llama-3.3-70B-Instruct Q4_K_M does not fit: 39.6 GiB of weights, KV and buffers beside them, "
        "and 21.6 GiB may be used" in done.err
    )


def test_list(run: Run, no_models: Path) -> None:
    file = no_models / ".cache/llama.cpp/own.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(BUNDLED.read_bytes())
    done = run("models", "--memory", "8GiB")
    assert "Qwen2.5-7B-Instruct" in done.out
    assert "too big" in done.out
    lines = done.out.splitlines()
    assert lines[0] == "on this machine (--model NAME):"
    assert lines[1].split() == ["name", "size", "where", "from", "file"]
    assert lines[2].split() == ["own", *_size(BUNDLED.stat().st_size).split(), "here", "llama.cpp", str(file)]
    assert lines[3].split()[-2:] == ["bundled", str(BUNDLED)], "with --model conclave-demo it is started"
    assert lines[5] == "to be had (models pull NAME); what fits 7.2 GiB here:"
    assert "GB" not in done.out.replace("GiB", ""), "one unit everywhere"
    answer = json.loads(run("models", "list", "--json").out)
    assert {"name", "parameters", "licence", "context", "window", "template", "tools", "source"} <= set(
        answer["catalogue"][0]
    )
    assert [m["name"] for m in answer["here"]] == ["own", "conclave-demo"]
    done = run("models", "rm", "own")
    assert done.code == 2
    assert "belongs to llama.cpp: remove it there" in done.err
    assert file.exists()


class Terminal(io.StringIO):
    """What a person types."""

    def isatty(self) -> bool:
        return True


def test_a_person_is_asked_before_a_model_is_removed(
    run: Run, own_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = own_home / "data/models/own.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(BUNDLED.read_bytes())
    for typed, code in (("\n", 1), ("n\n", 1), ("", 1)):
        monkeypatch.setattr("sys.stdin", Terminal(typed))
        assert cli.main(("models", "rm", "own")) == code
        said = capsys.readouterr().err
        assert f"Remove own, {_size(BUNDLED.stat().st_size)} ({file})? [y/N]" in said
        assert "nothing was removed" in said
        assert file.exists()
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert cli.main(("models", "rm", "own")) == 0
    assert not file.exists()
    file.write_bytes(BUNDLED.read_bytes())
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    assert cli.main(("models", "rm", "own", "--yes")) == 0
    assert not file.exists()
    file.write_bytes(BUNDLED.read_bytes())
    assert run("models", "rm", "own").code == 0, "a script is not asked"


def test_small_windows_are_counted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("models", "plan", "gemma-3-12b-it:Q4_K_M", "--memory", "24GiB", "--json")
    full = json.loads(run(*words).out)["plan"]
    small = json.loads(run(*words, "--swa", "small").out)["plan"]
    assert small["slots"] * small["ctx"] > full["slots"] * full["ctx"]
    monkeypatch.setenv("CONCLAVE_SWA", "small")
    assert json.loads(run(*words).out)["plan"] == small
    assert "one of full, small" in run("models", "plan", "--swa", "tiny").err


@pytest.mark.parametrize(("words", "message"), [
    (("models", "plna"), "there are list, plan, pull, rm: did you mean plan?"),
    (("models", "pull"), "models pull needs a name"),
    (("models", "pull", str(BUNDLED)), f"serve it with `python -m node --model {BUNDLED}`"),
    (("models", "pull", "./none.gguf"), "there is no file ./none.gguf"),
    (("models", "pull", "Qwen2.5-7B-Instrukt"), "did you mean Qwen2.5-7B-Instruct?"),
    (("models", "rm", "nothing"), "is not on this machine"),
    (("models", "plan", "--memory", "lots"), "write a size such as 24GiB"),
    (("models", "plan", "--memory", "-3"), "24GiB"),
    (("models", "plan", "--memory", "0.1"), "24GiB"),
    (("models", "plan", "--memory", "24,0"), "24GiB"),
    (("models", "pull", "llama3"), "did you mean Llama-3.2-1B-Instruct, Llama-3.2-3B-Instruct, Llama-3.1-8B"),
    (("models", "plan", "mistral"), "did you mean Mistral-Small-3.2-24B-Instruct-2506?"),
    (("models", "plan", "qwen3-8b:q3"), "a plan knows Q4_K_M, Q6_K, Q8_0"),
])  # fmt: skip
def test_refusals(run: Run, words: tuple[str, ...], message: str) -> None:
    done = run(*words)
    assert done.code in (1, 2)
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_a_bare_number_is_gib(run: Run) -> None:
    words = ("models", "plan", "qwen2.5:7b", "--json", "--memory")
    assert json.loads(run(*words, "24").out) | {"memory": 0} == json.loads(run(*words, "24GiB").out) | {"memory": 0}


def test_ollama_s_names_are_known_to_a_plan(run: Run) -> None:
    for name, means in (("qwen2.5:7b", "Qwen2.5-7B-Instruct"), ("gemma3:4b", "gemma-3-4b-it")):
        assert (
            json.loads(run("models", "plan", f"{name}:q6_k", "--memory", "24", "--json").out)["plan"]["model"] == means
        )


def test_a_limit_for_this_machine(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a node has it, from the environment or the file: the plan of this machine knows it."""
    monkeypatch.setenv("CONCLAVE_MAX_MEMORY", "0.75")
    said = json.loads(run("models", "plan", "--json").out)
    assert said["memory"]["usable"] <= 3 << 28
    monkeypatch.setenv("CONCLAVE_MAX_MEMORY", "much")
    assert "CONCLAVE_MAX_MEMORY is 'much': it must be a number of GiB" in run("models", "plan").err


def test_why_a_model_with_windows_does_not_fit(run: Run) -> None:
    done = run("models", "list", "--memory", "22GiB")
    [line] = [each for each in done.out.splitlines() if each.startswith("gemma-3-27b-it")]
    assert "--swa small" in line
    assert done.out.splitlines()[-1].startswith("--swa small: fits a node with that option")
