"""FocusEngine: text in, text out. Documents, questions, chat templates, stop strings, usage.

`stream_batch` is the core; everything else sits on it. What a token costs is decided in `model.py`, not here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any, Literal, cast, overload

import torch
from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from focus_core.loading.models import LoadedModel
from focus_core.text.chunking import TextLayout, TokenIds
from focus_core.config import FocusConfig, ResolvedConfig, SamplingConfig
from focus_core.methods.decoding import Decoding, FocusDecoding, PlainDecoding
from focus_core.device import tokens_per_pass
from focus_core.text.files import PreparedDocuments, require_sequence
from focus_core.errors import ConfigError, DocumentError
from focus_core.methods.focus import FocusModel
from focus_core.methods.limits import Plan, check_room, make_plan
from focus_core.progress import Report, progress_bar, sign_of_life
from focus_core.engine.prefill import ChunkReader
from focus_core.engine.shared import SharedModel, shared_model
from focus_core.engine.sampling import Sampler, choose
from focus_core.text.stream import TextStream
from focus_core.text.tokenizer import bos_of

Message = Mapping[str, str]
Question = str | Sequence[Message]
Documents = str | PreparedDocuments | Sequence[str | PreparedDocuments]
FinishReason = Literal["stop", "length"]

_REMEMBERED_TOKENS = 4_000_000  # of texts whose tokens are kept, so that asking again does not tokenize again


@dataclass(frozen=True)
class Usage:
    """What an answer took, in tokens.

    Attributes:
        input_tokens: question with its template, and documents
        output_tokens: generated tokens, the end-of-sequence token included
        document_tokens: the part of the input that came as documents, or was chunked from one long prompt
        cache_read: the part of `document_tokens` that had been read before
        cache_creation: the part of `document_tokens` that was read for this answer; in a batch of questions about
            the same chunks they are read for the first
        chunks: number of chunks; 0 where the plain model read everything
    """

    input_tokens: int
    output_tokens: int = 0
    document_tokens: int = 0
    cache_read: int = 0
    cache_creation: int = 0
    chunks: int = 0


@dataclass(frozen=True)
class Piece:
    """A piece of an answer. The last one has `finish_reason` and `usage`, and may have no text."""

    text: str
    finish_reason: FinishReason | None = None
    usage: Usage | None = None


@dataclass(frozen=True)
class Answer:
    """A whole answer.

    Attributes:
        finish_reason: `"stop"` (end of sequence, or a stop string) or `"length"` (`max_new_tokens` reached)
    """

    text: str
    finish_reason: FinishReason
    usage: Usage


@dataclass
class _Request:
    """One question on its way: how it is read, how its tokens are chosen and shown."""

    plan: Plan
    sampler: Sampler
    stop_tokens: frozenset[int]  # end the answer, and are no text
    text: TextStream
    usage: Usage
    finished: bool = False


class FocusEngine:
    """Asks a local model about documents of any length.

    Safe under threads: answers that are made at the same time take turns, token by token.
    """

    def __init__(self, shared: SharedModel, *, config: FocusConfig | None = None, progress: bool = True) -> None:
        """Use `from_pretrained` or `from_model`.

        Args:
            progress: show a bar while documents are read, on a terminal and if it takes more than two seconds
        """
        loaded = shared.loaded
        self.focus = FocusModel(loaded.model, shared.projections, config=config, trained_with=loaded.trained_with)
        self.tokenizer = shared.tokenizer
        self.shared = shared
        bos = bos_of(self.tokenizer)  # a model's config may name one that its tokenizer does not know (Qwen2)
        self._layout = TextLayout(self.focus.config, bos, separator=tuple(self.tokenize("\n\n")))
        self._reader = ChunkReader(self.focus, shared, bos)
        self._eos = _end_tokens(loaded.model, self.tokenizer)
        self._progress = progress
        self._texts: OrderedDict[bytes, TokenIds] = OrderedDict()
        self._remembered_tokens = 0
        self._texts_lock = Lock()

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        adapter: str | Path | None = None,
        device: str = "auto",
        dtype: str = "auto",
        config: FocusConfig | None = None,
        progress: bool = True,
        store_bytes: int | None = None,
        **model_arguments: Any,
    ) -> FocusEngine:
        """A model folder or hub id; without one, the embedded model. Weights are loaded once per adapter.

        Args:
            adapter: folder or hub id of candidate projections. Without them a model other than the embedded one
                uses copies of its own maps, which find little: train an adapter for it
            device: `"auto"` takes the GPU where there is one
            dtype: `"auto"` is bfloat16 on a GPU, and float32 on a CPU and for the embedded model
            config: chunking; what is `None` comes from the adapter, or suits the model
            store_bytes: how much the store of read chunks may hold, for all engines of this model; by default half of
                the memory that is free when the model is loaded
            model_arguments: passed on to transformers (`revision`, `attn_implementation`, …)

        Raises:
            UnsupportedModelError: no such model, or one that cannot work with candidate tokens
            AdapterError: the adapter is missing, damaged, or belongs to another model
            ConfigError: an unknown device or dtype, or sizes that cannot work
        """
        misplaced = next((field.name for field in fields(FocusConfig) if field.name in model_arguments), None)
        if misplaced is not None:
            raise ConfigError(f"{misplaced} is a setting of the method: give config=FocusConfig({misplaced}=…).")
        shared = shared_model(model, adapter=adapter, device=device, dtype=dtype, **model_arguments)
        if store_bytes is not None:
            shared.store.limit(store_bytes)
        return cls(shared, config=config, progress=progress)

    @classmethod
    def from_model(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        config: FocusConfig | None = None,
        progress: bool = True,
        store_bytes: int | None = None,
    ) -> FocusEngine:
        """Around a model that is loaded already, with untrained candidate projections.

        Args:
            store_bytes: how much the store of read chunks may hold; by default half of the free memory
        """
        loaded = LoadedModel(model, model.config.name_or_path or type(model).__name__)
        return cls(SharedModel.of(loaded, tokenizer, store_bytes), config=config, progress=progress)

    @property
    def config(self) -> ResolvedConfig:
        """The settings in force."""
        return self.focus.config

    # --- asking -------------------------------------------------------------------------------------------------------

    @overload
    def generate(self, question: str, documents: Documents | None = None, **options: Any) -> Answer: ...
    @overload
    def generate(self, question: list[str], documents: Documents | None = None, **options: Any) -> list[Answer]: ...
    @overload
    def generate(self, question: Sequence[Message], documents: Documents | None = None, **options: Any) -> Answer: ...
    def generate(
        self, question: Question | Sequence[Question], documents: Documents | None = None, **options: Any
    ) -> Answer | list[Answer]:
        """A whole answer, with the options of `stream`.

        A list of strings, or of lists of messages, is a batch of questions about the same documents: one pass per
        token for all of them, and a list of answers.
        """
        batch = _is_batch(question)
        questions = cast(Sequence[Question], question if batch else [question])
        texts = [""] * len(questions)
        last: list[Piece] = [Piece("")] * len(questions)
        for index, piece in self.stream_batch(questions, documents, **options):
            texts[index] += piece.text
            last[index] = piece
        answers = [_answer(text, piece) for text, piece in zip(texts, last, strict=True)]
        return answers if batch else answers[0]

    def stream(self, question: Question, documents: Documents | None = None, **options: Any) -> Iterator[Piece]:
        """Pieces of the answer as soon as they are certain. Closing the iterator stops the work.

        Reading comes before the first piece: what stops it is an exception, Ctrl-C or one that `report` raises.
        Takes the options of `stream_batch`, and raises what it raises.
        """
        for _, piece in self.stream_batch([question], documents, **options):
            yield piece

    def stream_batch(
        self,
        questions: Sequence[Question],
        documents: Documents | None = None,
        *,
        system: str | None = None,
        chat_template: bool = True,
        max_new_tokens: int | None = None,
        stop: Sequence[str] | str | None = (),
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        report: Report | None = None,
    ) -> Iterator[tuple[int, Piece]]:
        """Pieces of several answers as they become certain, each with the index of its question.

        Args:
            questions: text, or chat messages (`{"role": …, "content": …}`). Without `documents` a question may be
                longer than the window: all but its last `local_window` tokens is then read in chunks
            documents: texts and prepared documents, in the order in which they are to be read
            system: a system prompt, put in front of the question
            chat_template: False hands the question to the model as it stands, to be continued; so does a tokenizer
                without a template
            max_new_tokens: by default 256, or what the window leaves
            stop: strings that end the answer and are never part of it. Behind a chat template, white space before the
                answer's first word is not part of it either, nor looked for in
            temperature: 0 is greedy; the other sampling options are those of transformers
            seed: the same seed gives the same answer; one without a seed is drawn anew
            report: called with the number of chunks read so far and in all

        Raises:
            ContextOverflowError: it does not fit the window; nothing is ever cut off, and no work has been done
            DocumentError: a document without text
            ConfigError: an option with an impossible value
            OutOfMemoryError: the documents' keys and values do not fit the memory
        """
        sampling = SamplingConfig(temperature, top_p, top_k, min_p, repetition_penalty, seed)
        stops = _checked_stop(stop)
        stop_tokens = self._eos | {token for text, token in self.tokenizer.get_added_vocab().items() if text in stops}
        if max_new_tokens is not None and (type(max_new_tokens) is not int or max_new_tokens < 1):
            raise ConfigError(f"max_new_tokens={max_new_tokens!r}: must be a whole number, and at least 1.")
        texts = () if documents is None else self._texts_of(documents)
        chunks = self._layout.chunks_of(texts) if texts else None  # cut once for all questions
        templated = chat_template and bool(self.tokenizer.chat_template)
        requests = []
        for question in questions:
            local = self._local_context(question, system, chat_template)
            plan = make_plan(self._layout, local, texts, max_new_tokens, chunks=chunks)
            requests.append(
                _Request(
                    plan=plan,
                    sampler=Sampler(sampling, torch.tensor(plan.local if plan.chunks else local)),
                    stop_tokens=stop_tokens,
                    text=TextStream(
                        self.tokenizer, stops, strip_start=templated, behind=None if templated else local[-1]
                    ),
                    usage=Usage(sum(map(len, texts)) + len(local), document_tokens=sum(map(len, texts))),
                )
            )
        for members in _with_same_chunks(requests, tokens_per_pass(self.focus.model), self._reader.room_behind):
            yield from self._answers({index: requests[index] for index in members}, report)

    # --- reading ------------------------------------------------------------------------------------------------------

    def prepare(self, documents: Documents, *, report: Report | None = None) -> PreparedDocuments:
        """Read documents now, so that any question about any of them starts at once later.

        Where they fit the window with a question, the plain model reads both then, and nothing is gained.

        Args:
            report: called with the number of chunks read so far and in all

        Raises:
            DocumentError: a document without text
            ContextOverflowError: a document of which nothing could be asked, because its memory fills the window
            OutOfMemoryError: the keys and values do not fit the memory
        """
        prepared = PreparedDocuments(tuple(self._texts_of(documents)), self.shared.key)
        chunks: list[TokenIds] = []
        for text in prepared.texts:
            chunks_of_text = self._layout.document_chunks(text)
            lengths = [len(chunk) for chunk in chunks_of_text]
            check_room(self.config, chunk_lengths=lengths, prompt=1, local=1, new_tokens=1)
            chunks += chunks_of_text
        with progress_bar("reading chunks", visible=self._progress, report=report) as progress:
            self._reader.read(chunks, progress)
        return prepared

    def count_tokens(self, text: str) -> int:
        """Tokens of `text`, without special tokens."""
        return len(self.tokenize(text))

    def tokenize(self, text: str) -> list[int]:
        """The model's tokens of `text`, without special tokens."""
        _as_bytes(text)  # refuses what a tokenizer would stumble over without saying where
        tokens: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return tokens

    def count_question_tokens(
        self, question: Question, *, system: str | None = None, chat_template: bool = True
    ) -> int:
        """Tokens of a question with its template, as `Usage.input_tokens` counts them."""
        return len(self._local_context(question, system, chat_template))

    # --- below the fold -----------------------------------------------------------------------------------------------

    def _local_context(self, question: Question, system: str | None, chat_template: bool) -> TokenIds:
        """The templated question as tokens; a question without a template is taken as it stands."""
        messages = _messages(question)
        if system is not None:
            messages = [{"role": "system", "content": system}, *messages]
        if chat_template and self.tokenizer.chat_template:
            try:
                rendered = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            except TemplateError as error:
                raise ConfigError(f"The model's chat template refuses these messages: {error}") from error
        else:
            rendered = "\n\n".join(message["content"] for message in messages)
        return self._layout.with_bos(self.tokenize(rendered))

    def _texts_of(self, documents: Documents) -> list[TokenIds]:
        require_sequence(documents)
        alone = isinstance(documents, str | PreparedDocuments) or not isinstance(documents, Iterable)
        listed: list[Any] = [documents] if alone else [*cast(Iterable[Any], documents)]
        if not listed:
            raise DocumentError("documents is an empty list. Hand over at least one document, or leave it out.")
        texts: list[TokenIds] = []
        with sign_of_life("tokenizing", visible=self._progress):
            for number, document in enumerate(listed, 1):
                if isinstance(document, PreparedDocuments):
                    texts += self._tokens_of(document)
                elif isinstance(document, str) and document.strip():
                    texts.append(self._remembered(document))
                else:
                    kind = "empty" if isinstance(document, str) else f"a {type(document).__name__}, not a string"
                    raise DocumentError(f"Document {number} of {len(listed)} is {kind}. Leave it out or give its text.")
        return texts

    def _tokens_of(self, prepared: PreparedDocuments) -> Sequence[TokenIds]:
        if prepared.model != self.shared.key:
            raise DocumentError(
                f"These documents were prepared with {prepared.model!r}, but this engine runs "
                f"{self.shared.key!r}. Prepare them again with this engine."
            )
        return prepared.texts

    def _remembered(self, text: str) -> TokenIds:
        digest = sha256(_as_bytes(text)).digest()
        with self._texts_lock:
            known = self._texts.get(digest)
            if known is not None:
                self._texts.move_to_end(digest)
                return known
        numbers: dict[int, int] = {}  # the same object for the same token: a quarter of the memory
        tokens = [numbers.setdefault(token, token) for token in self.tokenize(text)]
        with self._texts_lock:
            self._remembered_tokens += len(tokens) - len(self._texts.get(digest, ()))
            self._texts[digest] = tokens
            while self._remembered_tokens > _REMEMBERED_TOKENS:
                self._remembered_tokens -= len(self._texts.popitem(last=False)[1])
        return tokens

    def _answers(self, requests: dict[int, _Request], report: Report | None) -> Iterator[tuple[int, Piece]]:
        """Pieces of the answers to questions about the same chunks; nothing of them is held behind the last."""
        with progress_bar("reading chunks", visible=self._progress, report=report) as progress:
            decoding = self._decoding([*requests.values()], progress)
        yield from self._run(decoding, requests)

    def _decoding(self, requests: Sequence[_Request], report: Report) -> Decoding:
        """Reads what has to be read, and notes in every request's usage what that was."""
        plans = [request.plan for request in requests]
        if not plans[0].chunks:
            for request in requests:
                request.usage = replace(request.usage, cache_creation=request.usage.document_tokens)
            return PlainDecoding(self.focus, [plan.local for plan in plans])
        behind = len(plans) * max(len(plan.prompt) + plan.new_tokens for plan in plans)
        reading = self._reader.read(plans[0].chunks, report, behind=behind)
        for number, request in enumerate(requests):
            read = reading.tokens_read if number == 0 else 0  # for all of them, once
            request.usage = replace(
                request.usage,
                document_tokens=reading.tokens,
                cache_read=reading.tokens - read,
                cache_creation=read,
                chunks=len(plans[0].chunks),
            )
        return FocusDecoding(self.focus, reading.cache, [p.local for p in plans], [p.prompt for p in plans])

    def _run(self, decoding: Decoding, requests: dict[int, _Request]) -> Iterator[tuple[int, Piece]]:
        """One token after the other for all questions that have not come to their end."""
        active = list(requests)
        with self.shared.one_pass():
            logits = decoding.start()
        while True:
            tokens = choose([requests[index].sampler for index in active], logits)
            for index, token in zip(active, tokens, strict=True):
                piece = self._show(requests[index], token)
                if piece.text or piece.finish_reason:
                    yield index, piece
            ended = [requests[index].finished for index in active]
            if all(ended):
                return
            if any(ended):
                keep = [position for position, end in enumerate(ended) if not end]
                decoding.select_questions(torch.tensor(keep))
                active, tokens = [active[k] for k in keep], [tokens[k] for k in keep]
            with self.shared.one_pass():
                logits = decoding.step(torch.tensor(tokens))

    def _show(self, request: _Request, token: int) -> Piece:
        """The text that a token makes certain, and the end of the answer if it is one."""
        request.usage = replace(request.usage, output_tokens=request.usage.output_tokens + 1)
        ended = token in request.stop_tokens
        text = "" if ended else request.text.push(token)
        reason: FinishReason | None = None
        if ended or request.text.stopped:
            reason = "stop"
        elif request.usage.output_tokens >= request.plan.new_tokens:
            reason = "length"
        if reason is None:
            return Piece(text)
        request.finished = True
        return Piece(text + request.text.finish(), reason, request.usage)


def _with_same_chunks(
    requests: Sequence[_Request], most_in_pass: int, room_behind: Callable[[list[TokenIds]], int]
) -> list[list[int]]:
    """Indices of the requests, those together that can be answered in the same passes.

    Args:
        most_in_pass: how many tokens of local contexts a pass may have
        room_behind: for how many tokens of questions and answers behind given chunks there is memory
    """
    groups: list[list[int]] = []
    rooms: dict[int, int] = {}  # of each group, by its first request

    def fits(group: list[int], request: _Request) -> bool:
        plans = [*(requests[index].plan for index in group), request.plan]
        in_pass = len(plans) * max(len(plan.local) for plan in plans)
        chunks = plans[0].chunks
        if in_pass > most_in_pass or chunks != request.plan.chunks:
            return False
        if group[0] not in rooms:
            rooms[group[0]] = room_behind(chunks)
        return len(plans) * len(chunks) * max(len(plan.prompt) + plan.new_tokens for plan in plans) <= rooms[group[0]]

    for index, request in enumerate(requests):
        group = next((group for group in groups if fits(group, request)), None)
        if group is None:
            groups.append([index])
        else:
            group.append(index)
    return groups


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token that ends an answer, by the model's generation config and the tokenizer."""
    generation = getattr(model.generation_config, "eos_token_id", None)
    listed = generation if isinstance(generation, list) else [generation]
    return frozenset(token for token in [*listed, tokenizer.eos_token_id] if token is not None)


def _messages(question: Question) -> list[Message]:
    """A question as messages, with text in each of them that asks something."""
    if not isinstance(question, str | Sequence):
        raise ConfigError(f"The question is a {type(question).__name__}: give a text or a list of messages.")
    messages: list[Message] = [{"role": "user", "content": question}] if isinstance(question, str) else list(question)
    for number, message in enumerate(messages, 1):
        if isinstance(message, str):
            raise ConfigError("A list of questions where one is asked: give it to `generate` or `stream_batch`.")
        known = isinstance(message, Mapping) and "role" in message
        if not known or not isinstance(message.get("content"), str):
            raise ConfigError(
                f"Message {number} of {len(messages)} needs 'role' and 'content', both text: {message!r}."
            )
    if not messages or not messages[-1]["content"].strip():
        raise ConfigError("The question is empty: there is nothing to answer or to continue.")
    return messages


def _is_batch(question: Question | Sequence[Question]) -> bool:
    """A list of questions, and not one list of messages."""
    if isinstance(question, str) or not isinstance(question, Sequence):
        return False
    return not (question and isinstance(question[0], Mapping))


def _as_bytes(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DocumentError(
            f"A text holds half of a character at place {error.start} ({text[error.start]!r}): it was decoded wrongly. "
            "Read it again with the right encoding."
        ) from error


def _checked_stop(stop: Sequence[str] | str | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    for text in stops:
        if not isinstance(text, str):
            raise ConfigError(f"stop holds {text!r}: every one must be a text.")
    if "" in stops:
        raise ConfigError("stop holds an empty string, which would end every answer at once.")
    return stops


def _answer(text: str, last: Piece) -> Answer:
    assert last.finish_reason is not None
    assert last.usage is not None
    return Answer(text, last.finish_reason, last.usage)
