"""Where sentences end: marks, lines, and lines that only the width of a page has ended."""

from __future__ import annotations

import re
import textwrap
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from focus_core.text.sentences import joined_lines, sentence_spans

PROSE = [
    "The keeper of the lighthouse had lit the lamp before the storm reached the outer rocks of the bay.",
    "Nobody on the ferry, which was late as always, saw the Grey Heron leave for Lisbon with Clara Fenwick.",
    "In the morning the harbour master wrote three lines about it, closed the book and went home.",
]


def sentences(text: str) -> list[str]:
    return [text[start:stop] for start, stop in sentence_spans(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One came here. Two went there! Who?", ["One came here.", "Two went there!", "Who?"]),
        ("“It is late.” He left.", ["“It is late.”", "He left."]),
        ("Dr. Smith signed it. He left then.", ["Dr. Smith signed it.", "He left then."]),
        ("契約書は東京。署名した！", ["契約書は東京。", "署名した！"]),
        ("A heading\n\nA line\nAnother line", ["A heading", "A line", "Another line"]),
        ("  \n ", []),
    ],
)
def test_marks_and_lines_end_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@pytest.mark.parametrize("width", [55, 72, 90])
@pytest.mark.parametrize("indent", ["", "   "], ids=["flush", "first line indented"])
def test_lines_of_one_width_do_not(width: int, indent: str) -> None:
    """As in a PDF and in books of plain text. The last line of a paragraph, and a heading, end one all the same."""
    paragraph = textwrap.fill(" ".join(PROSE), width, initial_indent=indent)
    text = f"THE LAMP\n{paragraph}\n{paragraph}"
    found = [" ".join(sentence.split()) for sentence in sentences(text)]
    assert found[0] == "THE LAMP"
    assert found[-len(PROSE) :] == PROSE


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (
            "Widget with a long name,12.50,in stock and ready to go",
            "Gadget with a long name,13.50,in stock and nearly so",
        ),
        (
            "Widget with a long name    12.50    in stock and ready",
            "Gadget with a long name    13.50    in stock, nearly",
        ),
        (
            "| Widget with a long name | 12.50 | in stock, ready |",
            "| Gadget with a long name | 13.50 | in stock, nearly |",
        ),
        (
            "- the first item of a list, as long as a line may be",
            "- the second item of a list, as long as a line may be",
        ),
        ("1. the first item of a list, as long as a line may be", "2. the second item of a list, as long as a line is"),
        (
            "value = compute_the_first(argument, another_argument);",
            "other = compute_the_second(argument, other_argument);",
        ),
        ("def compute_everything_that_is_needed(first_argument):", "    return first_argument"),
        (
            "    a line that is indented as far as the one behind it,",
            "        and another that is indented farther than it",
        ),
        ("The following is what the keeper wrote into the log:", "Nothing was seen"),
        ("Shall I compare thee to a summer’s day?", "Thou art more lovely and more temperate:"),
        ("Rough winds do shake the darling buds of May,", "And summer’s lease hath all too short a date;"),
    ],
)
def test_rows_items_code_and_verse_stand_by_themselves(first: str, second: str) -> None:
    assert sentences(f"{first}\n{second}") == [first.strip(), second.strip()]


@pytest.mark.parametrize("width", [55, 90])
def test_lines_of_prose_are_put_together(width: int) -> None:
    paragraph = " ".join(PROSE)
    assert joined_lines(f"THE LAMP\n{textwrap.fill(paragraph, width)}\n\nEND\n") == f"THE LAMP\n{paragraph}\n\nEND\n"


@pytest.mark.parametrize(
    ("end", "begin", "expected"),
    [
        ("light-", "house of stone", "lighthouse of stone"),
        ("light\u00ad", "house of stone", "lighthouse of stone"),
        ("the", "  house of stone", "the house of stone"),
        ("1990-", "era houses", "1990- era houses"),
        ("Anne-", "Marie", "Anne- Marie"),
    ],
)
def test_a_word_that_was_hyphenated_at_the_end_of_a_line_is_whole(end: str, begin: str, expected: str) -> None:
    before = "  Nobody on the ferry, which was late as always, saw"
    assert joined_lines(f"{before} {end}\n{begin}") == f"{before} {expected}"


@given(st.text(alphabet="ab .!\n\f\t,|“”。", max_size=200))
def test_no_word_is_lost_and_none_stands_twice(text: str) -> None:
    spans = sentence_spans(text)
    assert all(text[start:stop] == text[start:stop].strip() != "" for start, stop in spans)
    assert all(before <= after for (_, before), (after, _) in pairwise(spans))
    assert re.sub(r"\s", "", text) == re.sub(r"\s", "", "".join(sentences(text)))
    assert re.sub(r"\s", "", joined_lines(text)) == re.sub(r"\s", "", text)
