"""A model over several nodes: everything is held once, nothing where it does not fit, by as few as possible."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from node.core.quantization import Facts, shape
from node.core.shape import need
from node.core.spread import GIB, MOST_LENDERS, Offer, Share, spread

LARGE = shape("L 32B", Facts(64, 5120, 64, 8, 128, 25600, 151936, 40960), "Q4_K_M")
SMALL = shape("S 0.5B", Facts(24, 896, 14, 2, 64, 4864, 151936, 32768, is_tied=True), "Q8_0")
CELLS, SEQUENCES = 16_384, 16


def offers(*gib: float) -> list[Offer]:
    return [Offer(f"n{i}", f"name{i}", int(size * GIB)) for i, size in enumerate(gib)]


def over(here: float, *lent: float, even: bool = False) -> tuple[Share, ...]:
    return spread(LARGE, CELLS, SEQUENCES, "f16", int(here * GIB), offers(*lent), even=even)


def test_this_machine_takes_what_it_can_and_a_lender_the_rest() -> None:
    here, lender = over(12, 16)
    assert (here.node, here.first, lender.last) == ("", 0, LARGE.layers)
    assert here.last == lender.first
    one_more = LARGE.layer_bytes[here.last]
    assert here.bytes <= 12 * GIB < here.bytes + 2 * one_more  # with its KV, a layer more would be too much
    assert str(lender) == f"layers {lender.first} to 63 on name0 ({lender.bytes / GIB:.2f} GiB)"


def test_the_fewest_lenders_that_suffice() -> None:
    shares = over(4, 2, 24, 3)
    assert [s.node for s in shares] == ["", "n1"]


def test_too_small_together() -> None:
    assert over(4, 4, 4) == ()
    assert over(0.1, 64) == ()  # the embeddings and the output stay here


def test_evenly_is_in_equal_parts_but_for_who_has_less() -> None:
    assert [s.layers for s in over(32, 32, even=True)] == [32, 32]
    assert [s.layers for s in over(64, 8, 16, even=True)] in ([22, 21, 21], [21, 22, 21], [21, 21, 22])
    here, large, small = over(32, 4, 32, even=True)
    assert small.bytes <= 4 * GIB
    assert small.layers < 16
    assert abs(here.layers - large.layers) <= 1


def test_alone_if_nobody_lends_and_it_fits() -> None:
    [only] = over(64)
    whole = need(LARGE, CELLS, SEQUENCES, "f16").total
    assert (only.layers, only.node) == (LARGE.layers, "")
    assert abs(only.bytes - whole) < whole / 1000


def test_no_more_servers_than_llama_cpp_takes() -> None:
    shares = over(3, *[1.5] * 40, even=True)
    assert len(shares) <= 1 + MOST_LENDERS


@given(
    st.floats(0.5, 3),
    st.lists(st.floats(0, 2), max_size=6),
    st.booleans(),
    st.sampled_from(["f16", "q8_0"]),
    st.lists(st.integers(1 << 20, 1 << 26), min_size=24, max_size=24),
)
def test_what_holds_of_every_spread(
    here: float, lent: list[float], even: bool, kv_type: str, layers: list[int]
) -> None:
    model = replace(SMALL, layer_bytes=tuple(layers))
    given_offers = offers(*lent)
    shares = spread(model, CELLS, SEQUENCES, kv_type, int(here * GIB), given_offers, even=even)
    memory = {"": int(here * GIB), **{o.node: o.bytes for o in given_offers}}
    at = 0
    for i, share in enumerate(shares):
        assert share.first == at
        assert share.layers or i == 0
        assert share.bytes <= memory[share.node]
        at = share.last
    assert at == (model.layers if shares else 0)
    assert len({s.node for s in shares}) == len(shares)
    # Whoever fits in proportion fits without it, and a larger machine never makes it worse.
    if shares:
        assert spread(model, CELLS, SEQUENCES, kv_type, int(here * GIB), given_offers)
        assert spread(model, CELLS, SEQUENCES, kv_type, int(here * 2 * GIB), given_offers, even=even)
