"""What a question about documents will take, before anything is read: chunks, bytes, seconds, and whether it fits."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from focus_core.cache.chunk_file import ChunkHeader
from focus_core.cache.disk import DiskTier, file_bytes
from focus_core.cache.keys import ChunkKey
from focus_core.cache.planner import TierPlan
from focus_core.cache.store import HostTier
from focus_core.engine.calibration import Calibration
from focus_core.engine.memory_plan import Memories
from focus_core.engine.planning import Outline
from focus_core.errors import FocusError, shown_bytes
from focus_core.methods.base import Method, Plan
from focus_core.text.chunking import Chunk
from focus_core.text.documents import TokenIds

_MOST_PARTS = 100_000  # of texts known by their length alone; more chunks are planned in so many equal parts


@dataclass(frozen=True)
class Share:
    """Some of the chunks; one that occurs twice is read and held once.

    Attributes:
        tokens: as `Usage` counts them, without what the layout puts in front of a chunk
        nbytes: of keys and values in memory
    """

    chunks: int = 0
    tokens: int = 0
    nbytes: int = 0


@dataclass(frozen=True)
class FolderPlan:
    """What the folder of a store has to do with it.

    Attributes:
        there_bytes: keys and values in files of these chunks, also of those that are in memory
        write_bytes: files that the reading would write, at most
        remove_bytes: files of other chunks that would give way
        lacking_bytes: by how much the limit is too small for all that would be written; what does not fit is read
            anew by the next process
    """

    folder: str
    limit_bytes: int
    there_bytes: int
    write_bytes: int
    remove_bytes: int
    lacking_bytes: int


@dataclass(frozen=True)
class HostPlan:
    """What host memory has to do with it, where the device has a memory of its own.

    Attributes:
        limit_bytes: what it may hold
        take_bytes: keys and values that it would take besides those that are there
        evict_bytes: of other documents that would be evicted
        copies_bytes: bytes of the device for copies of streamed chunks
    """

    limit_bytes: int
    take_bytes: int
    evict_bytes: int
    copies_bytes: int


@dataclass(frozen=True)
class FirstToken:
    """Seconds to the first token, with the model loaded and the documents tokenized.

    With select at most so many: how many chunks are read again, up to `select_tokens`, shows when they are scored.

    Attributes:
        now: with the chunks that are there
        cold: if none were
        prepared: if all of them were in memory
    """

    now: float
    cold: float
    prepared: float


@dataclass(frozen=True, repr=False)
class ReadingPlan:
    """What `FocusEngine.plan` returns. Printing it shows a table.

    Attributes:
        documents: how many
        tokens: of all documents, or of the part of one long prompt that is read in chunks
        question_tokens: of the question with its template
        method: the method that answers, as in `methods.table.METHODS`
        reason: why this one
        chunks: of the documents; 0 where documents and question are read in one row
        in_memory: chunks that are there
        in_host: chunks that are in host memory
        on_disk: chunks that are loaded from the folder
        to_read: chunks that the model reads; without chunks, all of the documents
        streamed: of these, the chunks that the device has no bytes for: they stay in host memory, and every pass copies
            them to the device, a few at a time
        prompt_bytes: keys and values of question and answer
        pass_bytes: about what the largest pass takes besides, while it runs
        free_bytes: free memory of the device
        evict_bytes: keys and values of other documents that would give way
        lacking_bytes: bytes for which the device has no room
        positions_left: positions that the window leaves for question and answer
        answer_tokens: tokens that the answer may have; 0 if there is no room for any
        store_bytes: what may stay in memory for the next question; `None` where nobody said
        host: host memory, where it is another one than the device's
        folder: of the store, if there is one
        first_token: if the machine was measured
        problem: why it does not fit, and what to change; `None` if it fits
    """

    documents: int
    tokens: int
    question_tokens: int
    method: str
    reason: str
    chunks: int
    in_memory: Share
    on_disk: Share
    to_read: Share
    prompt_bytes: int
    free_bytes: int
    evict_bytes: int
    lacking_bytes: int
    positions_left: int
    answer_tokens: int
    pass_bytes: int = 0
    in_host: Share = Share()
    streamed: Share = Share()
    store_bytes: int | None = None
    host: HostPlan | None = None
    folder: FolderPlan | None = None
    first_token: FirstToken | None = None
    problem: str | None = None

    @property
    def cache_bytes(self) -> int:
        """Keys and values of the documents."""
        return sum(share.nbytes for share in (self.in_memory, self.in_host, self.on_disk, self.to_read))

    @property
    def needed_bytes(self) -> int:
        """All keys and values that the device holds for the question, copies of streamed ones included."""
        return self.cache_bytes - self.streamed.nbytes + self.prompt_bytes + self._copies_bytes

    @property
    def peak_bytes(self) -> int:
        """About the most that the question takes of the device at any time."""
        return self.needed_bytes + self.pass_bytes

    @property
    def _copies_bytes(self) -> int:
        return self.host.copies_bytes if self.host is not None and self.streamed.chunks else 0

    @property
    def unkept_bytes(self) -> int:
        """Keys and values that do not stay in memory, and are read or loaded again for the next question."""
        if not self.chunks or self.store_bytes is None:
            return 0
        return max(self.cache_bytes - self.store_bytes - (self.host.limit_bytes if self.host else 0), 0)

    @property
    def fits(self) -> bool:
        """Whether the question can be asked."""
        return self.problem is None

    def __repr__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        plural = "" if self.documents == 1 else "s"
        how = f"{self.chunks:,} chunks" if self.chunks else "one row with the question"
        yield f"{self.documents} document{plural}, {self.tokens:,} tokens: {how}, method {self.method}."
        yield f"Method: {self.reason}."
        yield f"\n{'':12}{'chunks':>10}{'tokens':>14}{'keys and values':>20}"
        shares = {"in memory": self.in_memory, "on disk": self.on_disk, "to be read": self.to_read}
        if self.host is not None:
            shares = {"on device": shares.pop("in memory"), "in host": self.in_host, **shares}
        for name, share in shares.items():
            yield f"{name:12}{share.chunks:>10,}{share.tokens:>14,}{shown_bytes(share.nbytes):>20}"
        resident = self.cache_bytes - self.streamed.nbytes
        yield (
            f"\nDevice: {shown_bytes(resident)} of documents, up to {shown_bytes(self.prompt_bytes)} of question and "
            f"answer, some {shown_bytes(self.pass_bytes)} while a pass runs; {shown_bytes(self.free_bytes)} are free."
        )
        if self.evict_bytes:
            yield f"        {shown_bytes(self.evict_bytes)} of other documents give way."
        if self.unkept_bytes:
            yield (
                f"        {shown_bytes(self.unkept_bytes)} of documents are over the budget for what stays in memory "
                f"({shown_bytes(self.store_bytes or 0)}). Raise store_bytes to keep them for the next question."
            )
        if self.host is not None and self.streamed.chunks:
            yield from _host_lines(self.host, self.streamed)
        if self.folder is not None:
            yield from _folder_lines(self.folder)
        if self.first_token is not None:
            seconds, most = self.first_token, "at most " if self.method == "select" else ""
            yield (
                f"First token: after {most}{shown_seconds(seconds.now)} now, {shown_seconds(seconds.cold)} cold, "
                f"{shown_seconds(seconds.prepared)} prepared in memory."
            )
        yield "It fits." if self.fits else f"It does not fit. {self.problem}"


def _host_lines(host: HostPlan, streamed: Share) -> Iterator[str]:
    yield (
        f"Host:   {shown_bytes(streamed.nbytes)} of documents ({streamed.chunks:,} chunks) do not fit the device and "
        f"stay in host memory, of which {shown_bytes(host.limit_bytes)} may be taken (host_bytes)."
    )
    yield (
        f"        Every token of the answer copies them to the device, a few chunks at a time; the copies take "
        f"{shown_bytes(host.copies_bytes)} there. Seconds are not estimated."
    )
    if host.evict_bytes:
        yield f"        {shown_bytes(host.evict_bytes)} of other documents are evicted from host memory."


def _folder_lines(folder: FolderPlan) -> Iterator[str]:
    yield (
        f"Store:  {shown_bytes(folder.there_bytes)} are there, up to {shown_bytes(folder.write_bytes)} would be "
        f"written; the limit is {shown_bytes(folder.limit_bytes)}."
    )
    if folder.remove_bytes:
        yield f"        {shown_bytes(folder.remove_bytes)} of other documents give way."
    if folder.lacking_bytes:
        yield f"        {shown_bytes(folder.lacking_bytes)} are over the limit and not kept. Raise store_limit."


def shown_seconds(seconds: float) -> str:
    """For people."""
    return f"{seconds:,.0f} s" if seconds >= 100 else f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.2f} s"


# --- from lengths alone -----------------------------------------------------------------------------------------------


def plan_of_lengths(
    outline: Outline, documents: Sequence[int], question: int, positions_left: int, memories: Memories
) -> ReadingPlan:
    """The plan for documents of which only the numbers of tokens are known, so that none of them is there.

    Args:
        outline: of a question of `question` tokens
    """
    method, limits, tokens = outline.method, outline.limits, sum(documents)
    appended = limits.appended_tokens(outline.new_tokens)
    nbytes = method.chunk_bytes(outline.chunks, limits.chunk_tokens)
    share = Share(outline.chunks, tokens, nbytes if outline.chunks else tokens * method.bytes_per_token)
    # Chunks are planned one by one only where some of them may lie elsewhere than on the device.
    parts = min(outline.chunks, 1 if memories.store.host is None else _MOST_PARTS)
    sizes = {str(number).encode(): of for number, of in enumerate(_equal_parts(nbytes, parts))}
    tiers = memories.plan(method, sizes, held={}, in_host={}, appended_tokens=appended)
    streamed = Share(
        len(tiers.streamed) * outline.chunks // max(parts, 1), 0, sum(sizes[key] for key in tiers.streamed)
    )
    if streamed.chunks:
        streamed = replace(streamed, tokens=tokens * streamed.nbytes // nbytes)
    missing = limits.chunk_tokens + appended
    made = _reading_plan(outline, tiers, memories, positions_left, documents, question, missing, to_read=share)
    return replace(made, streamed=streamed)


def _equal_parts(nbytes: int, parts: int) -> list[int]:
    return [nbytes * (part + 1) // parts - nbytes * part // parts for part in range(parts)]


# --- from documents ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Whereabouts:
    """Where the chunks of a plan are, without using any of them.

    Attributes:
        chunks: each once, by its key
        stored: headers of the files of these chunks
    """

    chunks: Mapping[ChunkKey, Chunk]
    stored: Mapping[ChunkKey, ChunkHeader]
    tiers: TierPlan

    @classmethod
    def of(cls, plan: Plan, memories: Memories) -> Whereabouts:
        """As `ChunkPrefill` would find them."""
        chunks, method = {chunk.key: chunk for chunk in plan.chunks}, plan.method

        def tokens_of(key: ChunkKey) -> TokenIds:
            return chunks[key].row

        held, in_host, stored = memories.store.look(chunks, tokens_of, layers=method.cached_layers)
        sizes = {key: method.chunk_bytes(1, len(chunk)) for key, chunk in chunks.items()}
        appended = plan.limits.appended_tokens(plan.new_tokens)
        planned = memories.plan(method, sizes, held=held, in_host=in_host, disk=stored, appended_tokens=appended)
        if planned.lacking and memories.store.host is not None and held:
            there = {**held, **in_host}
            moved = memories.plan_moved(method, sizes, there, disk=stored, appended_tokens=appended)
            planned = planned if moved.lacking else moved
        return cls(chunks, stored, planned)

    def share(self, keys: Collection[ChunkKey], method: Method) -> Share:
        """Some of the chunks."""
        chunks = [self.chunks[key] for key in keys]
        tokens = sum(len(chunk.token_ids) for chunk in chunks)
        return Share(len(chunks), tokens, method.chunk_bytes(len(chunks), sum(map(len, chunks))))

    def file_bytes(self, keys: Collection[ChunkKey], method: Method) -> int:
        """Bytes of the files of some chunks, once they are written, at most."""
        lengths = [len(self.chunks[key]) for key in keys]
        return sum(file_bytes(method.chunk_bytes(1, length), length) for length in lengths)


def plan_of_documents(
    plan: Plan,
    found: Whereabouts,
    memories: Memories,
    *,
    positions_left: int,
    refused: FocusError | None,
) -> ReadingPlan:
    """The plan for documents whose chunks are known.

    Args:
        refused: why the question cannot be asked at all
    """
    method, question, store = plan.method, plan.question, memories.store
    shares = {
        "in_memory": found.share(found.tiers.held, method),
        "in_host": found.share(found.tiers.raised, method),
        "streamed": found.share(found.tiers.streamed, method),
        "on_disk": found.share(found.tiers.load, method),
        "to_read": found.share(found.tiers.prefill, method),
    }
    lengths = [len(document) for document in question.documents]
    if not plan.chunks:
        shares["to_read"] = Share(0, sum(lengths), sum(lengths) * method.bytes_per_token)
    missing = sum(len(found.chunks[key]) for key in (*found.tiers.missing, *found.tiers.raised))
    missing += plan.limits.appended_tokens(plan.new_tokens)
    asked = len(question.context)
    made = _reading_plan(
        plan, found.tiers, memories, positions_left, lengths, asked, missing, refused=refused, **shares
    )
    folder = None if store.disk is None else _folder_plan(store.disk, found, method)
    return replace(made, store_bytes=store.memory.budget, folder=folder)


def timed(
    planned: ReadingPlan, plan: Plan, found: Whereabouts, calibration: Calibration, disk: DiskTier | None
) -> ReadingPlan:
    """The same with seconds, for which the machine is measured if it was not before."""
    first = calibration.first_token(plan)(len(plan.chunks) or max(planned.tokens, 1))
    if not plan.chunks:
        return replace(planned, first_token=FirstToken(first, first, first))
    each, read, write = calibration.prefill(plan), 0.0, 0.0
    if disk is not None:
        speed = calibration.disk(disk, [disk.path(key) for key in found.stored], plan)
        read, write = speed.read, speed.write if disk.writes else 0.0
    everything = found.share(found.chunks, plan.method)
    now = planned.to_read.tokens * each + planned.to_read.nbytes * write + planned.on_disk.nbytes * read
    cold = everything.tokens * each + everything.nbytes * write
    return replace(planned, first_token=FirstToken(first + now, first + cold, first))


def _host_plan(host: HostTier, tiers: TierPlan) -> HostPlan:
    return HostPlan(host.budget, tiers.host_needed, tiers.host_room.evict, tiers.in_flight)


def _folder_plan(disk: DiskTier, found: Whereabouts, method: Method) -> FolderPlan:
    write = found.file_bytes(found.tiers.prefill, method) if disk.writes else 0
    room = disk.room_for(write, found.chunks)
    there = sum(header.nbytes for header in found.stored.values())
    return FolderPlan(str(disk.folder), disk.limit, there, write, room.evict, room.lacking)


def _reading_plan(
    plan: Plan | Outline,
    tiers: TierPlan,
    memories: Memories,
    positions_left: int,
    documents: Sequence[int],
    question: int,
    missing: int,
    *,
    in_memory: Share = Share(),
    in_host: Share = Share(),
    on_disk: Share = Share(),
    to_read: Share = Share(),
    streamed: Share = Share(),
    refused: FocusError | None = None,
) -> ReadingPlan:
    limits, per_token = plan.limits, plan.method.bytes_per_token
    host = memories.store.host
    in_row = 0 if plan.chunks else sum(documents)  # of the appended tokens, those of documents
    problem = refused or _problem(plan)
    if problem is None and tiers.lacking:
        problem = memories.lack(tiers, what=f"{missing} tokens")
    return ReadingPlan(
        documents=len(documents),
        tokens=sum(documents) or sum(share.tokens for share in (in_memory, in_host, on_disk, to_read)),
        question_tokens=question,
        method=plan.method.name,
        reason=plan.reason,
        chunks=plan.chunks if isinstance(plan, Outline) else len(plan.chunks),
        in_memory=in_memory,
        in_host=in_host,
        streamed=streamed,
        on_disk=on_disk,
        to_read=to_read,
        prompt_bytes=(limits.appended_tokens(plan.new_tokens) - in_row) * per_token,
        free_bytes=memories.free,
        evict_bytes=tiers.room.evict,
        lacking_bytes=tiers.lacking,
        host=None if host is None else _host_plan(host, tiers),
        positions_left=positions_left,
        answer_tokens=max(min(limits.positions_left, plan.new_tokens), 0),
        problem=None if problem is None else str(problem),
    )


def _problem(plan: Plan | Outline) -> FocusError | None:
    try:
        plan.limits.check(plan.new_tokens)
    except FocusError as error:
        return error
    return None
