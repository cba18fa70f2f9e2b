"""Text comes out piece by piece, whole characters only, and nothing of a stop string ever shows."""

from __future__ import annotations

import pytest

from focus_core.text.stream import TextStream
from tests.tiny import byte_tokenizer

TOKENIZER = byte_tokenizer()


def _pieces(text: str, **options: object) -> tuple[list[str], TextStream]:
    stream = TextStream(TOKENIZER, **options)  # type: ignore[arg-type]
    pieces = []
    for token in TOKENIZER(text, add_special_tokens=False)["input_ids"]:
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    return [*pieces, stream.finish()], stream


def test_characters_of_many_tokens_come_out_whole() -> None:
    pieces, _ = _pieces("naïve 漢字 🦊!")
    assert "".join(pieces) == "naïve 漢字 🦊!"
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("stop", ["STOP", "S", "TOP now", "P n"])
def test_stop_string_over_several_tokens_never_leaks(stop: str) -> None:
    text = "before STOP now after"
    pieces, stream = _pieces(text, stop=[stop])
    assert "".join(pieces) == text[: text.index(stop)]
    assert stream.stopped


def test_earliest_of_several_stop_strings_wins() -> None:
    pieces, _ = _pieces("one two three", stop=["three", "two"])
    assert "".join(pieces) == "one "


def test_beginning_of_a_stop_string_that_does_not_come_is_given_back() -> None:
    pieces, stream = _pieces("ab### abc##", stop=["####"])
    assert "".join(pieces) == "ab### abc##"
    assert not stream.stopped


def test_the_longest_possible_beginning_is_held_back() -> None:
    """Another stop string, of which less is there, would let the first letters of this one out."""
    stream = TextStream(TOKENIZER, stop=["abc", "bx"])
    assert "".join(map(stream.push, TOKENIZER("1ab", add_special_tokens=False)["input_ids"])) == "1"


def test_text_is_not_held_back_without_need() -> None:
    """With a stop string of two characters at most one character may wait."""
    stream = TextStream(TOKENIZER, stop=["\n\n"])
    shown = "".join(stream.push(token) for token in TOKENIZER("Hello", add_special_tokens=False)["input_ids"])
    assert shown == "Hello"


def test_space_at_the_start_is_dropped_once() -> None:
    pieces, _ = _pieces("  \n 4 8", strip_start=True)
    assert "".join(pieces) == "4 8"


def test_unfinished_character_at_the_end_is_shown_as_such() -> None:
    stream = TextStream(TOKENIZER)
    first = TOKENIZER("漢", add_special_tokens=False)["input_ids"][0]
    assert stream.push(first) == ""
    assert stream.finish() == "\ufffd"


class WordTokenizer:
    """Like Llama 2's: every token brings its space, and the first word of what is decoded together loses it."""

    words = ("<s>", "▁one", "▁two", "▁three")

    def decode(self, tokens: list[int], **_: object) -> str:
        return "".join(self.words[token] for token in tokens if token).replace("▁", " ").removeprefix(" ")


@pytest.mark.parametrize("tokens", [[1, 2, 3], [1, 0, 2, 3], [1, 2, 0, 0, 3]])
@pytest.mark.parametrize(("behind", "text"), [(None, "one two three"), (1, " one two three"), (0, "one two three")])
def test_spaces_between_words_survive(tokens: list[int], behind: int | None, text: str) -> None:
    """Behind a special token, or as the continuation of a prompt, a word would lose the space before it."""
    stream = TextStream(WordTokenizer(), after=behind)  # type: ignore[arg-type]
    assert "".join([*map(stream.push, tokens), stream.finish()]) == text


def test_an_answer_behind_half_a_character_is_whole() -> None:
    first, *rest = TOKENIZER("é!", add_special_tokens=False)["input_ids"]
    stream = TextStream(TOKENIZER, after=first)
    assert "".join([*map(stream.push, rest), stream.finish()]) == "!"


class PieceTokenizer:
    """Tokens of several words, and one that ends in what looks like half a character."""

    pieces = ("one two three", " STOP it \ufffd")

    def decode(self, tokens: list[int], **_: object) -> str:
        return "".join(self.pieces[token] for token in tokens)


def test_the_first_stop_string_of_a_token_wins() -> None:
    stream = TextStream(PieceTokenizer(), stop=["three", "two"])
    assert stream.push(0) == "one "


def test_a_stop_string_in_what_was_held_back_to_the_end() -> None:
    stream = TextStream(PieceTokenizer(), stop=["STOP"])
    assert [stream.push(1), stream.finish()] == ["", " "]
