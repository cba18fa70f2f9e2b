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
        ("यह पहला वाक्य है। यह दूसरा वाक्य है।", ["यह पहला वाक्य है।", "यह दूसरा वाक्य है।"]),
        ("A heading\n\nA line\nAnother line", ["A heading", "A line", "Another line"]),
        (". The rest of it ends here.", ["The rest of it ends here."]),
        ("night. The rest of it ends here.", ["night.", "The rest of it ends here."]),
        ("It is\n-----\nall.", ["It is", "all."]),
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
    "lines",
    [
        [
            "Widget with a long name,12.50,in stock and ready to go",
            "Gadget with a long name,13.50,in stock and nearly so",
        ],
        [
            "Widget with a long name    12.50    in stock and ready",
            "gadget with a long name    13.50    in stock, nearly",
        ],
        [
            "| Widget with a long name | 12.50 | in stock, ready |",
            "| Gadget with a long name | 13.50 | in stock, nearly |",
        ],
        [
            '"Widget","a long description of it","12.50","in stock"',
            '"Gadget","a long description of it","13.50","no stock"',
        ],
        [
            '{"id": 1, "statement": "The city of Ben is Rome", "a": 1}',
            '{"id": 2, "statement": "The city of Ann is Oslo", "a": 2}',
        ],
        [
            "2026-11-30 12:00:02 INFO the lamp of the tower was lit by",
            "2026-11-30 12:00:07 INFO the lamp of the tower was out at",
        ],
        [
            "INFO the lamp of the tower was lit by the keeper at noon",
            "INFO the lamp of the tower was put out by his son at six",
        ],
        [
            "Anna Fenwick Lisbon Portugal 1990-01-01 Engineer senior",
            "Benjamin Thorne Oslo Norway 1984-03-07 Teacher of sports",
        ],
        [
            "1 Anna Fenwick Lisbon Portugal Engineer and her children",
            "2 Benjamin Thorne Oslo Norway Teacher and his children",
        ],
        [
            "- the first item of a list, as long as a line may be and",
            "- the second item of a list, as long as a line may be",
        ],
        [
            "1. the first item of a list, as long as a line may be and",
            "2. the second item of a list, as long as a line is",
        ],
        [
            "Question 1: what the keeper saw in the night of the storm",
            "Question 2: what the keeper had written into his book of",
        ],
        [
            "value = compute_the_first(argument, another_argument)",
            "other = compute_the_second(argument, other_argument)",
        ],
        [
            "from collections.abc import Callable, Mapping, Sequence",
            "import itertools, functools, operator, collections, math",
        ],
        [
            "self.assertEqual(first, second, and, another, argument)",
            "self.assertTrue(first, second, and, another, argument)",
        ],
        ["def compute_everything_that_is_needed(first_argument):", "    return first_argument"],
        [
            "https://example.org/a/long/address/of/the/first/page/of",
            "https://example.org/a/long/address/of/the/other/page/of",
        ],
        [
            "    a line that is indented as far as the one behind it,",
            "        and another that is indented farther than it.",
        ],
        ["The following is what the keeper wrote into the log:", "nothing was seen"],
        ["Shall I compare thee to a summer’s day?", "Thou art more lovely and more temperate:"],
        ["Rough winds do shake the darling buds of May,", "And summer’s lease hath all too short a date;"],
        ["灯台の守り人は嵐の夜に灯をともした" * 4, "そのことを三行の日記に書いた" * 4],
    ],
)
@pytest.mark.parametrize("times", [1, 4])
def test_rows_items_code_and_verse_stand_by_themselves(lines: list[str], times: int) -> None:
    text = "\n".join(lines * times)
    assert sentences(text) == [line.strip() for line in lines * times]
    assert joined_lines(text) == text


def test_a_value_at_the_beginning_of_a_line_belongs_to_the_sentence_before() -> None:
    lines = [
        "in the night of the storm the keeper had lit the lamp of the tower, and the code of the",
        "Amber Falcon was changed by him, as he wrote into the log of the harbour on that day, to",
        "48213, which nobody but he and the harbour master of Lisbon were told until the summer",
        "came. Then it was changed.",
    ]
    assert len(sentences("\n".join(lines))) == 2


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
        ("long-", "term plans", "long-term plans"),
        ("anne-", "marie", "anne-marie"),
    ],
)
def test_a_word_that_was_hyphenated_at_the_end_of_a_line_is_whole(end: str, begin: str, expected: str) -> None:
    before = "  Nobody on the ferry, which was late as always, saw the lighthouse and"
    assert joined_lines(f"{before} {end}\n{begin}") == f"{before} {expected}"


@given(st.text(alphabet="ab .!\n\f\t,|“”。", max_size=200))
def test_no_word_is_lost_and_none_stands_twice(text: str) -> None:
    spans = sentence_spans(text)
    assert all(text[start:stop] == text[start:stop].strip() != "" for start, stop in spans)
    assert all(before <= after for (_, before), (after, _) in pairwise(spans))
    assert re.sub(r"\W", "", text) == re.sub(r"\W", "", "".join(sentences(text)))
    assert re.sub(r"\s", "", joined_lines(text)) == re.sub(r"\s", "", text)
