"""Checks of the exported file: template, tokenizer and network agree in PyTorch and in llama.cpp."""

from __future__ import annotations

import json
import random
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from scripts.model.chat import conversation
from scripts.model.export import export, load
from scripts.model.handmade import RECALL, SUMS, UNKNOWN
from scripts.model.network import Network
from scripts.model.problems import held_out
from scripts.model.sample import generate
from scripts.model.template import TEMPLATE, render

if TYPE_CHECKING:
    from scripts.model.llama import Llama

ODD = (
    "",
    " ",
    "\n\n  \t x",
    "line\r\nline\r\n\r\n",
    "naïve café Ærø ß",
    "日本語のテキスト。中文",
    "🙂🚀 ❤️‍🔥👍🏽",
    '{"a": [1, 2.5, null], "b": {"c": "d\\n"}}',
    "don't I'll we've WE'RE",
    "x=1;y+=2 // comment",
    "1234567890 3.14159 -7",
    "<tool_call> <tools></tools> <|im_start|>user",
    "   leading and trailing   ",
    "Ω≈ç√∫˜µ≤≥÷",
    "мир и война",
    "\u200b\ufeff\x00\x01",
)


def template(n: int = 400, seed: int = 5) -> int:
    """Conversations whose Jinja rendering equals the one trained on; raises where one differs."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    compiled = environment.from_string(TEMPLATE)
    rng = random.Random(seed)
    for i in range(n):
        made = conversation(rng)
        prompt = i % 2 == 0
        theirs = compiled.render(messages=made.messages, tools=made.tools, add_generation_prompt=prompt)
        if theirs != render(made.messages, made.tools, prompt):
            raise AssertionError(f"template differs:\n{theirs}\n---\n{render(made.messages, made.tools, prompt)}")
    return n


def tokens(tok: Tokenizer, llama: Llama, n: int = 400, seed: int = 6) -> int:
    """Texts that both tokenizers cut alike, odd ones among them; raises where one differs."""
    rng = random.Random(seed)
    texts = [*ODD, *UNKNOWN]
    for _ in range(n):
        made = conversation(rng)
        texts.append(render(made.messages, made.tools))
    for text in texts:
        if tok.encode(text).ids != llama.tokens(text):
            raise AssertionError(f"tokens differ: {text!r}\n{tok.encode(text).tokens}\n{llama.tokens(text)}")
    return len(texts)


def logits(checkpoint: Path, n: int = 20, seed: int = 7) -> float:
    """Largest difference of any logit over `n` conversations, with F32 weights and F32 KV on both sides."""
    from scripts.model.llama import Llama

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f32.gguf"
        export(checkpoint, path, "f32")
        net, tok = load(path)
        llama = Llama(path, f32_kv=True)
        rng, worst = random.Random(seed), 0.0
        for _ in range(n):
            made = conversation(rng)
            ids = tok.encode(render(made.messages, made.tools)).ids[:900]
            worst = max(worst, float(np.abs(llama.logits(ids) - _ours(net, ids)).max()))
        llama.close()
    return worst


@torch.inference_mode()
def _ours(net: Network, ids: list[int]) -> np.ndarray:
    return net.logits(net(torch.tensor([ids])))[0].numpy()


def greedy(net: Network, tok: Tokenizer, llama: Llama, seed: int = 8) -> tuple[int, int]:
    """How many greedy answers are the same text in PyTorch (F32 throughout) and llama.cpp, and how many were asked."""
    asked = [p.question for p in held_out(40, seed)] + [s for s, _ in SUMS] + list(UNKNOWN) + [r[2] for r in RECALL]
    prompts = [render([{"role": "user", "content": q}]) for q in asked]
    ours = generate(net, tok, prompts, 0.0, [0] * len(prompts))
    theirs = [tok.decode(llama.greedy(tok.encode(p).ids, 200), skip_special_tokens=True) for p in prompts]
    return sum(a == b for a, b in zip(ours, theirs, strict=True)), len(prompts)


def check(checkpoint: Path, shipped: Path) -> dict[str, float | int | str]:
    """All checks; raises on the first that fails. Without llama.cpp's bindings only the template's."""
    found: dict[str, float | int | str] = {"template_same": template()}
    if find_spec("llama_cpp") is None:
        print("llama-cpp-python is not installed: tokens, logits and greedy answers are not compared")
        return found
    from scripts.model.llama import Llama

    net, tok = load(shipped)
    llama = Llama(shipped)
    found["tokenizer_same"] = tokens(tok, llama)
    same, asked = greedy(net, tok, llama)
    llama.close()
    exact = Llama(shipped, f32_kv=True)
    found |= {"greedy_same": same, "greedy_same_f32_kv": greedy(net, tok, exact)[0], "greedy_asked": asked}
    exact.close()
    # Without the checkpoint only the shipped file can be checked, and its F16 weights stand in for the F32 ones.
    if checkpoint.exists():
        found["logits_max_abs_diff"] = round(logits(checkpoint), 6)
        if found["logits_max_abs_diff"] > 5e-3:
            raise AssertionError(f"logits differ by {found['logits_max_abs_diff']}")
    if same < asked * 0.95:
        raise AssertionError(f"only {same} of {asked} greedy answers are the same")
    return found
