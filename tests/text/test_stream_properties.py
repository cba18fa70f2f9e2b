"""For whatever tokens and stop strings: pieces are the text up to the first stop string, and nothing leaks early."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from focus_core.text.stream import TextStream
from tests.tiny import byte_tokenizer

TOKENIZER = byte_tokenizer()  # a character of four bytes is four tokens
LETTERS = st.sampled_from("ab é🦊")  # few, so that stop strings come, and nearly come, again and again
TEXTS = st.text(LETTERS, max_size=30)
STOPS = st.lists(st.text(LETTERS, min_size=1, max_size=5), max_size=3)


def tokens_of(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


BYTES = st.lists(st.sampled_from(tokens_of("a é🦊")), max_size=30)  # in any order, so seldom UTF-8


def decoded(tokens: Sequence[int]) -> str:
    return TOKENIZER.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def up_to_a_stop(text: str, stop: Sequence[str]) -> str:
    """Letter by letter: the text before the stop string that is complete first."""
    for end in range(len(text) + 1):
        starts = [end - len(string) for string in stop if text[:end].endswith(string)]
        if starts:
            return text[: min(starts)]
    return text


def shown_after_each_token(stream: TextStream, tokens: Sequence[int]) -> list[str]:
    """All that was shown by then; the last one with what comes at the end."""
    shown = [""]
    for token in tokens:
        shown.append(shown[-1] + stream.push(token))
        if stream.stopped:
            break
    return [*shown[1:], shown[-1] + stream.finish()]


@given(text=TEXTS, stop=STOPS)
def test_pieces_are_the_text_up_to_the_first_stop_string(text: str, stop: list[str]) -> None:
    stream = TextStream(TOKENIZER, stop=stop)
    wanted = up_to_a_stop(text, stop)
    shown = shown_after_each_token(stream, tokens_of(text))
    assert shown[-1] == wanted
    assert stream.stopped is any(string in text for string in stop)
    assert all(wanted.startswith(early) for early in shown)  # nothing is shown that is taken back


@given(text=TEXTS, stop=STOPS)
def test_what_is_held_back_could_begin_a_stop_string(text: str, stop: list[str]) -> None:
    """A stream that held back more would come late; nobody would see it in the text."""
    stream = TextStream(TOKENIZER, stop=stop)
    shown = ""
    for count, letter in enumerate(text, 1):
        shown += "".join(map(stream.push, tokens_of(letter)))
        if stream.stopped:
            return
        held = text[len(shown) : count]
        assert not held or any(string.startswith(held) for string in stop)


@given(text=TEXTS, stop=STOPS)
def test_white_space_at_the_start_is_no_part_of_the_answer(text: str, stop: list[str]) -> None:
    """Nor does it count for a stop string: an answer behind a template would end before it began."""
    stream = TextStream(TOKENIZER, stop=stop, strip_start=True)
    assert shown_after_each_token(stream, tokens_of(text))[-1] == up_to_a_stop(text.lstrip(), stop)


@given(tokens=BYTES, stop=st.lists(st.text(st.sampled_from("a\ufffd"), min_size=1, max_size=2), max_size=1))
def test_bytes_that_are_no_text_come_out_as_they_are_decoded_together(tokens: list[int], stop: list[str]) -> None:
    stream = TextStream(TOKENIZER, stop=stop)
    shown = shown_after_each_token(stream, tokens)
    assert shown[-1] == up_to_a_stop(decoded(tokens), stop)
    assert all(shown[-1].startswith(early) for early in shown)
