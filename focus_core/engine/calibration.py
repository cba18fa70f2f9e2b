"""How fast this machine is with one model, for a plan: made-up texts are read and asked about, for about a second.

They go through the scheduler like any others, so that what is measured is what happens. Nothing of them is kept.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch

from focus_core.cache.chunk_file import UnusableFile, read_chunk, read_header, write_chunk
from focus_core.cache.chunks import ChunkBlock, ChunkRow
from focus_core.cache.disk import DiskTier, file_bytes, readers
from focus_core.cache.store import DeviceTier
from focus_core.cache.tiers import ChunkStore
from focus_core.config import SamplingConfig
from focus_core.engine.answers import Usage
from focus_core.engine.memory_plan import Memories
from focus_core.engine.prefill import ChunkPrefill
from focus_core.engine.requests import AnyRequest, QuestionRequest, Request
from focus_core.engine.sampling import Sampler
from focus_core.engine.scheduler import Scheduler
from focus_core.methods.base import Method, Plan, TokenizedQuestion
from focus_core.methods.limits import measure
from focus_core.text.chunking import Chunk
from focus_core.text.documents import Document, TokenizedDocument
from focus_core.text.stream import TextStream
from focus_core.text.tokenizer import TextTokenizer

_BUDGET = 0.8  # seconds for each of the figures; one run is made however long it takes
_SHORTEST = 64  # tokens of the first chunk, which shows how long a whole one may take
_REPEATS = 3  # of the largest run, if the budget allows
_COPIES = 8  # of a chunk's keys and values, which are then read from memory as those of documents are
_FILES = 3  # stored files that are read


@dataclass(frozen=True)
class Line:
    """Seconds that depend on a count.

    Attributes:
        start: seconds for none
        each: seconds more for each
    """

    start: float
    each: float

    def __call__(self, count: float) -> float:
        return self.start + self.each * count

    @classmethod
    def through(cls, samples: Mapping[int, float]) -> Line:
        """Through the samples with the smallest and the largest count; through zero where there is one."""
        (first, low), (last, high) = min(samples.items()), max(samples.items())
        each = max(high - low, 0.0) / (last - first) if last > first else high / last
        return cls(high - each * last, each)


@dataclass(frozen=True)
class DiskSpeed:
    """Seconds for a byte of keys and values: from a file into memory, and into a file that is synced."""

    read: float
    write: float


class Calibration:
    """Measures one model on this machine; each figure once."""

    def __init__(self, scheduler: Scheduler, device: torch.device, tokenizer: TextTokenizer) -> None:
        self._scheduler, self._device, self._tokenizer = scheduler, device, tokenizer.tokenizer
        self._store = ChunkStore(DeviceTier(0))  # nothing made up is kept
        self._sizes: dict[tuple[object, ...], int] = {}
        self._prefill: dict[tuple[object, ...], float] = {}
        self._first_token: dict[tuple[object, ...], Line] = {}
        self._disk: dict[Path, DiskSpeed] = {}

    def clear(self) -> None:
        """Forget the figures, so that the next plan measures again."""
        for figures in (self._sizes, self._prefill, self._first_token, self._disk):
            figures.clear()

    def prefill(self, plan: Plan) -> float:
        """Seconds to prefill a token, in chunks as long as those of `plan`."""
        key, size, rng = _key(plan), self._size(plan), random.Random(0)

        def seconds(chunks: int) -> float:
            return self._seconds_of_prefill(plan.method, [_chunk(plan, size, rng) for _ in range(chunks)])

        if key not in self._prefill:
            chunks, taken = max(_grown(seconds, len(plan.chunks)).items())
            self._prefill[key] = taken / (chunks * size)
        return self._prefill[key]

    def first_token(self, plan: Plan) -> Line:
        """Seconds to the first token after so many chunks in memory.

        For a method without chunks: after so many tokens of documents, which are read with the question.
        """
        question = plan.question
        key = (*_key(plan), len(question.context), len(plan.chunks), len(question.documents))
        if key not in self._first_token:
            work = self._after_chunks(plan) if plan.chunks else self._in_one_row(plan)
            most = len(plan.chunks) or max(sum(map(len, question.documents)), 1)
            work(1)  # warms up
            self._first_token[key] = Line.through(_grown(work, most))
        return self._first_token[key]

    def disk(self, disk: DiskTier, stored: Collection[Path], plan: Plan) -> DiskSpeed:
        """Speed of a store's folder.

        Args:
            stored: files of chunks that are there; what is made up is read where there are none
        """
        if disk.folder not in self._disk:
            chunk = _chunk(plan, self._size(plan), random.Random(1))
            (row,) = self._rows_of(plan.method, [chunk]).values()
            path, read, write = disk.path(chunk.key), list[float](), 0.0
            if disk.writes:
                with suppress(OSError), disk.trying(path, file_bytes(row[0].nbytes, len(chunk))) as fits:
                    write = self._seconds_to_write(path, row, chunk) if fits else 0.0
                    read += [self._seconds_to_read(path)] if fits and not stored else []
            for file in list(stored)[:_FILES]:
                with suppress(OSError, UnusableFile):
                    read.append(self._seconds_to_read(file))
            self._disk[disk.folder] = DiskSpeed(median(read) if read else 0.0, write)
        return self._disk[disk.folder]

    def _seconds_to_write(self, path: Path, row: ChunkRow, chunk: Chunk) -> float:
        """Of a byte."""
        (block, number), taken = row, []
        for _ in range(_REPEATS + 1):
            started = time.perf_counter()
            tensors = {name: tensor[:, number].cpu().contiguous() for name, tensor in block.tensors.items()}
            write_chunk(path, tensors, chunk.row, {})
            taken.append(time.perf_counter() - started)
        return median(taken[1:]) * block.chunks / block.nbytes

    def _seconds_to_read(self, path: Path) -> float:
        """Of a byte, with the checks and the way to the device, by as many threads as a store reads with."""

        def read(_: int) -> None:
            for tensor in read_chunk(path, read_header(path))[0].tensors.values():
                tensor.to(self._device)

        with ThreadPoolExecutor(readers()) as pool:
            seconds = self._timed(lambda: list(pool.map(read, range(readers()))))
        return seconds / readers() / read_header(path).nbytes

    # --- made-up requests ---------------------------------------------------------------------------------------------

    def _size(self, plan: Plan) -> int:
        """Tokens of a made-up chunk: as in `plan`, or fewer if the budget is too small for one."""
        key, size, rng = _key(plan), _size(plan), random.Random(4)
        if key not in self._sizes:
            short = min(size, _SHORTEST)
            for _ in range(2):  # the first one warms up
                taken = self._seconds_of_prefill(plan.method, [_chunk(plan, short, rng)])
            self._sizes[key] = max(short, min(size, int(_BUDGET / taken * short)))
        return self._sizes[key]

    def _seconds_of_prefill(self, method: Method, chunks: Sequence[Chunk]) -> float:
        return self._timed(lambda: self._rows_of(method, chunks))

    def _rows_of(self, method: Method, chunks: Sequence[Chunk]) -> dict[bytes, ChunkRow]:
        prefill = self._prefill_of(method, chunks)
        self._run(Request(prefill))
        return prefill.rows

    def _after_chunks(self, plan: Plan) -> Callable[[int], float]:
        """Seconds to the first token as a function of chunks, all with copies of the keys and values of one."""
        size, rng = self._size(plan), random.Random(2)
        ((block, row),) = self._rows_of(plan.method, [_chunk(plan, size, rng)]).values()
        copies = min(len(plan.chunks), _COPIES)
        many = ChunkBlock.of_tensors(
            {name: of[:, row : row + 1].repeat(1, copies, 1, 1, 1) for name, of in block.tensors.items()}
        )

        def seconds(count: int) -> float:
            chunks = tuple(_chunk(plan, size, rng) for _ in range(count))
            request = self._request(plan, replace(plan.question.with_chunks(chunks), documents=()))
            request.prefill.rows |= {chunk.key: (many, number % copies) for number, chunk in enumerate(chunks)}
            return self._timed(lambda: self._run(request))

        return seconds

    def _in_one_row(self, plan: Plan) -> Callable[[int], float]:
        """Seconds to the first token as a function of the tokens of a document."""
        ids = _ids(plan, max(sum(map(len, plan.question.documents)), 1), random.Random(3))

        def seconds(tokens: int) -> float:
            documents = (TokenizedDocument.of_tokens(ids[:tokens]),) if plan.question.documents else ()
            request = self._request(plan, replace(plan.question, documents=documents))
            return self._timed(lambda: self._run(request))

        return seconds

    def _request(self, plan: Plan, question: TokenizedQuestion) -> QuestionRequest:
        """A question of which only the first token is wanted."""
        layout, chunks = question.layout, question.chunks
        documents = [len(chunk.token_ids) for chunk in chunks] or [len(document) for document in question.documents]
        lengths = measure(layout, documents, layout.lengths(question.context))
        limits = plan.method.limits(lengths.with_chunks([len(chunk) for chunk in chunks]) if chunks else lengths)
        return QuestionRequest(
            Plan(plan.method, chunks, replace(question, new_tokens=1), limits, 1, plan.reason),
            self._prefill_of(plan.method, chunks),
            sampler=Sampler(SamplingConfig(), torch.tensor(question.context.row)),
            stop_tokens=frozenset(),
            text=TextStream(self._tokenizer),
            usage=Usage(0),
        )

    def _prefill_of(self, method: Method, chunks: Sequence[Chunk]) -> ChunkPrefill:
        return ChunkPrefill(Memories(self._device, self._store, ()), method, chunks)

    def _run(self, request: AnyRequest) -> None:
        self._scheduler.add([request])
        for _ in self._scheduler.notices([request]):
            pass

    def _timed(self, work: Callable[[], object]) -> float:
        started = time.perf_counter()
        work()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter() - started


def _size(plan: Plan) -> int:
    """Tokens of a chunk of the plan, without its opening: of most of them, if they are cut after a fixed number."""
    return int(median(len(chunk.token_ids) for chunk in plan.chunks)) if plan.chunks else 0


def _key(plan: Plan) -> tuple[object, ...]:
    """What a speed depends on, besides model and machine."""
    return plan.method.name, plan.question.layout.config, _size(plan)


def _ids(plan: Plan, tokens: int, rng: random.Random) -> list[int]:
    """Tokens that the model surely reads as text: those of the question."""
    return rng.choices(plan.question.context.row, k=tokens)


def _chunk(plan: Plan, tokens: int, rng: random.Random) -> Chunk:
    ids = _ids(plan, tokens, rng)
    opening, kv_dtype = plan.chunks[0].opening, plan.question.layout.config.kv_dtype
    return Chunk(Document(token_ids=ids), 0, tokens, None, ids, opening, kv_dtype=kv_dtype)


def _grown(seconds: Callable[[int], float], most: int) -> dict[int, float]:
    """Seconds by count: for one, and for as many as the budget allows, up to `most`; the median of what is repeated."""
    samples, count, spent = {}, 1, 0.0
    while True:
        samples[count] = seconds(count)
        spent += samples[count]
        affordable = int((_BUDGET - spent) / (samples[count] / count))
        if count == most or affordable <= count:
            break
        count = min(most, affordable)
    runs = [samples[count]]
    while len(runs) < _REPEATS and spent + runs[0] <= _BUDGET:
        runs.append(seconds(count))
        spent += runs[-1]
    return samples | {count: median(runs)}
