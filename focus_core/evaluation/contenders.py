"""Ways to answer a question about documents with one model and one budget of tokens: our methods, and their rivals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from focus_core.engine.answers import Answer
from focus_core.engine.engine import FocusEngine
from focus_core.errors import ConfigError
from focus_core.evaluation.passages import Passage, cut, fill, joined, share_read
from focus_core.evaluation.retrieval import BM25, Index, Ranker
from focus_core.evaluation.tasks.base import Question, Sheet, Span
from focus_core.evaluation.tasks.records import SEPARATOR
from focus_core.methods.base import ChunkScore
from focus_core.methods.plain import PlainMethod
from focus_core.methods.table import AUTO, METHODS

OTHER_NEEDS = "Contender other needs several texts in --data, each of them a document of its own (--arrange single)."
_SLACK = 16  # tokens that decoding and encoding a text again may add
_PLAIN = PlainMethod.name


@dataclass(frozen=True)
class Handed:
    """What a contender hands to the engine.

    Attributes:
        documents: `None` for none
        spans: where they stand in the sheet; nothing, if they are none of its documents
    """

    documents: list[str] | None
    method: str
    spans: tuple[Span, ...]

    def tokens_read(self, answer: Answer) -> int:
        """Of the documents, the tokens from which the answer was made: all, or those of the chunks that it names."""
        if not answer.chunk_scores:
            return answer.usage.document_tokens
        return sum(len(score.chunk.token_ids) for score in _read(answer))

    def gold_read(self, question: Question, answer: Answer) -> float | None:
        """Of the gold passages' characters, the share from which the answer was made; `None` where it is not known."""
        if not question.gold:
            return None
        if not answer.chunk_scores or not self.spans:
            return share_read(question.gold, self.spans)
        number_of = {text: number for number, text in enumerate(self.documents or ())}
        spans = []
        for score in _read(answer):
            for part in score.chunk.document_parts:
                if part.characters is None or part.document.text is None:  # the tokenizer does not tell
                    return None
                spans.append(Span(number_of[part.document.text], *part.characters))
        return share_read(question.gold, spans)


def _read(answer: Answer) -> list[ChunkScore]:
    """Of a method that scores chunks, those from which its answer was made."""
    return [score for score in answer.chunk_scores if score.read]


class Contender(Protocol):
    """A way to answer."""

    @property
    def name(self) -> str: ...

    def hand(self, sheet: Sheet, question: Question, prompt: str) -> Handed:
        """Of the sheet's documents, what the engine gets for this question.

        Args:
            prompt: the question with the task's instruction, as the engine is asked

        Raises:
            ContextOverflowError: the window does not hold this contender's documents
        """


@dataclass(frozen=True)
class Setting:
    """What contenders have in common.

    Attributes:
        budget: tokens of documents that rivals with a budget hand over; `None`: what the window leaves
        passage_tokens: longest passage of retrieval
        embedder: folder of a sentence encoder
        texts: those of the data
    """

    engine: FocusEngine
    budget: int | None = None
    passage_tokens: int = 256
    embedder: Path | None = None
    texts: Sequence[str] = ()

    def budget_for(self, question: Question, prompt: str) -> int:
        """Tokens of documents for this question.

        Raises:
            ConfigError: question and answer fill the window
        """
        if self.budget is not None:
            return self.budget
        engine, answer = self.engine, question.new_tokens
        needed = engine.count_question_tokens(prompt, chat_template=question.chat_template)
        # Positions for the document: those left beside one token of it, and that one.
        left = 1 + engine.outline([1], needed, answer, method=_PLAIN).limits.positions_left - answer - _SLACK
        if left < 1:
            raise ConfigError(
                f"Question and answer take up to {needed + answer} tokens, and the window has {engine.config.window}: "
                "it leaves none for documents."
            )
        return left


@dataclass(frozen=True)
class EngineMethod:
    """All documents, for a method of the engine or its choice among them."""

    name: str

    def hand(self, sheet: Sheet, question: Question, prompt: str) -> Handed:
        return Handed(list(sheet.documents), self.name, _everything(sheet))


@dataclass(frozen=True)
class Cut:
    """All documents as one text, of which the first and the last tokens stay, for the plain model.

    Attributes:
        first: share of the budget that the text's beginning gets
    """

    name: str
    setting: Setting
    first: float

    def hand(self, sheet: Sheet, question: Question, prompt: str) -> Handed:
        engine, text = self.setting.engine, SEPARATOR.join(sheet.documents)
        tokens, budget = engine.tokenize(text), self.setting.budget_for(question, prompt)
        if len(tokens) <= budget:
            return Handed([text], _PLAIN, _everything(sheet))
        head = round(budget * self.first)
        start: str = engine.tokenizer.decode(tokens[:head])
        end: str = engine.tokenizer.decode(tokens[len(tokens) - (budget - head) :])
        spans = [*_spans_of(sheet, 0, len(start)), *_spans_of(sheet, len(text) - len(end), len(text))]
        return Handed([start + end], _PLAIN, tuple(spans))


class Retrieval:
    """The passages that fit the question best and fill the budget, in document order, for the plain model."""

    def __init__(self, name: str, setting: Setting, ranker: Ranker) -> None:
        self.name = name
        self._setting, self._ranker = setting, ranker
        self._read: tuple[Sheet, list[Passage], Index] | None = None  # the last sheet; its questions follow each other

    def hand(self, sheet: Sheet, question: Question, prompt: str) -> Handed:
        passages, index = self._passages(sheet)
        scores = index.scores(question.text)
        ranked = [passages[number] for number in sorted(range(len(passages)), key=lambda number: -scores[number])]
        # With a budget of its own the window leaves positions for separators; otherwise they are part of the budget.
        each = self._setting.engine.count_tokens(SEPARATOR) if self._setting.budget is None else 0
        budget = self._setting.budget_for(question, prompt)
        chosen = fill(ranked, budget, each=each)
        if not chosen:
            raise ConfigError(
                f"No passage fits a budget of {budget} tokens: the shortest has "
                f"{min(passage.tokens for passage in passages)}. Choose a larger --budget or smaller --passage-tokens."
            )
        spans = joined(passage.span for passage in chosen)
        return Handed([sheet.text(span).strip() for span in spans], _PLAIN, spans)

    def _passages(self, sheet: Sheet) -> tuple[list[Passage], Index]:
        if self._read is None or self._read[0] is not sheet:
            passages = cut(sheet, self._setting.passage_tokens, self._setting.engine.count_tokens)
            self._read = (sheet, passages, self._ranker.index([passage.text for passage in passages]))
        return self._read[1:]


@dataclass(frozen=True)
class Gold:
    """The passages in which the answer stands, for the plain model: a ceiling of every choice among passages."""

    name: str = "gold"

    def hand(self, sheet: Sheet, question: Question, prompt: str) -> Handed:
        if not question.gold:
            raise ConfigError(f"Question {question.name} names no gold passage. Leave out the contender gold.")
        spans = joined(question.gold)
        return Handed([sheet.text(span).strip() for span in spans], _PLAIN, spans)


@dataclass(frozen=True)
class NoDocuments:
    """The question alone: what the model knows by itself, a floor."""

    name: str = "none"

    def hand(self, sheet: Sheet, question: Question, prompt: str) -> Handed:
        return Handed(None, _PLAIN, ())


@dataclass(frozen=True)
class AnotherText:
    """The next text of the data instead of the question's own, for the engine's own choice of a method: a control.

    What this scores comes of the model and of the form of its answers, and not of reading.
    """

    setting: Setting
    name: str = "other"

    def hand(self, sheet: Sheet, question: Question, prompt: str) -> Handed:
        texts = list(dict.fromkeys(self.setting.texts))
        if len(sheet.documents) != 1 or sheet.documents[0] not in texts or len(texts) == 1:
            raise ConfigError(OTHER_NEEDS)
        another = texts[(texts.index(sheet.documents[0]) + 1) % len(texts)]
        return Handed([another], AUTO, ())


def _minilm(setting: Setting) -> Contender:
    from focus_core.evaluation.embedding import Embedder

    return Retrieval("minilm", setting, Embedder(required_embedder(setting.embedder)))


# A new rival is one line here. Methods of the engine are contenders by their own names.
RIVALS: dict[str, Callable[[Setting], Contender]] = {
    "middle": lambda setting: Cut("middle", setting, first=0.5),  # as LongBench truncates (Bai et al., 2023)
    "end": lambda setting: Cut("end", setting, first=0.0),
    "bm25": lambda setting: Retrieval("bm25", setting, BM25()),
    "minilm": _minilm,
    "gold": lambda setting: Gold(),
    "none": lambda setting: NoDocuments(),
    "other": AnotherText,
}


def required_embedder(folder: Path | None) -> Path:
    """`folder`, if there is one.

    Raises:
        ConfigError: there is none
    """
    if folder is None:
        raise ConfigError("Contender minilm needs a sentence encoder: --embedder FOLDER, as of all-MiniLM-L6-v2.")
    return folder


def checked_contenders(names: Sequence[str]) -> list[str]:
    """`names`, if there are such contenders, each once.

    Raises:
        ConfigError: naming those there are
    """
    known = (AUTO, *METHODS, *RIVALS)
    for name in names:
        if name not in known:
            raise ConfigError(f"There is no contender {name!r}. Choose from: {', '.join(known)}.")
    if not names:
        raise ConfigError(f"contenders is empty. Choose from: {', '.join(known)}.")
    return list(dict.fromkeys(names))


def contenders_named(names: Sequence[str], setting: Setting) -> list[Contender]:
    """The contenders of these names.

    Raises:
        ConfigError: an unknown name, or one that lacks its package or its folder
    """
    return [RIVALS[name](setting) if name in RIVALS else EngineMethod(name) for name in checked_contenders(names)]


def _everything(sheet: Sheet) -> tuple[Span, ...]:
    return tuple(Span(number, 0, len(document)) for number, document in enumerate(sheet.documents))


def _spans_of(sheet: Sheet, start: int, stop: int) -> Iterable[Span]:
    """Where the characters `start` to `stop - 1` of all documents joined stand."""
    offset = 0
    for number, document in enumerate(sheet.documents):
        first, last = max(start - offset, 0), min(stop - offset, len(document))
        if first < last:
            yield Span(number, first, last)
        offset += len(document) + len(SEPARATOR)
