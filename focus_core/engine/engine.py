"""FocusEngine: text in, text out. Documents, questions, batches and streams; the work is the scheduler's."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Unpack, cast, overload

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from focus_core.attention.slot_attention import require_watchable
from focus_core.cache.chunks import ChunkSet
from focus_core.cache.store import DeviceTier
from focus_core.cache.tiers import ChunkStore
from focus_core.config import CHUNK_WITHOUT_ADAPTER, LARGEST_CHUNK, FocusConfig, ResolvedConfig
from focus_core.engine.answers import Answer, AnswersFromEvents, Event, Finished, Usage
from focus_core.engine.attribution import explain, first_cost
from focus_core.engine.memory_plan import Memories
from focus_core.engine.options import CheckedOptions, Options, chosen_store, split_settings
from focus_core.engine.places import with_pieces
from focus_core.engine.planning import Outline, Planner
from focus_core.engine.prefill import ChunkPrefill
from focus_core.engine.prepared import PreparedDocuments
from focus_core.engine.reading_plan import ReadingPlan, Whereabouts, plan_of_documents, plan_of_lengths, timed
from focus_core.engine.requests import AnyRequest, Notice, Progress, QuestionRequest, Request
from focus_core.engine.sampling import Sampler
from focus_core.engine.shared import SharedModel, shared_model
from focus_core.engine.sources import Explanation
from focus_core.engine.verification import Verification, compare
from focus_core.errors import ConfigError, DocumentError, OutOfMemoryError, UnsupportedModelError, shown, warn
from focus_core.loading.models import LoadedModel
from focus_core.methods.base import Method, Plan, PlanKey, TokenizedQuestion
from focus_core.methods.evidence import NO_COST, NOTHING, Cost, Evidence, ReadChunks
from focus_core.methods.focus import FocusModel
from focus_core.progress import Reading, Report, progress_bar, sign_of_life
from focus_core.text.chat import Message
from focus_core.text.chunking import Chunk
from focus_core.text.documents import Document, TokenizedDocument, require_sequence
from focus_core.text.layout import Layout, Prompt
from focus_core.text.stream import TextStream

Question = str | Sequence[Message]
AnyDocument = str | Document | PreparedDocuments
Documents = AnyDocument | Sequence[AnyDocument]
DocumentsOfEach = Sequence[Documents | None]

_SHORT = "What is this about, and what does it say?"  # the question of a plan for which none is given
SHORT_QUESTION = 32  # tokens of a question with its template, where it is not known yet


class FocusEngine:
    """Asks a local model about documents of any length.

    Safe under threads: questions that are asked at the same time run together, token by token.
    """

    def __init__(
        self,
        shared: SharedModel,
        *,
        config: FocusConfig | None = None,
        method: str = "auto",
        progress: bool = True,
        store_bytes: int | None = None,
        host_bytes: int | None = None,
        store: str | Path | None = None,
        store_limit: int | None = None,
    ) -> None:
        """Use `from_pretrained` or `from_model`."""
        loaded = shared.loaded
        self.shared = shared
        self.focus = FocusModel(
            loaded.model,
            shared.projections,
            config=config,
            trained_with=loaded.trained_with,
            largest_chunk=LARGEST_CHUNK if loaded.projections else CHUNK_WITHOUT_ADAPTER,
        )
        self.tokenizer = shared.tokenizer.tokenizer
        self.layout, self._no_place = self._choose_layout()
        self.method = method  # of questions that name none
        self._planner = Planner(self.focus, self.layout, method, shared.tokenizer.decode)
        shares = store_bytes is None and host_bytes is None
        memory = shared.store if shares else shared.new_store(store_bytes, host_bytes)
        disk = shared.new_disk(store, self.focus.state_shape, store_limit) if store else None
        self.store = ChunkStore(memory, disk)
        self._end_tokens = _end_tokens(loaded.model, self.tokenizer)
        self._progress = progress

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        adapter: str | Path | None = None,
        device: str = "auto",
        dtype: str = "auto",
        config: FocusConfig | None = None,
        method: str = "auto",
        progress: bool = True,
        store_bytes: int | None = None,
        host_bytes: int | None = None,
        store: str | Path | None = None,
        store_limit: int | None = None,
        **settings: Any,
    ) -> FocusEngine:
        """A model folder, hub id or GGUF file; without one, the embedded model. Weights are loaded once per adapter.

        Args:
            adapter: folder or hub id of candidate projections. Without them a model other than the embedded one answers
                about long texts by `select`
            device: `"auto"` takes the GPU where there is one, CUDA's or Apple's
            dtype: `"auto"` is bfloat16 on a GPU, and float32 on a CPU and for the embedded model
            config: chunking; a field that is `None` comes from the adapter, or suits the model
            method: `"focus"`, `"plain"`, `"select"`, `"experts"`, or `"auto"`: the plain model for texts that fit its
                window with the question; for longer ones FocusLLM if there is an adapter, else `select`
            progress: show a bar while the model is loaded and documents are read, on a terminal and if it takes more
                than two seconds
            store_bytes: how much of prefilled chunks this engine may hold in memory; by default it shares half of what
                is free at first with the model's other engines
            host_bytes: how much of them host memory may hold, where a GPU computes: of what leaves the GPU or does not
                fit it. By default half of what is free at first; 0 is none
            store: a folder in which prefilled chunks are kept too, and found again by the next process; by default the
                one that the environment names as FOCUSLLM_STORE, else none; `""` is none. It holds the documents' texts
            store_limit: bytes that the folder may take with everything in it; by default half of the free disk
            settings: fields of `FocusConfig` (`chunk_size`, …), and arguments for transformers (`revision`,
                `attn_implementation`, `gguf_file`, `quantization_config`, …)

        Raises:
            UnsupportedModelError: no such model, or one that cannot work with candidate tokens
            AdapterError: the adapter is missing, damaged, or belongs to another model
            ConfigError: an unknown device, dtype or method, or sizes that cannot work
        """
        config, arguments = split_settings(config, settings)
        store = chosen_store(store)
        if store_limit is not None and not store:
            raise ConfigError(f"store_limit={shown(store_limit)}: there is no store. Name its folder with store=.")
        shared = shared_model(model, adapter=adapter, device=device, dtype=dtype, progress=progress, **arguments)
        return cls(
            shared,
            config=config,
            method=method,
            progress=progress,
            store_bytes=store_bytes,
            host_bytes=host_bytes,
            store=store,
            store_limit=store_limit,
        )

    @classmethod
    def from_model(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        config: FocusConfig | None = None,
        method: str = "auto",
        progress: bool = True,
        store_bytes: int | None = None,
        host_bytes: int | None = None,
    ) -> FocusEngine:
        """Around a model that is loaded already, with untrained candidate projections.

        The arguments are those of `from_pretrained`.
        """
        loaded = LoadedModel(model, model.config.name_or_path or type(model).__name__)
        shared = SharedModel.of(loaded, tokenizer)
        return cls(
            shared, config=config, method=method, progress=progress, store_bytes=store_bytes, host_bytes=host_bytes
        )

    def _choose_layout(self) -> tuple[Layout, ConfigError | None]:
        """The layout of rows; with the error for questions about documents, if the template has no place for them.

        An adapter reads as it was trained; a model without one, as its chat template wants it.
        """
        text, asked = self.shared.tokenizer, self.config.layout
        raw = Layout(self.config, text.bos, separator=text.separator)
        if asked == "chat" and not self.tokenizer.chat_template:
            raise ConfigError(
                f"layout='chat': {self.shared.loaded.model_id} has no chat template. Choose layout='raw', or a model "
                "that was made for conversations."
            )
        by_default = bool(self.tokenizer.chat_template) and self.shared.loaded.projections is None
        if asked == "raw" or (asked is None and not by_default):
            return raw, None
        try:
            return replace(raw, turn_opening=text.turn_opening), None
        except ConfigError as error:
            return raw, error

    def __repr__(self) -> str:
        loaded, config = self.shared.loaded, self.config
        adapter = f", adapter {loaded.adapter_id!r}" if loaded.adapter_id else ", no adapter"
        return (
            f"<FocusEngine {loaded.model_id!r}{adapter}: window {config.window:,}, chunks of {config.chunk_size:,}, "
            f"{self.focus.device}, {str(self.focus.dtype).removeprefix('torch.')}>"
        )

    @property
    def config(self) -> ResolvedConfig:
        """The settings in force."""
        return self.focus.config

    # --- asking -------------------------------------------------------------------------------------------------------

    @overload
    def generate(self, question: str, documents: Documents | None = None, **options: Unpack[Options]) -> Answer: ...
    @overload
    def generate(
        self, question: list[str], documents: Documents | DocumentsOfEach | None = None, **options: Unpack[Options]
    ) -> list[Answer]: ...
    @overload
    def generate(
        self, question: Sequence[Message], documents: Documents | None = None, **options: Unpack[Options]
    ) -> Answer: ...
    @overload
    def generate(
        self,
        question: Sequence[Sequence[Message]],
        documents: Documents | DocumentsOfEach | None = None,
        **options: Unpack[Options],
    ) -> list[Answer]: ...
    def generate(
        self,
        question: Question | Sequence[Question],
        documents: Documents | DocumentsOfEach | None = None,
        **options: Unpack[Options],
    ) -> Answer | list[Answer]:
        """A whole answer.

        A list of strings, or of lists of messages, is a batch: one pass per token for all questions about the same
        documents, and a list of answers. A list of lists as `documents` has the documents of each question.

        Raises:
            ContextOverflowError: it does not fit the window; nothing is ever cut off, and no work has been done
            DocumentError: a document without text
            ConfigError: an unknown option, or one with an impossible value
            OutOfMemoryError: the documents' keys and values do not fit the memory
        """
        checked = CheckedOptions.of(options, called="generate")
        batch = _is_batch(question)
        questions = cast(Sequence[Question], question if batch else [question])
        collected = AnswersFromEvents(len(questions))
        for index, event in self._run(questions, documents, checked, batch=batch):
            collected.add(index, event)
        answers = collected.answers()
        return answers if batch else answers[0]

    def stream(
        self, question: Question, documents: Documents | None = None, **options: Unpack[Options]
    ) -> Iterator[Event]:
        """Pieces of the answer as soon as they are certain, then one `Finished`. Closing the iterator stops the work.

        Documents are read before the first piece; an exception, Ctrl-C or one that `report` raises, stops that.
        Takes the options of `generate`, and raises the same.
        """
        checked = CheckedOptions.of(options, called="stream")
        return _events(self._run([question], documents, checked, batch=False))

    def stream_batch(
        self,
        questions: Sequence[Question],
        documents: Documents | DocumentsOfEach | None = None,
        **options: Unpack[Options],
    ) -> Iterator[tuple[int, Event]]:
        """Events of several answers, each with the index of its question; otherwise like `stream`."""
        checked = CheckedOptions.of(options, called="stream_batch")
        return self._run(questions, documents, checked, batch=True)

    # --- sources ------------------------------------------------------------------------------------------------------

    def explain(self, answer: Answer | Finished, *, every_chunk: bool = False, sentences: bool = True) -> Explanation:
        """Which passages an answer of this engine rests on: its log-probability again, without parts of the text.

        What leaving a part out means for each method: docs/sources.md. Chunks that have been evicted since are read
        anew.

        Args:
            every_chunk: each chunk is left out by itself. Otherwise the chunks of a long text are left out in groups,
                and those that were left out only together with others have the loss of their group
            sentences: the sentences of the best chunks are told apart, for most of the cost; if not, sources are chunks

        Raises:
            ConfigError: the answer was not made by this model, or its method has no sources
            OutOfMemoryError: the documents' keys and values do not fit the memory
        """
        found = answer.explanation
        if found is not None and not (every_chunk and found.groups):
            return found
        chunks = partial(self._chunks_again, self._plan_of(answer))
        return self._explain(answer, chunks, every_chunk=every_chunk, sentences=sentences)

    def log_probs(self, answer: Answer | Finished, text: str) -> list[float]:
        """Log-probability, in nats, of each token of `text`, said in place of an answer of this engine.

        The model's own, before sampling options. By the method that answered, over the same chunks: so it tells how
        likely a reference is, where the words of the answer itself may be others. `text` begins as the answer begins:
        with a space, if the model writes one there.

        Raises:
            ConfigError: `text` has no tokens; or as `explain`
            ContextOverflowError: the window does not hold it
        """
        plan, tokens = self._plan_of(answer), self.tokenize(text)
        if not tokens:
            raise ConfigError(f"text={text!r} has no tokens.")
        plan.limits.check(len(tokens))
        said = replace(answer, tokens=tuple(tokens))
        evidence = self._evidence(said, self._question_of(said), lambda: self._chunks_again(plan))
        evidence.begin()
        return self.shared.scheduler.run(lambda: evidence.log_probs([NOTHING]))[0].tolist()

    def cost_of_sources(self, answer: Answer | Finished, *, every_chunk: bool = False) -> Cost:
        """What the losses of all chunks will take, or of all groups, by lengths alone.

        On top come, as the answer has it: the chunks of those groups that matter, and the sentences of the best chunks.
        """
        question = self._question_of(answer)
        if not question.chunks:
            return NO_COST
        evidence = self._evidence(answer, question, lambda: ChunkSet.of([]))
        return first_cost(question, evidence, every_chunk=every_chunk)

    def _explain(
        self, answer: Answer | Finished, chunks: ReadChunks, *, every_chunk: bool = False, sentences: bool = True
    ) -> Explanation:
        question = self._question_of(answer)
        if not question.chunks:
            return Explanation()
        evidence = self._evidence(answer, question, chunks)
        decode, exclusively = self.shared.tokenizer.decode, self.shared.scheduler.run
        return explain(
            question,
            evidence,
            decode,
            exclusively,
            every_chunk=every_chunk,
            sentences=sentences,
            least_explained=self.config.supported_share or 0.0,
        )

    def _explained(self, answer: Finished, request: QuestionRequest) -> Explanation | None:
        """The explanation of an answer that is not lost where memory holds it and not its sources."""
        try:
            return self._explain(answer, request.prefill.chunks_read)
        except OutOfMemoryError as error:
            warn(f"sources=True: this answer is handed over without sources. {error}")
            return None

    def _evidence(self, answer: Answer | Finished, question: TokenizedQuestion, chunks: ReadChunks) -> Evidence:
        return self._plan_of(answer).method.evidence(question, answer.chunk_scores, chunks)

    def _question_of(self, answer: Answer | Finished) -> TokenizedQuestion:
        """The question with its answer, and with parts of documents that can be left out."""
        return with_pieces(self._plan_of(answer).question).continued(answer.tokens)

    def _plan_of(self, answer: Answer | Finished) -> Plan:
        if answer.plan is None or answer.plan.method is not self._planner.method(answer.method):
            raise ConfigError("This answer was made by another engine, or put together by hand: ask this engine again.")
        return answer.plan

    def _chunks_again(self, plan: Plan) -> ChunkSet:
        return self._read(self._prefill(plan.method, plan.chunks)).chunk_set

    def _read(self, prefill: ChunkPrefill) -> ChunkPrefill:
        """Wait until all chunks are there, in silence."""
        for _ in self._notices([Request(prefill)]):
            pass
        return prefill

    # --- reading ------------------------------------------------------------------------------------------------------

    def prepare(self, documents: Documents, *, report: Report | None = None) -> PreparedDocuments:
        """Prefill documents now, so that any question about any of them starts at once later.

        Where the plain model will read them with each question, because both fit its window, nothing is prefilled or
        kept, and a warning says so.

        Args:
            report: called with the number of chunks prefilled so far and in all

        Raises:
            DocumentError: a document without text
            ContextOverflowError: a document of which nothing could be asked, because its memory fills the window
            OutOfMemoryError: the keys and values do not fit the memory
        """
        listed = self._tokenized(documents)
        for document in listed:
            self._planner.outline([len(document)], 1, 1).limits.check(1)
        outline = self._planner.outline([len(document) for document in listed], SHORT_QUESTION)
        if not outline.chunks:
            warn(
                f"{sum(map(len, listed)):,} tokens of documents fit the window with a question: the plain model reads "
                "both together each time, so nothing is prepared. Use method='focus' to read them in chunks."
            )
            return PreparedDocuments(tuple(listed), self.shared.key)
        self._require_place()
        chunks = self._planner.cut(outline.method, listed)
        self._warn(outline.notice)
        request = Request(self._prefill(outline.method, chunks), keeps_chunks=False)
        self._note(request.prefill)
        with progress_bar("reading chunks", visible=self._progress, report=report) as progress:
            for notice in self._notices([request]):
                if isinstance(notice[1], Progress):
                    progress(notice[1].done, notice[1].total)
        read = request.prefill.take_prefilled_tokens()
        return PreparedDocuments(tuple(listed), self.shared.key, chunks, read)

    def verify(self, prepared: PreparedDocuments, *, sample: int = 8, seed: int = 0) -> Verification:
        """Read some of the chunks of `prepared` anew, and compare them with what is kept in memory or on disk.

        Args:
            sample: how many chunks, drawn at random with `seed`

        Raises:
            ConfigError: `sample` is not a number of chunks
            DocumentError: the documents were prepared with another model
        """
        if type(sample) is not int or sample < 1:
            raise ConfigError(f"sample={sample!r}: must be a whole number, and at least 1.")
        self._prepared(prepared)
        chunks = Random(seed).sample(prepared.chunks, min(sample, len(prepared.chunks)))
        method = self._planner.outline([len(document) for document in prepared.documents], SHORT_QUESTION).method
        kept = self._prefill(method, chunks)
        self.shared.scheduler.run(kept.begin)
        self.shared.scheduler.run(kept.load_stored)
        anew = self._read(self._prefill(method, chunks, store=ChunkStore(DeviceTier(0))))
        return compare([kept.rows.get(chunk.key) for chunk in chunks], [anew.rows[chunk.key] for chunk in chunks])

    def outline(
        self,
        documents: Sequence[int],
        question: int = SHORT_QUESTION,
        max_new_tokens: int | None = None,
        method: str | None = None,
    ) -> Outline:
        """How a question would be answered, by the lengths of its documents alone.

        Args:
            documents: tokens of each document
            question: tokens of the question with its template
        """
        return self._planner.outline(documents, question, max_new_tokens, method)

    def plan(
        self,
        documents: Documents | None,
        question: Question | None = None,
        *,
        system: str | None = None,
        max_new_tokens: int | None = None,
        method: str | None = None,
        calibrate: bool = True,
    ) -> ReadingPlan:
        """What a question about documents will take, without reading any of them.

        Where it does not fit, the plan says why and what to change. The first plan measures the machine, for about two
        seconds on a small model; on a busy machine its seconds are wrong.

        Args:
            question: by default a short one
            calibrate: say seconds to the first token, unless chunks are streamed from host memory

        Raises:
            DocumentError: a document without text
            ConfigError: an option with an impossible value
        """
        given = {"system": system, "max_new_tokens": max_new_tokens, "method": method}
        options = CheckedOptions.of(given, called="plan")
        listed = self._documents_of(documents)
        prompt = self._prompt(_SHORT if question is None else question, options)
        plan = self._planner.draft(listed, prompt, options.max_new_tokens, options.method)
        refused = self._no_place if self.tokenizer.chat_template and (listed or plan.chunks) else None
        found = Whereabouts.of(plan, self._memories())
        lengths = [len(document) for document in listed]
        left = self._planner.positions_left(lengths, plan.method, plan.chunks)
        planned = plan_of_documents(plan, found, self._memories(), positions_left=left, refused=refused)
        planned = self._with_pass(planned)
        if not (calibrate and planned.fits) or planned.streamed.chunks:
            return planned
        with sign_of_life("measuring this machine", visible=self._progress):
            return timed(planned, plan, found, self.shared.calibration, self.store.disk)

    def plan_lengths(self, documents: Sequence[int]) -> ReadingPlan:
        """The plan for a short question about documents of these numbers of tokens, without seconds."""
        outline = self.outline(documents)
        left = self._planner.positions_left(documents, outline.method)
        return self._with_pass(plan_of_lengths(outline, documents, SHORT_QUESTION, left, self._memories()))

    def _with_pass(self, planned: ReadingPlan) -> ReadingPlan:
        """The same with the bytes of the largest pass: over chunks that are read, or over all for a token."""
        asked = planned.question_tokens + planned.answer_tokens
        if not planned.chunks:
            row = planned.tokens + asked
            return replace(planned, pass_bytes=self.focus.pass_bytes(row, row))
        reading = self.focus.pass_bytes(planned.to_read.tokens, self.config.chunk_size)
        answering = self.focus.pass_bytes(2 * planned.chunks + asked, 1)
        return replace(planned, pass_bytes=max(reading, answering))

    def count_tokens(self, text: str) -> int:
        """Tokens of `text`, without special tokens."""
        return len(self.tokenize(text))

    def tokenize(self, text: str) -> list[int]:
        """The model's tokens of `text`, without special tokens."""
        return self.shared.tokenizer.tokenize(text)

    def count_question_tokens(
        self, question: Question, *, system: str | None = None, chat_template: bool = True
    ) -> int:
        """Tokens of a question with its template, as `Usage.input_tokens` counts them."""
        return len(self.shared.tokenizer.prompt(_messages(question, system), chat_template=chat_template))

    # --- from questions to requests -----------------------------------------------------------------------------------

    def _run(
        self,
        questions: Sequence[Question],
        documents: Documents | DocumentsOfEach | None,
        options: CheckedOptions,
        *,
        batch: bool,
    ) -> Generator[tuple[int, Event]]:
        requests = self._requests(questions, documents, options, batch=batch)
        index_of = {id(request): index for index, request in enumerate(requests)}
        reading = {id(request) for request in requests if request.plan.chunks}
        tell_reading = options.on_reading or (lambda reading: None)
        with ExitStack() as bar, closing(self._notices(requests)) as notices:
            progress = bar.enter_context(progress_bar("reading chunks", visible=self._progress, report=options.report))
            for request, notice in notices:
                if isinstance(notice, Progress):
                    progress(notice.done, notice.total)
                    continue
                if isinstance(notice, Reading):
                    tell_reading(notice)
                    continue
                reading.discard(id(request))
                if not reading:
                    bar.close()  # gone before the answer is shown
                if isinstance(notice, Finished) and options.sources:
                    notice = replace(notice, explanation=self._explained(notice, request))
                if isinstance(notice, Event):
                    yield index_of[id(request)], notice

    def _notices(self, requests: Sequence[AnyRequest]) -> Generator[tuple[AnyRequest, Notice]]:
        scheduler = self.shared.scheduler
        scheduler.add(requests)
        return scheduler.notices(requests)

    def _requests(
        self,
        questions: Sequence[Question],
        documents: Documents | DocumentsOfEach | None,
        options: CheckedOptions,
        *,
        batch: bool,
    ) -> list[QuestionRequest]:
        """Everything is checked here, before any work."""
        of_each: list[Sequence[TokenizedDocument]]
        if _is_per_question(documents):
            of_each = [self._documents_of(one) for one in self._per_question(documents, questions, batch=batch)]
        else:
            of_each = [self._documents_of(cast(Documents | None, documents))] * len(questions)
        prefills: dict[PlanKey, ChunkPrefill] = {}
        requests = []
        for question, listed in zip(questions, of_each, strict=True):
            request = self._request(question, listed, options)
            if request.plan.chunks:  # questions about the same chunks wait for one prefill
                request.prefill = prefills.setdefault(request.plan.key, request.prefill)
            requests.append(request)
        for prefill in prefills.values():
            self._note(prefill)
        return requests

    def _request(
        self,
        question: Question,
        documents: Sequence[TokenizedDocument],
        options: CheckedOptions,
    ) -> QuestionRequest:
        templated = self._templated(options)
        if templated and documents:
            self._require_place()
        prompt = self._prompt(question, options)
        plan = self._planner.plan(documents, prompt, options.max_new_tokens, options.method)
        if options.live_evidence:
            if plan.method.name == "focus":
                require_watchable(self.focus.model)
            plan = replace(plan, question=replace(plan.question, live_evidence=True))
        if templated and plan.chunks:
            self._require_place()
        self._warn(plan.notice)
        tokens = sum(map(len, documents))
        row = plan.question.context.row
        special = {token for text, token in self.tokenizer.get_added_vocab().items() if text in options.stops}
        return QuestionRequest(
            plan,
            self._prefill(plan.method, plan.chunks, plan.limits.appended_tokens(plan.new_tokens)),
            sampler=Sampler(options.sampling, torch.tensor(row)),
            stop_tokens=self._end_tokens | special,
            text=TextStream(self.tokenizer, options.stops, strip_start=templated, after=None if templated else row[-1]),
            usage=Usage(tokens + len(prompt), document_tokens=tokens),
            keeps_chunks=options.sources,
        )

    def _templated(self, options: CheckedOptions) -> bool:
        return options.chat_template and bool(self.tokenizer.chat_template)

    def _prompt(self, question: Question, options: CheckedOptions) -> Prompt:
        messages, in_turn = _messages(question, options.system), self._templated(options) and self.layout.in_turn
        prompt = self.shared.tokenizer.prompt(messages, chat_template=options.chat_template, turn=in_turn)
        if not len(prompt.tokens):
            raise ConfigError("The question is empty: the tokenizer makes no tokens of it.")
        return prompt

    def _note(self, prefill: ChunkPrefill) -> None:
        """Let the store on disk know the names of the documents that are asked about."""
        if self.store.disk is None:
            return
        self.store.disk.begin(prefill, prefill.wanted)
        of_documents: dict[int, list[tuple[Chunk, Chunk]]] = {}  # equal documents may differ in name
        for chunk in prefill.chunks:
            for part in chunk.document_parts:
                of_documents.setdefault(id(part.document), []).append((chunk, part))
        for of_document in of_documents.values():
            document = of_document[0][1].document
            keys = tuple(chunk.key.hex() for chunk, _ in of_document)
            tokens = sum(len(part.token_ids) for _, part in of_document)
            self.store.disk.note(
                prefill, document.called, document.key.hex(), tokens, keys, self.shared.loaded.model_id
            )

    def _prefill(
        self, method: Method, chunks: Sequence[Chunk], appended_tokens: int = 0, *, store: ChunkStore | None = None
    ) -> ChunkPrefill:
        return ChunkPrefill(self._memories(store), method, chunks, appended_tokens=appended_tokens)

    def _memories(self, store: ChunkStore | None = None) -> Memories:
        return Memories(self.focus.device, store or self.store, self.shared.tiers)

    def _require_place(self) -> None:
        """Refuse documents for which the chat template has no place."""
        if self._no_place is not None:
            raise self._no_place

    def _warn(self, notice: str | None) -> None:
        """A notice, once for each model."""
        if notice and notice not in self.shared.warned:
            self.shared.warned.add(notice)
            warn(f"{self.shared.loaded.model_id}: {notice}")

    # --- documents at the door ----------------------------------------------------------------------------------------

    def _documents_of(self, documents: Documents | None) -> Sequence[TokenizedDocument]:
        return () if documents is None else self._tokenized(documents)

    @staticmethod
    def _per_question(documents: Any, questions: Sequence[Question], *, batch: bool) -> Sequence[Documents | None]:
        if not batch:
            raise ConfigError(
                "documents is a list of lists, which gives each question of a batch its own. Give one list for one "
                "question."
            )
        if len(documents) != len(questions):
            raise ConfigError(
                f"documents has lists for {len(documents)} questions, and there are {len(questions)}. Give one list "
                "for each question (None for no documents)."
            )
        return cast(Sequence[Documents | None], documents)

    def _tokenized(self, documents: Documents) -> list[TokenizedDocument]:
        require_sequence(documents)
        alone = isinstance(documents, AnyDocument) or not isinstance(documents, Iterable)
        listed: list[Any] = [documents] if alone else [*cast(Iterable[Any], documents)]
        if not listed:
            raise DocumentError("documents is an empty list. Hand over at least one document, or leave it out.")
        found: list[TokenizedDocument] = []
        with sign_of_life("tokenizing", visible=self._progress):
            for number, document in enumerate(listed, 1):
                if isinstance(document, PreparedDocuments):
                    found += self._prepared(document)
                else:
                    found.append(self._tokenize_document(document, f"Document {number} of {len(listed)}"))
        return found

    def _tokenize_document(self, document: Any, called: str) -> TokenizedDocument:
        if isinstance(document, str) and document.strip():
            document = Document(document)
        if not isinstance(document, Document):
            kind = "empty" if isinstance(document, str) else f"a {type(document).__name__}, not a string"
            raise DocumentError(f"{called} is {kind}. Leave it out or give its text.")
        tokenized = self.shared.tokenizer.document(document, in_turn=self.layout.in_turn)
        if not len(tokenized):
            raise DocumentError(f"{called} is empty: the tokenizer makes no tokens of it. Leave it out.")
        return tokenized

    def _prepared(self, prepared: PreparedDocuments) -> Sequence[TokenizedDocument]:
        if prepared.model != self.shared.key:
            raise DocumentError(
                f"These documents were prepared with another model than {self.shared.loaded.model_id!r}, or with other "
                "weights, another tokenizer, dtype or setting of it. Prepare them again with this engine."
            )
        return prepared.documents


def _events(run: Generator[tuple[int, Event]]) -> Iterator[Event]:
    with closing(run):
        for _, event in run:
            yield event


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token that ends an answer, by the model's generation config and the tokenizer."""
    generation = getattr(model.generation_config, "eos_token_id", None)
    listed = generation if isinstance(generation, list) else [generation]
    if not all(token is None or type(token) is int for token in listed):
        raise UnsupportedModelError(
            f"The model's generation config says eos_token_id={shown(generation)}: it must be a token's number, or "
            "a list of them."
        )
    return frozenset(token for token in [*listed, tokenizer.eos_token_id] if token is not None)


def _messages(question: Question, system: str | None) -> list[Message]:
    """A question as messages, checked; the last one holds text."""
    if not isinstance(question, str | Sequence):
        raise ConfigError(f"The question is a {type(question).__name__}: give a text or a list of messages.")
    messages: list[Message] = [{"role": "user", "content": question}] if isinstance(question, str) else list(question)
    for number, message in enumerate(messages, 1):
        if isinstance(message, str):
            raise ConfigError("A list of questions where one is asked: give it to `generate` or `stream_batch`.")
        known = isinstance(message, Mapping) and isinstance(message.get("role"), str)
        if not known or not isinstance(message.get("content"), str):
            raise ConfigError(
                f"Message {number} of {len(messages)} needs 'role' and 'content', both text: {shown(message)}."
            )
    if not messages or not messages[-1]["content"].strip():
        raise ConfigError("The question is empty: there is nothing to answer or to continue.")
    return messages if system is None else [{"role": "system", "content": system}, *messages]


def _is_batch(question: Question | Sequence[Question]) -> bool:
    """A list of questions, and not one list of messages."""
    if isinstance(question, str) or not isinstance(question, Sequence):
        return False
    return not (question and isinstance(question[0], Mapping))


def _is_per_question(documents: Any) -> bool:
    """A list of lists: documents for each question."""
    if not isinstance(documents, list | tuple):
        return False
    return any(isinstance(one, list | tuple) for one in documents)
