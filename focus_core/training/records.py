"""Records of training data, as JSONL files and datasets have them: a text, or documents with questions and answers.

{"text": "…"}                                                          continuation and reconstruction
{"documents": ["…", "…"], "question": "…", "answer": "…"}              answering
{"documents": ["…"], "questions": [{"question": "…", "answer": "…"}, {"prompt": "…", "answer": "…"}]}
{"documents": ["…", "…"], "question": "…", "answer": "…", "gold": [1]}  the answer is in the second document
{…, "gold": [{"document": 1, "start": 812, "stop": 840}]}              … in these characters of it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from focus_core.errors import ConfigError, shown
from focus_core.parsing import parse_json
from focus_core.text.chunking import Chunk


@dataclass(frozen=True, repr=False)
class Gold:
    """Where an answer stands: in a document, and if that is known in which of its characters.

    Attributes:
        document: its number, from 0
        characters: the first, and the one after the last
    """

    document: int
    characters: tuple[int, int] | None = None

    def __repr__(self) -> str:
        """As it is written; runs are known by that of their records, also those from before there were characters."""
        return str(self.document) if self.characters is None else f"{self.document}:{self.characters}"

    def is_in(self, chunk: Chunk) -> bool:
        """Whether some of it is in a chunk of one document; all of its document's chunks count if nobody knows."""
        if chunk.document_index != self.document:
            return False
        if self.characters is None or chunk.characters is None:
            return True
        (first, last), (start, stop) = self.characters, chunk.characters
        return first < stop and start < last


@dataclass(frozen=True)
class QuestionAnswer:
    """A question as written: through the chat template, or a prompt that is continued as it stands.

    Attributes:
        gold: where the answer stands; nothing if that is not marked
    """

    text: str
    answer: str
    templated: bool
    gold: tuple[Gold, ...] = ()

    @property
    def gold_documents(self) -> tuple[int, ...]:
        """Numbers of the documents in which the answer stands, each once."""
        return tuple(dict.fromkeys(gold.document for gold in self.gold))


@dataclass(frozen=True)
class Record:
    """One line: either `text`, or `documents` with `questions`."""

    where: str  # file and line, for messages
    file: str = ""  # its name
    text: str = ""
    documents: tuple[str, ...] = ()
    questions: tuple[QuestionAnswer, ...] = ()

    @property
    def marked(self) -> bool:
        """Whether every question marks its gold documents."""
        return bool(self.questions) and all(question.gold for question in self.questions)

    def is_held_out(self, share: float) -> bool:
        """Whether it is among this share of the records with questions; all about the same documents are, or none."""
        if not (share and self.questions):
            return False
        digest = sha256(repr(self.documents).encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8]) < share * 2**64

    @property
    def objectives(self) -> tuple[str, ...]:
        return ("answering",) if self.documents else ("continuation", "reconstruction")


def read_records(path: str | Path) -> list[Record]:
    """All lines of a JSONL file; empty lines are allowed.

    Raises:
        ConfigError: names file, line and field
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # other line ends may stand within a text
    except FileNotFoundError as error:
        raise ConfigError(f"data: there is no file {path}.") from error
    except OSError as error:
        raise ConfigError(f"data: {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}.") from error
    except ValueError as error:
        raise ConfigError(f"data: {str(path)!r} cannot be a file: {error}.") from error
    records = [
        replace(_record(f"{path}, line {number}", line), file=path.name)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not records:
        raise ConfigError(f"{path} has no records.")
    return records


def _record(where: str, line: str) -> Record:
    try:
        values = parse_json(line)
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON: {error}.") from error
    return record_of(where, values)


def record_of(where: str, values: Any) -> Record:
    """A record from plain values, as a line of a file or a row of a dataset has them.

    Args:
        where: for messages

    Raises:
        ConfigError: names the record and the field
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: must be a JSON object, not {type(values).__name__}.")
    values = _there(values)
    _refuse_others(where, values)
    if "text" in values:
        return Record(where, text=_text(where, values, "text"))
    if "documents" not in values:
        raise ConfigError(f"{where}: needs the field 'text' or the field 'documents'; it has {shown(sorted(values))}.")
    documents = values["documents"]
    if not isinstance(documents, list | tuple) or not documents:
        raise ConfigError(f"{where}: field 'documents' must be a list of at least one text.")
    texts = [_text(where, {f"documents[{i}]": text}, f"documents[{i}]") for i, text in enumerate(documents)]
    asked = values.get("questions", [values])
    if not isinstance(asked, list | tuple) or not asked:
        raise ConfigError(f"{where}: field 'questions' must be a list of at least one question.")
    return Record(where, documents=tuple(texts), questions=tuple(_asked(where, one, texts) for one in asked))


def _there(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without fields that are null, as rows of a dataset have them where other rows have a value."""
    return {name: value for name, value in values.items() if value is not None}


def _refuse_others(where: str, values: Mapping[str, Any]) -> None:
    """Refuse one of our fields where it would be ignored; other fields (a source, a number) are allowed."""
    others = {"documents", "questions", "question", "prompt", "answer"} if "text" in values else set()
    if "questions" in values:
        others |= {"question", "prompt", "answer"}
    if "prompt" in values:
        others |= {"question"}
    found = sorted(values.keys() & others)
    if found:
        beside = next(name for name in ("text", "questions", "prompt") if name in values)
        raise ConfigError(f"{where}: has the field {beside!r} and {found[0]!r} beside it. Make two records of it.")


def _asked(where: str, values: Any, documents: Sequence[str]) -> QuestionAnswer:
    values = _there(values) if isinstance(values, Mapping) else {}
    if ("question" in values) == ("prompt" in values):
        raise ConfigError(f"{where}: a question needs either the field 'question' or the field 'prompt', and 'answer'.")
    name = "question" if "question" in values else "prompt"
    gold = _golds(where, values.get("gold", []), documents)
    return QuestionAnswer(_text(where, values, name), _text(where, values, "answer"), name == "question", gold)


def _golds(where: str, marks: Any, documents: Sequence[str]) -> tuple[Gold, ...]:
    found = [_gold(mark, documents) for mark in marks] if isinstance(marks, list | tuple) else [None]
    golds = tuple(dict.fromkeys(gold for gold in found if gold is not None))
    if None in found:
        raise ConfigError(
            f"{where}: field 'gold' is {shown(marks)}: must be a list of numbers of documents, 0 to "
            f"{len(documents) - 1}, or of characters in them, as {{'document': 0, 'start': 0, 'stop': 9}}."
        )
    return golds


def _gold(mark: Any, documents: Sequence[str]) -> Gold | None:
    """What a mark says; `None` if that is nowhere in the documents."""
    values = mark if isinstance(mark, Mapping) else {"document": mark}
    number, start, stop = (values.get(name) for name in ("document", "start", "stop"))
    if type(number) is not int or not 0 <= number < len(documents):
        return None
    if start is None and stop is None:
        return Gold(number)
    if type(start) is not int or type(stop) is not int or not 0 <= start < stop <= len(documents[number]):
        return None
    return Gold(number, (start, stop))


def _text(where: str, values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str) or not value.strip():
        found = "is missing" if value is None else "is empty" if isinstance(value, str) else f"is {shown(value)}"
        raise ConfigError(f"{where}: field {name!r} must be a text that is not empty; it {found}.")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ConfigError(f"{where}: field {name!r} holds half of a character: it was decoded wrongly.")
    return value
