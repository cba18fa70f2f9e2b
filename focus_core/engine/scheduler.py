"""The scheduler: questions of all threads run together, one token per step.

    scheduler.add(requests)
    for request, notice in scheduler.notices(requests): ...   # a client that waits runs steps

There is no thread of its own. A client that needs a notice runs a step, unless another client is running one: then it
waits, and the step serves both. A step is one pass for every batch of questions about the same chunks, and one pass of
prefilling. So a new question joins the running batch, a client that leaves frees its place at the next step, and a long
prefill delays the tokens of others by one pass per token.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import repeat
from typing import TypeVar

import torch
from transformers import PreTrainedModel

from focus_core.cache.chunks import ChunkSet
from focus_core.cache.keys import ChunkKey
from focus_core.device import naming_lack_of_memory, require_memory, tokens_per_pass
from focus_core.engine.prefill import ChunkPrefill
from focus_core.engine.requests import (
    AnyRequest,
    Failed,
    Notice,
    Progress,
    QuestionRequest,
    Ready,
    Request,
    tokens_together,
)
from focus_core.engine.sampling import choose
from focus_core.errors import OutOfMemoryError
from focus_core.methods.base import Decoding, Method, PlanKey

Result = TypeVar("Result")


@dataclass(eq=False)
class Batch:
    """Questions about the same chunks that take every step together.

    Attributes:
        tokens: the newest token of each request, input of the next step
        in_step: set while a step changes the decoding; still set afterwards if the step was interrupted
    """

    key: PlanKey
    chunks: ChunkSet
    method: Method
    decoding: Decoding
    requests: list[QuestionRequest]
    tokens: list[int] = field(default_factory=list)
    in_step: bool = False

    @property
    def longest(self) -> int:
        """Tokens of the longest local context."""
        return max(request.local_length + len(request.tokens) for request in self.requests)


class Scheduler:
    """Runs the requests of all engines of one model. Safe under threads."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._changed = threading.Condition()  # guards notices, and the three attributes that follow
        self._stepping: int | None = None  # the thread that runs a step
        self._added: list[Request] = []
        self._left: list[Request] = []
        # What follows belongs to the thread that runs a step.
        self._prefilling: list[Request] = []
        self._prefilled_last: ChunkPrefill | None = None
        self._ready: deque[QuestionRequest] = deque()
        self._batches: list[Batch] = []
        self._ended: list[Request] = []  # in this step

    def __repr__(self) -> str:
        running = sum(len(batch.requests) for batch in self._batches)
        return f"<Scheduler: {running} running, {len(self._prefilling)} prefilling, {len(self._ready)} ready>"

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        with self._changed:
            return not (self._added or self._left or self._prefilling or self._ready or self._batches)

    # --- clients ------------------------------------------------------------------------------------------------------

    def add(self, requests: Sequence[Request]) -> None:
        """Let requests take part from the next step on."""
        with self._changed:
            self._added += requests

    def notices(self, requests: Sequence[AnyRequest]) -> Generator[tuple[AnyRequest, Notice]]:
        """What happens to these requests, as it happens; ends with the last of them.

        Closing the iterator ends what is left of them.

        Raises:
            Exception: the first error of a request
        """
        open_requests = list(requests)
        try:
            while open_requests:
                for request, notice in self._take(open_requests):
                    if isinstance(notice, Failed):
                        try:
                            raise notice.error
                        finally:
                            del notice  # its error holds this frame from here on
                    if request.ends_with(notice):
                        open_requests.remove(request)
                    yield request, notice
        finally:
            self._leave(open_requests)

    def run(self, work: Callable[[], Result]) -> Result:
        """Passes of the model that belong to no request, in the thread of the caller, while no step runs."""
        mine = False
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._stepping is None)
                mine, self._stepping = True, threading.get_ident()
            with naming_lack_of_memory():
                return work()
        finally:
            if mine:
                self._end_step()

    def _take(self, requests: Sequence[AnyRequest]) -> list[tuple[AnyRequest, Notice]]:
        """The notices of some requests; runs steps, or waits for another client's, until there are any."""
        while True:
            mine = False
            try:
                with self._changed:
                    self._changed.wait_for(lambda: self._stepping is None or any(r.notices for r in requests))
                    if any(r.notices for r in requests):  # held by no variable: an error may hold this frame
                        return [(r, r.notices.popleft()) for r in requests for _ in range(len(r.notices))]
                    mine, self._stepping = True, threading.get_ident()
                self._step()
            finally:
                if mine:
                    self._end_step()

    def _leave(self, requests: Sequence[Request]) -> None:
        """End requests; at once if no step is running, otherwise with that step."""
        if not requests:
            return
        with self._changed:
            self._left += requests
            mine = self._stepping is None
            if mine:
                self._stepping = threading.get_ident()
        if mine:
            self._end_step()

    def _end_step(self) -> None:
        """Drop the requests that left meanwhile, and let other clients step."""
        left: list[Request] = []
        me = threading.get_ident()
        try:
            while self._stepping == me:
                self._drop(left)
                with self._changed:
                    left, self._left = self._left, []
                    self._stepping = me if left else None
        finally:
            with self._changed:
                if self._stepping == me:  # otherwise another client may be in its step already
                    self._stepping = None
                self._changed.notify_all()

    def _tell(self, request: Request, notice: Notice) -> None:
        with self._changed:
            request.left = request.left or request.ends_with(notice)
            request.notices.append(notice)
            self._changed.notify_all()

    # --- a step -------------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        """One pass for every batch, and one pass of prefilling."""
        with self._changed:
            added, self._added = self._added, []
            left, self._left = self._left, []
        self._prefilling.extend(added)
        self._drop(left)
        try:
            self._advance_all()
            self._forget_chunks()
            self._prefill()
            self._start_ready()
            self._forget_chunks()
        except BaseException:
            self._restart_interrupted()
            for request in self._prefilling:
                request.prefill.abandon()
            raise

    def _prefill(self) -> None:
        """One pass for the request whose turn it is; what is ready already needs none."""
        for request in list(self._prefilling):
            if not request.prefill.begun and request in self._prefilling:
                self._begin(request)
            if request.prefill.begun:
                self._settle(request)
        prefills = [prefill for prefill in self._prefills() if prefill.begun]
        first = prefills.index(self._prefilled_last) + 1 if self._prefilled_last in prefills else 0
        for prefill in (*prefills[first:], *prefills[:first]):
            elsewhere = {key for other in prefills if other is not prefill for key in other.block}
            if prefill.block or prefill.missing(elsewhere):
                self._prefill_pass(prefill, elsewhere)
                return

    def _begin(self, request: Request) -> None:
        """Let a request prefill, unless it must wait for the memory that others are about to take."""
        others = sum(prefill.missing_bytes for prefill in self._prefills() if prefill.begun)
        running = {run.block for batch in self._batches for run in batch.chunks.runs}
        busy = running.union(*(prefill.blocks for prefill in self._at_work()))
        around = others, frozenset(map(id, busy))
        if request.prefill.waited_beside == around:  # looking again would find the same, in every step
            return
        request.prefill.waited_beside = around
        try:
            for prefill in self._prefills():
                request.prefill.find(prefill.rows)  # of blocks that are not kept yet
            with naming_lack_of_memory():  # evicted chunks move, and copies get their buffers
                request.prefill.begin(others, busy)
        except Exception as error:
            self._fail(self._sharing(request.prefill), error)
            return
        if request.prefill.begun and request.prefill.wanted:
            self._tell(request, request.prefill.reading)

    def _prefill_pass(self, prefill: ChunkPrefill, elsewhere: set[ChunkKey]) -> None:
        self._prefilled_last = prefill
        try:
            with naming_lack_of_memory():
                rows = prefill.step(elsewhere)
        except Exception as error:
            self._fail(self._sharing(prefill), error)
            return
        changed = {prefill, *(other for other in self._prefills() if rows and other.begun and other.find(rows))}
        for one in changed:
            self._tell(self._sharing(one)[0], one.reading)
        for request in list(self._prefilling):
            if request.prefill in changed:
                self._tell(request, Progress(*request.prefill.progress))
                self._settle(request)

    def _let_go(self, prefill: ChunkPrefill) -> None:
        """Hold nothing for chunks that are there, or that nobody waits for: their eviction would free no memory."""
        prefill.release()
        if self._prefilled_last is prefill:
            self._prefilled_last = None

    def _prefills(self) -> list[ChunkPrefill]:
        """Of all requests that wait for chunks, in their order; requests made together share one."""
        return list(dict.fromkeys(request.prefill for request in self._prefilling))

    def _at_work(self) -> set[ChunkPrefill]:
        """Those that hold chunks: of requests that read, that are ready, or that are being answered."""
        answered = [request for batch in self._batches for request in batch.requests if not request.left]
        read = {request.prefill for request in (*self._ready, *answered)}
        return read | {prefill for prefill in self._prefills() if prefill.begun}

    def _sharing(self, prefill: ChunkPrefill) -> list[Request]:
        """Requests that wait for the same chunks together."""
        return [request for request in self._prefilling if request.prefill is prefill]

    def _settle(self, request: Request) -> None:
        """Move on a request whose chunks are all there."""
        if request not in self._prefilling or not request.prefill.complete:
            return
        self._prefilling.remove(request)
        self._let_go(request.prefill)
        if isinstance(request, QuestionRequest):
            request.count_chunks()
            self._ready.append(request)
        self._tell(request, Ready())
        self._ended.append(request)

    # --- batches ------------------------------------------------------------------------------------------------------

    def _start_ready(self) -> None:
        """Start as many questions as the memory holds, in their order; those about the same chunks together."""
        if not self._ready:
            return
        groups: dict[PlanKey, list[list[QuestionRequest]]] = {}
        reserved = sum(request.bytes_left for batch in self._batches for request in batch.requests)
        while self._ready:
            request = self._ready[0]
            nbytes = request.bytes_left
            try:
                require_memory(reserved + nbytes, self._model.device, what="the questions and their answers")
            except Exception as error:
                if self._batches or groups:
                    break  # it waits for the end of others
                self._ready.popleft()
                self._fail([request], error)
                continue
            self._ready.popleft()
            reserved += nbytes
            self._into_group(groups.setdefault(request.plan.key, []), request)
        for key, of_key in groups.items():
            for group in of_key:
                self._start(key, group)

    def _into_group(self, groups: list[list[QuestionRequest]], request: QuestionRequest) -> None:
        for group in groups:
            if tokens_together([*group, request]) <= tokens_per_pass(self._model):
                group.append(request)
                return
        groups.append([request])

    def _start(self, key: PlanKey, requests: list[QuestionRequest]) -> None:
        """The first pass of some questions about the same chunks, which then join a running batch."""
        method, joined = requests[0].plan.method, self._batch_for(key, requests)
        try:
            with naming_lack_of_memory():
                same = joined is not None and joined.key == key
                chunks = joined.chunks if joined and same else requests[0].prefill.chunk_set
                decoding = method.decoding(chunks, [request.question for request in requests])
                batch = Batch(key, chunks, method, decoding, requests, in_step=True)
                self._batches.append(batch)
                logits = decoding.start()
                for request, scores in zip(requests, decoding.scores(), strict=True):
                    request.scores = scores
                self._accept(batch, logits)
                if joined is not None and batch in self._batches:
                    self._join(joined, batch)
        except Exception as error:
            self._fail(requests, error)
            self._restart_interrupted()  # the batch that they were about to join

    def _batch_for(self, key: PlanKey, requests: Sequence[QuestionRequest]) -> Batch | None:
        """A running batch that these questions can join in one pass."""
        method = requests[0].plan.method
        for batch in self._batches:
            if batch.method is method and method.own_rows:  # a step is one token a row
                return batch
            longest = max(batch.longest, *(request.local_length for request in requests))
            fits = (len(batch.requests) + len(requests)) * longest <= tokens_per_pass(self._model)
            if batch.key == key and fits:
                return batch
        return None

    def _join(self, batch: Batch, other: Batch) -> None:
        batch.in_step = other.in_step = True
        batch.decoding.join(other.decoding)
        batch.requests += other.requests
        batch.tokens += other.tokens
        self._batches.remove(other)
        batch.in_step = False

    def _advance_all(self) -> None:
        for batch in list(self._batches):
            self._advance(batch)

    def _advance(self, batch: Batch) -> None:
        try:
            with naming_lack_of_memory():
                batch.in_step = True
                self._keep_open(batch)
                if not batch.requests:
                    return
                self._accept(batch, batch.decoding.step(torch.tensor(batch.tokens)))
        except Exception as error:
            self._fail(batch.requests, error)

    def _accept(self, batch: Batch, logits: torch.Tensor) -> None:
        """Choose the next tokens, tell the clients, and drop the questions that have ended."""
        chosen = choose([request.sampler for request in batch.requests], logits)
        asked = any(request.plan.question.live_evidence for request in batch.requests)
        shares = batch.decoding.shares() if asked else repeat(None, len(chosen))
        for request, token, of_chunks in zip(batch.requests, chosen, shares, strict=True):
            # What one client asked for must not end the others.
            notice = Failed(token) if isinstance(token, Exception) else request.accept(token, of_chunks)
            if notice is not None:
                self._tell(request, notice)
        batch.tokens = [token if isinstance(token, int) else 0 for token in chosen]
        self._keep_open(batch)
        batch.in_step = False

    def _keep_open(self, batch: Batch) -> None:
        """Drop the questions that have ended, or whose clients have gone."""
        indices = [index for index, request in enumerate(batch.requests) if not request.left]
        self._ended += [request for request in batch.requests if request.left]
        if not indices:
            batch.requests = []
            self._batches = [other for other in self._batches if other is not batch]
        elif len(indices) < len(batch.requests):
            batch.decoding.keep(indices)
            batch.requests = [batch.requests[index] for index in indices]
            batch.tokens = [batch.tokens[index] for index in indices]

    def _forget_chunks(self) -> None:
        """Their clients hold these requests, maybe for long, and the memory of the chunks would not be free."""
        ended, self._ended = self._ended, []
        unused = {request.prefill for request in ended if request.left and not request.keeps_chunks}
        for prefill in unused - self._at_work() if unused else ():
            prefill.rows = {}

    # --- the end of requests ------------------------------------------------------------------------------------------

    def _fail(self, requests: Sequence[Request], error: Exception) -> None:
        requests = list(requests)
        if isinstance(error, OutOfMemoryError):
            _drop_frames(error)
        for request in requests:
            self._tell(request, Failed(error))
        self._drop(requests)

    def _drop(self, requests: Sequence[Request]) -> None:
        """Take requests out, wherever they are; from a batch that goes on, with its next step."""
        if not requests:
            return
        gone = set(map(id, requests))
        with self._changed:
            self._added = [request for request in self._added if id(request) not in gone]
        for request in requests:
            request.left = True
            with suppress(ValueError):
                self._prefilling.remove(request)
            if isinstance(request, QuestionRequest):
                with suppress(ValueError):
                    self._ready.remove(request)
        waited_for = self._prefills()
        for request in requests:
            if request.prefill not in waited_for:
                request.prefill.abandon()
                self._let_go(request.prefill)
        self._batches = [batch for batch in self._batches if not all(request.left for request in batch.requests)]

    def _restart_interrupted(self) -> None:
        """Let the questions of batches that a step did not finish start again, from the tokens they have."""
        interrupted = [batch for batch in self._batches if batch.in_step]
        self._batches = [batch for batch in self._batches if not batch.in_step]
        for batch in reversed(interrupted):
            self._ready.extendleft(request for request in reversed(batch.requests) if not request.left)


def _drop_frames(error: BaseException | None) -> None:
    """Forget where an error and its causes were raised: these frames hold the memory that was lacking."""
    if error is not None:
        error.__traceback__ = None
        _drop_frames(error.__cause__ or error.__context__)
