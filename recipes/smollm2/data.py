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
_WORD = re.compile(r"\b[A-Z][a-z]{3,}\b|\b[a-z]{6,}\b")
_SENTENCE = re.compile(r"[^.!?\n]{40,200}[.!?]")


def write(path: Path, records: Iterable[Example]) -> int:
    """As JSON lines; returns how many."""
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")
    return len(lines)


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
