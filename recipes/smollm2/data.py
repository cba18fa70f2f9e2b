"""Training records from stories with questions: the questions themselves, and what can be asked of any text.

Every section of a story is a document, so that training draws some of them around those with the answer.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from focus_core.evaluation.tasks.records import Record

Example = dict[str, Any]  # a record that `focusllm train` reads

_THINGS = "amber birch cobalt copper coral crimson dusty gentle golden hollow ivory jade lunar misty olive pale".split()
_NAMES = "anchor badge barrel basket beacon bridge candle castle chest cradle crown drum ferry gate harp kettle".split()
# Other words than the look-ups of `focusllm eval` have, which are for measuring.
_KEYS = (
    ("Keep this number in mind: {name} is {value}.", "Which number is {name}?"),
    ("Somebody had written on the wall: {name} – {value}.", "What had somebody written beside {name}?"),
    ("The code for {name} has been changed to {value}.", "To what has the code for {name} been changed?"),
)
_BLANK = "_____"
_GOES_ON = ("How does the sentence go on that begins: {words}", "Which words follow “{words}”?")
_GIVEN = 7  # words of a sentence that are given
_FOLLOWING = (2, 7)  # of those that are asked for
# Phrases that are asked for by the words around them, and what asks in their place.
_PHRASES = (
    (re.compile(r"\b(?<=[Ii]n )(?:1[789]|20)\d\d\b"), ("what year", "which year")),
    (re.compile(r"\$\d[\d.,]*\d?(?: (?:million|billion|trillion))?"), ("how much money", "what amount")),
    (
        re.compile(r"(?<![$\d])\b(?!1[789]\d\d\b)\d[\d,.]*\d?(?:-percent| percent| million| billion)?\b"),
        ("how many", "what number"),
    ),
    (
        re.compile(r"(?<=[a-z,] )(?:[A-Z][a-z]+(?: of)?(?: the)? )*[A-Z][a-z]{2,}(?: [A-Z][a-z]+)*"),
        ("who or what", "which name"),
    ),
)
_BEFORE, _AFTER = (4, 9), (0, 7)  # words before and behind a phrase that are given
_FEWEST_WORDS = 6  # that are given
_SECTION_WORDS = 150
_SECTIONS = 12  # of a part of a text, which is to questions what a story is
_WORD = re.compile(r"\b[A-Z][a-z]{3,}\b|\b[a-z]{6,}\b")
_SENTENCE = re.compile(r"[^.!?\n]{40,200}[.!?]")


def write(path: Path, records: Iterable[Example]) -> int:
    """As JSON lines; returns how many."""
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")
    return len(lines)


def parts_of(path: Path) -> list[Record]:
    """A plain text, cut into parts of equally many sections of whole lines; a long line is cut between its sentences.

    What is not UTF-8 in it is replaced.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    pieces = [piece for line in lines for piece in _sentences_of(line.strip()) if piece]
    sections, words = [list[str]()], 0
    for piece in pieces:
        sections[-1].append(piece)
        words += len(piece.split())
        if words >= _SECTION_WORDS:
            sections.append([])
            words = 0
    texts = ["\n".join(section) for section in sections[:-1]]
    starts = range(0, len(texts) - _SECTIONS + 1, _SECTIONS)
    return [Record(f"{path.name}/{start}", tuple(texts[start : start + _SECTIONS]), ()) for start in starts]


def _sentences_of(line: str) -> list[str]:
    return re.split(r"(?<=[.!?;]) ", line) if len(line.split()) > _SECTION_WORDS else [line]


def questions(stories: Sequence[Record]) -> list[Example]:
    """One record for each story: the questions that mark their sections, with the first of their answers."""
    records = []
    for story in stories:
        asked = [
            {"question": one.text, "answer": one.answers[0], "gold": sorted(set(one.sections))}
            for one in story.questions
            if one.sections
        ]
        if asked:
            records.append({"documents": story.sections, "questions": asked})
    return records


def planted(stories: Sequence[Record], draw: random.Random, *, each: int = 4) -> list[Example]:
    """Numbers under made-up names, planted between sentences of each story: as many questions as numbers."""
    records = []
    for story in stories:
        sections, asked = list(story.sections), list[Example]()
        names = draw.sample([f"the {thing} {name}" for thing in _THINGS for name in _NAMES], each)
        for name in names:
            value, place = str(draw.randint(10_000, 99_999)), draw.randrange(len(sections))
            sentence, question = draw.choice(_KEYS)
            sections[place] = _planted(sections[place], sentence.format(name=name, value=value), draw)
            asked.append({"question": question.format(name=name), "answer": value, "gold": [place]})
        records.append({"documents": sections, "questions": asked})
    return records


def cloze(stories: Sequence[Record], draw: random.Random, *, each: int = 6) -> list[Example]:
    """Sentences of each story with a word left out that occurs in one section only."""
    records = []
    for story in stories:
        asked = [one for place, section in enumerate(story.sections) for one in _blanks(story, section, place, draw)]
        if asked:
            records.append({"documents": story.sections, "questions": draw.sample(asked, min(each, len(asked)))})
    return records


def quoted(stories: Sequence[Record], draw: random.Random, *, each: int = 6) -> list[Example]:
    """Sentences of each story whose first words are given, and the words that follow them are asked for."""
    records = []
    for story in stories:
        whole = "\n".join(story.sections)
        asked = list[Example]()
        for place, section in enumerate(story.sections):
            for sentence in _SENTENCE.findall(section):
                words = sentence.split()
                first, rest = " ".join(words[:_GIVEN]), " ".join(words[_GIVEN : _GIVEN + draw.randint(*_FOLLOWING)])
                if rest and sentence[0].isupper() and whole.count(first) == 1:
                    question = draw.choice(_GOES_ON).format(words=first)
                    asked.append({"question": question, "answer": rest, "gold": [place]})
        if asked:
            records.append({"documents": story.sections, "questions": draw.sample(asked, min(each, len(asked)))})
    return records


def phrases(stories: Sequence[Record], draw: random.Random, *, each: int = 6) -> list[Example]:
    """Years, numbers and names of each text, asked for by the words around them: "… was elected in what year?"."""
    records = []
    for story in stories:
        whole = "\n".join(story.sections)
        asked = [
            one
            for place, section in enumerate(story.sections)
            for sentence in _SENTENCE.findall(section)
            for one in _phrase(sentence.strip(), whole, place, draw)
        ]
        if asked:
            records.append({"documents": story.sections, "questions": draw.sample(asked, min(each, len(asked)))})
    return records


def _phrase(sentence: str, whole: str, place: int, draw: random.Random) -> list[Example]:
    """One phrase of a sentence that is rare in the text, or none."""
    found = [
        (match, asking)
        for kind, asking in _PHRASES
        for match in kind.finditer(sentence)
        if whole.count(match.group()) <= 2
    ]
    if not found:
        return []
    match, asking = draw.choice(found)
    before = sentence[: match.start()].split()[-draw.randint(*_BEFORE) :]
    after = sentence[match.end() :].rstrip(".!?;, ").split()[: draw.randint(*_AFTER)]
    if len(before) + len(after) < _FEWEST_WORDS:
        return []
    question = " ".join([*before, draw.choice(asking), *after])
    return [
        {"question": f"{question[0].upper()}{question[1:]}?", "answer": match.group().rstrip(",."), "gold": [place]}
    ]


def among_others(records: Sequence[Example], draw: random.Random, *, others: int) -> list[Example]:
    """The same records, with so many documents of other records anywhere between their own."""
    made = []
    for record in records:
        strangers = [document for other in records if other is not record for document in other["documents"]]
        documents = [*record["documents"], *draw.sample(strangers, min(others, len(strangers)))]
        order = draw.sample(range(len(documents)), len(documents))
        place = {before: after for after, before in enumerate(order)}
        questions = [
            {**asked, "gold": sorted(place[number] for number in asked["gold"])} for asked in record["questions"]
        ]
        made.append({"documents": [documents[number] for number in order], "questions": questions})
    return made


def _planted(section: str, sentence: str, draw: random.Random) -> str:
    sentences = re.split(r"(?<=[.!?]) ", section)
    sentences.insert(draw.randint(0, len(sentences)), sentence)
    return " ".join(sentences)


def _blanks(story: Record, section: str, place: int, draw: random.Random) -> list[Example]:
    elsewhere = " ".join(other for number, other in enumerate(story.sections) if number != place).lower()
    found = []
    for sentence in _SENTENCE.findall(section):
        words = [word for word in _WORD.findall(sentence) if word.lower() not in elsewhere]
        if words:
            word = draw.choice(words)
            text = sentence.strip().replace(word, _BLANK)
            found.append({"question": f"Which word is left out: {text}", "answer": word, "gold": [place]})
    return found
