"""Recurrent layers: what they keep of a sequence, whatever its length, by llama.cpp's arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# llama.cpp's architectures (src/llama-arch.cpp, llm_arch_is_recurrent and _is_hybrid) of which tests have forked,
# parked and restored a state. Others keep more beside it, or have not been tried.
PURE = frozenset({"mamba", "mamba2"})
HYBRID = frozenset(
    "jamba granitehybrid falcon-h1 nemotron_h nemotron_h_moe lfm2 lfm2moe qwen3next qwen35 qwen35moe".split()
)
KINDS = PURE | HYBRID
REFUSED = frozenset(
    "rwkv6 rwkv6qwen2 rwkv7 arwkv7 plamo2 kimi-linear kimi-k3 bailingmoe3 glm5-next qwen4exp deepseek4 "
    "minimax-01".split()
)


def layers(
    arch: str, kv_heads: Sequence[int], feed_forward: Sequence[int], stated: Sequence[int], interval: int
) -> tuple[bool, ...]:
    """Which layers are recurrent: by their heads of K and V, their width between (Nemotron's layers are of one part
    each), what the file states of them, or every one but each `interval`-th (src/models/*.cpp, load_arch_hparams)."""
    if arch in PURE or arch == "falcon-h1":
        return (True,) * len(kv_heads)
    if arch.startswith("qwen3") and arch in HYBRID:
        if any(stated):
            return tuple(bool(x) for x in stated)
        return tuple((i + 1) % max(interval, 1) != 0 for i in range(len(kv_heads)))
    if arch.startswith("nemotron"):
        return tuple(not heads and not width for heads, width in zip(kv_heads, feed_forward, strict=True))
    return tuple(arch in HYBRID and not heads for heads in kv_heads)


def state_values(arch: str, embedding: int, number: Callable[[str], int]) -> int:
    """Values that a layer keeps of a sequence: `n_embd_r` and `n_embd_s` of src/llama-hparams.cpp. `number` gives what
    the file says under a key of the architecture, 0 if nothing."""
    if cache := number("shortconv.l_cache"):  # what a short convolution looks back on
        return embedding * (cache - 1)
    inner, state = number("ssm.inner_size"), number("ssm.state_size")
    return max(number("ssm.conv_kernel") - 1, 0) * _convolved(arch, number) + state * inner


def inner_width(arch: str, embedding: int, number: Callable[[str], int]) -> int:
    """Values a token that a recurrent layer has at once: what goes in, what is convolved, what comes of it. Fitted to
    what llama.cpp allocates."""
    if number("shortconv.l_cache"):
        return 3 * embedding
    taken_in = number("ssm.inner_size") + _convolved(arch, number) + number("ssm.time_step_rank")
    return int((1.5 if _is_delta_net(arch) else 2.5) * taken_in)


def copies(arch: str) -> float:
    """Copies of all sequences' states that are there while a layer computes; fitted like `inner_width`. A delta net
    computes in chunks, and its products are as large as the states."""
    return 2.25 if _is_delta_net(arch) else 1.0


def _is_delta_net(arch: str) -> bool:
    return arch.startswith("qwen3")


def _convolved(arch: str, number: Callable[[str], int]) -> int:
    groups = 0 if arch in ("mamba", "jamba") else number("ssm.group_count")
    return number("ssm.inner_size") + 2 * groups * number("ssm.state_size")
