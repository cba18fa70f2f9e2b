"""Training examples from records: what is drawn of each, in the rows that the model reads.

A `question` goes through the model's chat template, as in use; a `prompt` is continued as it stands. Example number i
depends on the seed and on i alone, never on how many processes or threads there are.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from focus_core.config import ResolvedConfig
from focus_core.errors import ConfigError, ContextOverflowError, shown, warn
from focus_core.loading.gguf import gguf_path, load_gguf_tokenizer
from focus_core.loading.named import named_model
from focus_core.methods.focus import FocusModel
from focus_core.methods.limits import FocusLimits, Lengths
from focus_core.progress import Report
from focus_core.text.chunking import Chunk
from focus_core.text.documents import Document, TokenIds, TokenizedDocument
from focus_core.text.layout import Layout
from focus_core.text.template import render
from focus_core.text.tokenizer import TextTokenizer, load_tokenizer
from focus_core.training.config import TrainingConfig
from focus_core.training.examples import SupervisedQuestion, TrainingExample
from focus_core.training.records import Gold, QuestionAnswer, Record, read_records, record_of
from focus_core.training.start import boundaries_of

_TEXTS_REMEMBERED = 64  # tokenized texts kept, because one long text gives many samples
_TRIES = 16  # draws for each record that is to differ from those before
_SMALLEST_TEXT = 4  # tokens; fewer leave nothing to chunk and continue
_UNFIT_IN_A_ROW = 64  # rows of a stream; then something is wrong with all of them
_SHORT_TEXT = 32  # words; a text of fewer is looked at before the first step


class FileExamples:
    """Example number i of a run: callable with i.

    Args:
        config: from which sizes and objectives examples are drawn
        limits: the resolved settings of the model, for its window and BOS rule
        vocabulary: tokens that the model knows; `None` without a model

    Attributes:
        data_digest: digest of the records' content
        boundaries: where chunks end
    """

    def __init__(
        self,
        config: TrainingConfig,
        records: Sequence[Record],
        tokenizer: PreTrainedTokenizerBase,
        limits: ResolvedConfig,
        *,
        vocabulary: int | None = None,
    ) -> None:
        if config.layout != "raw" and not tokenizer.chat_template:
            raise ConfigError(f"layout={config.layout!r}: the model has no chat template. Set layout='raw'.")
        self._config, self._limits, self.boundaries = config, limits, limits.boundaries
        self._tokenizer, self._text = tokenizer, TextTokenizer(tokenizer, vocabulary=vocabulary)  # as the engine has it
        kept = [record for record in records if config.mixture.get(record.file, 1.0) > 0]
        self._by_objective = {
            name: [record for record in kept if name in record.objectives]
            for name in config.objectives or sorted({name for record in kept for name in record.objectives})
        }
        self._shares = {name: _shares(found, config.mixture) for name, found in self._by_objective.items()}
        for name, found in self._by_objective.items():
            if not found and config.objectives.get(name, 0) > 0:
                needed = "'documents'" if name == "answering" else "'text'"
                raise ConfigError(f"objectives: {name} is on, but no record of the data has {needed}.")
        self._check_window()
        contents = [replace(record, where="", file="") for record in records]  # files may be moved
        self.data_digest = sha256(repr(contents).encode("utf-8", "surrogatepass")).hexdigest()
        self._tokens = lru_cache(maxsize=_TEXTS_REMEMBERED)(self._text.tokenize)

    @classmethod
    def open(cls, config: TrainingConfig, focus: FocusModel, tokenizer_id: str) -> FileExamples:
        """Read all of `config.data` but what it holds out."""
        if not config.data:
            raise ConfigError("data is missing: a list of JSONL files, or hand examples over in Python.")
        records = [record for record in _read(config.data) if not record.is_held_out(config.held_out)]
        return cls._with_tokenizer(config, records, focus, tokenizer_id)

    @classmethod
    def held_out(cls, config: TrainingConfig, focus: FocusModel, tokenizer_id: str) -> FileExamples:
        """The questions that are not trained: those of `config.validation`, or a share of the data's records."""
        files = config.validation or config.data
        records = [record for record in _read(files) if config.validation or record.is_held_out(config.held_out)]
        if not any(record.questions for record in records):
            name = "validation" if config.validation else f"held_out={config.held_out:g}"
            raise ConfigError(
                f"{name}: of {', '.join(map(str, files))} no record with 'documents' and questions is held out."
            )
        alike = replace(config, mixture={}, objectives={"answering": 1.0}, seed=config.seed + 1)
        return cls._with_tokenizer(alike, records, focus, tokenizer_id)

    @classmethod
    def _with_tokenizer(
        cls, config: TrainingConfig, records: Sequence[Record], focus: FocusModel, tokenizer_id: str
    ) -> FileExamples:
        path, _ = named_model(tokenizer_id)
        gguf = gguf_path(path, {})
        tokenizer = load_gguf_tokenizer(gguf) if gguf else load_tokenizer(path)
        vocabulary = focus.model.get_input_embeddings().weight.shape[0]
        limits = replace(focus.config, boundaries=boundaries_of(config, focus))  # chunks are trained as they are used
        return cls(config, records, tokenizer, limits, vocabulary=vocabulary)

    @classmethod
    def stream(
        cls, config: TrainingConfig, rows: Iterable[Mapping[str, Any]], focus: FocusModel, tokenizer_id: str
    ) -> Iterator[TrainingExample]:
        """One example of each row of a dataset, in order.

        Rows whose objectives are off give none, and those that do not fit, with a warning for some of them.
        """
        made = cls._with_tokenizer(replace(config, objectives={}, mixture={}), [], focus, tokenizer_id)
        unnamed, passed_over, in_a_row = 0.0 if config.objectives else 1.0, 0, 0
        for number, values in enumerate(rows):
            record, draw = record_of(f"record {number}", values), random.Random(f"{config.seed}/{number}")
            weights = [config.objectives.get(name, unnamed) for name in record.objectives]
            if not any(weights):
                continue
            try:
                example = made.example_of(draw, record, draw.choices(record.objectives, weights)[0])
            except ConfigError as error:  # a file is checked before the first step; of a stream nobody knows the rows
                passed_over, in_a_row = passed_over + 1, in_a_row + 1
                if in_a_row == _UNFIT_IN_A_ROW:  # a stream may be endless, and none of its rows fit
                    raise
                if passed_over.bit_count() == 1:  # the first, second, fourth, eighth, …
                    warn(f"{error} The row is passed over, number {passed_over:,} so far.")
            else:
                in_a_row = 0
                yield example

    @property
    def _drawn_from(self) -> list[Record]:
        """The records of which examples may be drawn, each once."""
        drawn = [name for name in self._by_objective if self._config.objectives.get(name, 1.0) > 0]
        return list(dict.fromkeys(record for name in drawn for record in self._by_objective[name]))

    @property
    def asked(self) -> set[tuple[tuple[str, ...], str]]:
        """All questions that may be drawn, with their documents."""
        return {(record.documents, asked.text) for record in self._drawn_from for asked in record.questions}

    def check(self, report: Report) -> None:
        """Look at the records before the first step: do they fit, however their sizes are drawn?

        Tokenizes all documents and questions; long texts, which always give a sample, are passed over.

        Raises:
            ConfigError: names the record and the limit that it exceeds
        """
        records = self._drawn_from
        for done, record in enumerate(records, 1):
            if record.documents:
                self._check_answering(record)
            elif len(record.text.split()) < _SHORT_TEXT:
                self._span_tokens(record)
            report(done, len(records))

    def _check_answering(self, record: Record) -> None:
        documents = [self._document(text) for text in record.documents]
        if self._draws_documents(record):
            self._require_gold_fits(record)
            documents = sorted(documents, key=len)[-self._config.max_documents :]  # the most that may be drawn
        sizes = self._fitting_sizes(documents, record)
        for size in {min(sizes), max(sizes)}:  # the most chunks, and the longest ones
            layout = self._layout(size, max(self._config.dynamic_prompts))
            questions = [self._question(layout, asked, record.where) for asked in record.questions]
            self._example(record, documents, questions, layout)

    def _draws_documents(self, record: Record) -> bool:
        return record.marked and 0 < self._config.max_documents < len(record.documents)

    def _require_gold_fits(self, record: Record) -> None:
        most = max(len(question.gold_documents) for question in record.questions)
        if most > self._config.max_documents:
            raise ConfigError(
                f"{record.where}: a question has {most} gold documents, but max_documents="
                f"{self._config.max_documents}. Raise it."
            )

    def __call__(self, number: int) -> TrainingExample:
        draw = random.Random(f"{self._config.seed}/{number}")
        names = list(self._by_objective)
        weights = [self._config.objectives.get(name, 1.0) for name in names]
        objective = draw.choices(names, weights)[0]
        return self.example_of(draw, self._draw_record(draw, objective), objective)

    def example_of(self, draw: random.Random, record: Record, objective: str) -> TrainingExample:
        """An example of one record."""
        if objective == "answering":
            return self._answering(draw, record)
        return self._span(draw, record, objective)

    def _draw_record(self, draw: random.Random, objective: str) -> Record:
        records, shares = self._by_objective[objective], self._shares[objective]
        return draw.choices(records, cum_weights=shares)[0] if shares else draw.choice(records)

    def different(self, count: int) -> list[TrainingExample]:
        """The first examples of so many different records, or of all."""
        found = dict[int, TrainingExample]()
        for number in range(_TRIES * count):
            draw = random.Random(f"{self._config.seed}/{number}")
            record = self._draw_record(draw, "answering")
            if id(record) not in found:
                found[id(record)] = self._answering(draw, record)
            if len(found) == count:
                break
        return list(found.values())

    def chunks_of(self, text: str) -> list[TokenIds]:
        """A short text as chunks."""
        layout = self._layout(max(self._config.chunk_sizes), max(self._config.dynamic_prompts))
        return [chunk.row for chunk in layout.document_chunks(self._document(text))]

    def _document(self, text: str) -> TokenizedDocument:
        return self._text.document(Document(text), in_turn=self._config.layout != "raw")

    # --- the objectives -----------------------------------------------------------------------------------------------

    def _span(self, draw: random.Random, record: Record, objective: str) -> TrainingExample:
        """Continuation: the span follows the chunked text. Reconstruction: it is a copy of a part of it (paper §3).

        The span's last tokens are the targets, the tokens before them are the local context.
        """
        tokens = self._span_tokens(record)
        size = draw.choice(self._config.chunk_sizes)
        # No longer than the memory may be, so that the whole of a repeated span lies in it.
        length = min(draw.randint(*self._config.local_lengths), len(tokens) // 2, size * self._config.max_chunks)
        last = size * draw.randint(1, self._config.max_chunks) - draw.randrange(size)
        chunked = max(min(last, len(tokens) - length), length)
        start = draw.randint(0, len(tokens) - length - chunked)
        border = start + chunked
        span_start = border if objective == "continuation" else draw.randint(start, border - length)
        span = tokens[span_start : span_start + length]
        before = max(1, length - self._config.targets_per_span)
        layout = self._layout(size, draw.choice(self._config.dynamic_prompts))
        question = SupervisedQuestion.of(layout, layout.prompt(span[:before]), span[before:])
        chunked_part = layout.document_chunks(TokenizedDocument.of_tokens(tokens[start:border]))
        return TrainingExample([chunk.row for chunk in chunked_part], [question], objective)

    def _span_tokens(self, record: Record) -> TokenIds:
        tokens = self._tokens(record.text)
        if len(tokens) < _SMALLEST_TEXT:
            raise ConfigError(f"{record.where}: field 'text' has {len(tokens)} tokens, too few to learn from.")
        return tokens

    def _answering(self, draw: random.Random, record: Record) -> TrainingExample:
        asked, numbers = self._drawn(draw, record)
        documents = [self._document(record.documents[number]) for number in numbers]
        size = draw.choice(self._fitting_sizes(documents, record))
        layout = self._layout(size, draw.choice(self._config.dynamic_prompts))
        questions = [self._question(layout, one, record.where) for one in asked]
        drawn = [self._with_drawn_targets(draw, one) for one in questions]
        gold = [[replace(one, document=numbers.index(one.document)) for one in question.gold] for question in asked]
        return self._example(record, documents, drawn, layout, gold)

    def _drawn(self, draw: random.Random, record: Record) -> tuple[Sequence[QuestionAnswer], Sequence[int]]:
        """Questions, and the numbers of the documents they are asked of: all gold ones, and some of the others."""
        most = self._config.questions_per_example or len(record.questions)
        if not self._draws_documents(record):
            if most >= len(record.questions):
                return record.questions, range(len(record.documents))
            return draw.sample(record.questions, most), range(len(record.documents))
        documents = draw.randint(1, self._config.max_documents)
        asked, gold = list[QuestionAnswer](), set[int]()
        for question in draw.sample(record.questions, len(record.questions)):
            together = gold.union(question.gold_documents)
            if len(asked) < most and (not asked or len(together) <= documents):
                asked.append(question)
                gold = together
        others = [number for number in range(len(record.documents)) if number not in gold]
        return asked, sorted([*gold, *draw.sample(others, min(len(others), max(documents - len(gold), 0)))])

    def _with_drawn_targets(self, draw: random.Random, question: SupervisedQuestion) -> SupervisedQuestion:
        most, tokens = self._config.targets_per_answer, len(question.answer)
        if not 0 < most < tokens:
            return question
        return replace(question, targets=(0, *sorted(draw.sample(range(1, tokens), most - 1))))

    def _example(
        self,
        record: Record,
        documents: Sequence[TokenizedDocument],
        questions: Sequence[SupervisedQuestion],
        layout: Layout,
        gold: Sequence[Sequence[Gold]] = (),
    ) -> TrainingExample:
        """An example; the chunks in which a question's answer stands are its teachers."""
        cut = layout.chunks_of(documents)
        chunks = [chunk.row for chunk in cut]
        for question in questions:
            self._check_room(record, chunks, question)
        return TrainingExample(
            chunks,
            [
                replace(question, teachers=_chunks_with(of_one, cut))
                for question, of_one in zip(questions, gold or [()] * len(questions), strict=True)
            ],
        )

    def _check_room(self, record: Record, chunks: Sequence[TokenIds], question: SupervisedQuestion) -> None:
        prompt, local = len(question.dynamic_prompt), len(question.local_context)
        lengths = Lengths.of([len(chunk) for chunk in chunks], prompt, local, whole=0)
        try:
            FocusLimits(self._limits, lengths).check(len(question.answer))
        except ContextOverflowError as error:
            raise ConfigError(f"{record.where}: {error}") from error
        row = max(map(len, chunks)) + len(question.plain_prompt) + len(question.answer)
        if self._config.distillation and row > self._limits.window:
            raise ConfigError(
                f"{record.where}: the teacher would read {row} tokens, a chunk with the whole question and its answer, "
                f"and the model's usable window has {self._limits.window}. Lower chunk_sizes, or set distillation=0."
            )

    def _question(self, layout: Layout, asked: QuestionAnswer, where: str) -> SupervisedQuestion:
        """Prompt and answer as in use, with the token that ends a turn."""
        tokens, end = list(self._text.parse(self._answer(asked, where))), self._tokenizer.eos_token_id
        if not tokens:
            raise ConfigError(
                f"{where}: field 'answer' is {shown(asked.answer)}, which the tokenizer makes no token of."
            )
        if end in tokens:
            tokens = tokens[: tokens.index(end) + 1]
        elif end is not None:
            tokens.append(end)
        messages, turn = [{"role": "user", "content": asked.text}], layout.in_turn and self._uses_template(asked)
        context = self._text.prompt(messages, chat_template=asked.templated, turn=turn)
        return SupervisedQuestion.of(layout, context, tokens)

    def _uses_template(self, asked: QuestionAnswer) -> bool:
        return asked.templated and bool(self._tokenizer.chat_template)

    def _answer(self, asked: QuestionAnswer, where: str) -> str:
        """The answer as the chat template goes on from the question."""
        if not self._uses_template(asked):
            return asked.answer
        turn = [{"role": "user", "content": asked.text}]
        try:
            prompt = render(self._tokenizer, turn, add_generation_prompt=True)
            turn.append({"role": "assistant", "content": asked.answer})
            whole = render(self._tokenizer, turn, add_generation_prompt=False)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        return whole.removeprefix(prompt) if whole.startswith(prompt) else asked.answer

    # --- sizes --------------------------------------------------------------------------------------------------------

    def _layout(self, size: int, prompt: int) -> Layout:
        bos_rule = self._config.bos_per_chunk
        limits = replace(self._limits, chunk_size=size, dynamic_prompt=min(prompt, size), bos_per_chunk=bos_rule)
        if self._config.layout == "raw":
            return Layout(limits, self._text.bos)
        return Layout(limits, self._text.bos, self._text.separator, self._text.turn_opening)

    def _fitting_sizes(self, documents: Sequence[TokenizedDocument], record: Record) -> list[int]:
        """Chunk sizes that cut the documents into at most `max_chunks`."""
        counts = {size: self._chunk_count(documents, size) for size in self._config.chunk_sizes}
        fitting = [size for size, count in counts.items() if count <= self._config.max_chunks]
        if not fitting:
            size = max(counts)
            raise ConfigError(
                f"{record.where}: field 'documents' makes {counts[size]} chunks of {size} tokens, but "
                f"max_chunks={self._config.max_chunks}. Raise max_chunks or chunk_sizes, or shorten the documents."
            )
        return fitting

    def _chunk_count(self, documents: Sequence[TokenizedDocument], size: int) -> int:
        """As they are cut in use: an adapter may say that chunks end at paragraphs, and then there are more of them."""
        if self._limits.boundaries in (None, "tokens"):
            return sum(-(-len(document) // size) for document in documents)
        return len(self._layout(size, size).chunks_of(documents))

    def _check_window(self) -> None:
        config, window, size = self._config, self._limits.window, max(self._config.chunk_sizes)
        prompt = min(max(config.dynamic_prompts), size)
        opening = max(len(self._layout(size, prompt).chunk_opening), 1)
        chunks, local = [opening + size] * config.max_chunks, opening + config.local_lengths[1]
        limits = FocusLimits(self._limits, Lengths.of(chunks, opening + prompt, local, whole=0))
        row = limits.chunk_row + config.targets_per_span
        if row > window:
            raise ConfigError(
                f"chunk_sizes={list(config.chunk_sizes)} with dynamic_prompts={list(config.dynamic_prompts)} need up "
                f"to {row} positions, but the model's usable window has {window}. Lower them."
            )
        if limits.local_row > window:
            raise ConfigError(
                f"max_chunks={config.max_chunks} and local_lengths={list(config.local_lengths)} need up to "
                f"{limits.local_row} positions, but the model's usable window has {window}. Lower one of the two."
            )


def _read(files: Sequence[Path]) -> list[Record]:
    return [record for path in files for record in read_records(path)]


def _chunks_with(golds: Sequence[Gold], chunks: Sequence[Chunk]) -> tuple[int, ...]:
    """Numbers of the chunks in which an answer stands."""
    return tuple(
        number
        for number, chunk in enumerate(chunks)
        if any(gold.is_in(part) for gold in golds for part in chunk.document_parts)
    )


def _shares(records: Sequence[Record], mixture: Mapping[str, float]) -> list[float]:
    """For each record the sum of the shares up to it; nothing where all count alike."""
    counts = Counter(record.file for record in records)
    return list(accumulate(mixture[record.file] / counts[record.file] for record in records)) if mixture else []
