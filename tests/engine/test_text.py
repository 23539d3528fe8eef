"""Text of tokens: the pieces that are shown, put together, are the text up to the first stop string."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.engine.text import TextStream

ALPHABET = "ab#\n é日😀"
texts = st.text(ALPHABET, max_size=40)
stops = st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=3)


def cut(text: str, stops: list[str]) -> str:
    """A second implementation: everything before the stop string that ends first as the text grows."""
    for end in range(len(text) + 1):
        starts = [end - len(s) for s in stops if text[:end].endswith(s)]
        if starts:
            return text[: min(starts)]
    return text


@given(texts, stops, st.data())
def test_pieces_add_up_to_the_text_before_the_first_stop(text: str, stops: list[str], data: st.DataObject) -> None:
    raw = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=12)))
    stream = TextStream(stops)
    shown = []
    for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        shown.append(stream.feed(raw[start:end]))
        assert cut(text, stops).startswith("".join(shown))
        if stream.stopped:
            break
    shown.append(stream.finish())
    assert "".join(shown) == stream.text
    # Bytes that come together are searched together, so the leftmost stop in what has come wins; it can only differ
    # from the one that ends first where stops overlap, and is never later in the text.
    assert cut(text, stops).startswith(stream.text)
    if len(stops) <= 1:
        assert stream.text == cut(text, stops)


def test_a_character_over_several_tokens_is_held_until_it_is_whole() -> None:
    stream = TextStream()
    emoji = "😀".encode()
    assert [stream.feed(emoji[i : i + 1]) for i in range(4)] == ["", "", "", "😀"]


def test_what_might_begin_a_stop_string_is_held_and_given_out_at_the_end() -> None:
    stream = TextStream(["\n\nQ:"])
    assert stream.feed(b"yes\n") == "yes"
    assert stream.feed(b"\nQ") == ""
    assert stream.finish() == "\n\nQ"


def test_bytes_that_are_no_utf8_become_replacement_characters() -> None:
    stream = TextStream()
    assert stream.feed(b"a\xffb\xc3") == "a�b"
    assert stream.finish() == "�"


@pytest.mark.parametrize("stop", ["END", "E"])
def test_nothing_comes_after_a_stop(stop: str) -> None:
    stream = TextStream([stop])
    assert stream.feed(b"oneEND two") == "one"
    assert stream.stopped_by == stop
    assert stream.feed(b"three") == ""
    assert stream.finish() == ""
