"""From an answer to its sources: chunks first, then the sentences of those that matter.

What leaving a part of the text out means is the method's (`methods/evidence.py`); every number here is a difference of
log-probabilities of the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from focus_core.engine.groups import Group, GroupSearch, chunk_groups, first_parts, halved
from focus_core.engine.ledger import Exclusively, Ledger, decisive, lost
from focus_core.engine.places import Place, chunk_places, sentence_places
from focus_core.engine.sources import ChunkLoss, DocumentLoss, Explanation, GroupLoss, Role, Source
from focus_core.engine.support import NOTICEABLE, EachPassage, Member, Support, find_support, restoring_a_token
from focus_core.methods.base import TokenizedQuestion
from focus_core.methods.evidence import NOTHING, Cost, Evidence, LeftOut, Passage, whole_chunk, whole_chunks

SUPPORTED = 5.0  # nats that a supported answer loses without its sources: `benchmarks/sources.py`, docs/sources.md
_TOLD = 0.9  # of what is unlikely about an answer: if documents explain so much, they tell it, however many of them do
_MOST_REFINED = 4  # chunks whose sentences are told apart

Decode = Callable[[Sequence[int]], str]


def first_cost(question: TokenizedQuestion, evidence: Evidence, *, every_chunk: bool) -> Cost:
    """What the first losses of an answer take: nothing left out, each chunk or each group, all chunks."""
    places = chunk_places(question)
    units = whole_chunks(question.chunks)
    groups = chunk_groups(units, [_documents(of) for of in places], evidence, every_chunk=every_chunk)
    return evidence.cost(first_parts(units, groups))


def explain(
    question: TokenizedQuestion,
    evidence: Evidence,
    decode: Decode,
    exclusively: Exclusively,
    *,
    every_chunk: bool,
    sentences: bool,
    least_explained: float,
) -> Explanation:
    """What an answer owes to its documents.

    Args:
        question: with its answer, and with chunks, or pieces that stand for them; at least one
        decode: tokens to text
        exclusively: runs passes of the model
        every_chunk: each chunk is left out by itself, also of a long text
        sentences: those of the best chunks are told apart
        least_explained: what a supported answer has of `Explanation.explained`
    """
    evidence.begin()
    ledger, places, units = Ledger(evidence, exclusively), chunk_places(question), whole_chunks(question.chunks)
    groups = chunk_groups(units, [_documents(of) for of in places], evidence, every_chunk=every_chunk)
    search = GroupSearch(units, groups, ledger)
    (without,) = ledger.token_losses([frozenset(units)])
    explained = _explained(ledger.log_probs, without)
    told = explained >= max(least_explained, _TOLD)
    support = find_support(units, NOTHING, search, ledger.token_losses, told=told)
    together = [
        GroupLoss(chunks, float(losses.sum()), tuple(losses.tolist())) for chunks, losses in search.left_together()
    ]
    chunks = _chunk_losses(units, places, together, ledger)
    cost_of_chunks = ledger.cost
    refinement = _Refinement(question, places, ledger, decode, told)
    sources = refinement.sources(support, refined=_MOST_REFINED if sentences else 0)
    return Explanation(
        sources=tuple(sorted(sources, key=lambda source: -source.score)),
        supported=support.loss >= SUPPORTED and explained >= least_explained,
        support=support.loss,
        explained=explained,
        chunks=tuple(chunks),
        groups=tuple(together),
        documents=_document_losses(places, chunks, together, support, ledger),
        pieces=tuple(decode([token]) for token in question.generated),
        log_probs=tuple(ledger.log_probs.tolist()),
        without_documents=tuple(without.tolist()),
        cost=ledger.cost,
        cost_of_chunks=cost_of_chunks,
    )


def _explained(log_probs: Tensor, without_documents: Tensor) -> float:
    """Args:
    log_probs: of the answer's tokens, with nothing left out
    without_documents: what they lose without any document
    """
    told, unlikely = lost(without_documents), -float(log_probs.sum())
    return told / (told + unlikely) if told else 0.0


# --- sources ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Refinement:
    """From the chunks that an answer rests on to documents and sentences in them.

    Args:
        told: the documents explain the answer
    """

    question: TokenizedQuestion
    places: Sequence[Sequence[Place]]
    ledger: Ledger
    decode: Decode
    told: bool

    def sources(self, support: Support, *, refined: int) -> list[Source]:
        """Args:
        refined: chunks whose sentences are told apart, the best first
        """
        if support.loss < NOTICEABLE:
            return []
        found = list[Source]()
        redundant = {member.unit for member in support.members if member.role == "redundant"}
        for rank, member in enumerate(support.members):
            others = redundant - {member.unit} if member.role == "redundant" else set[int]()
            given = frozenset(whole_chunk(self.question.chunks, other) for other in others)
            found += self._of_chunk(member, given, sentences=rank < refined)
        needed = sum(source.role != "redundant" for source in found) > 1
        return [_with_role(source, needed) for source in found]

    def _of_chunk(self, member: Member, given: LeftOut, *, sentences: bool) -> list[Source]:
        """The sentences of a chunk that the answer rests on, or its documents; all, if these are not told apart."""
        documents = self.places[member.unit]
        parts = sentence_places(self.question, documents) if sentences else documents
        found = list[Source]()
        if len(parts) > 1:
            whole = whole_chunk(self.question.chunks, member.unit)
            asked = _asked_parts([place.passage for place in parts], given, whole, self.ledger)
            found = self._told_apart(member, parts, asked, given)
        elif member.score < NOTICEABLE:
            return []
        if not found and len(documents) > 1:
            found = self._told_apart(member, documents, range(len(documents)), given)
        return found or [_source(self.question, one, member.score, member.role, self.decode) for one in documents]

    def _told_apart(self, member: Member, parts: Sequence[Place], asked: Sequence[int], given: LeftOut) -> list[Source]:
        """Those of some parts of a chunk on which the answer rests."""
        if not asked:
            return []
        units, losses = [parts[part].passage for part in asked], self.ledger.token_losses
        support = find_support(units, given, EachPassage(units, given, losses), losses, told=self.told)
        return [
            _source(self.question, parts[asked[one.unit]], one.score, _joined_role(member.role, one.role), self.decode)
            for one in support.members
            if one.score >= NOTICEABLE
        ]


def _asked_parts(units: Sequence[Passage], given: LeftOut, whole: Passage, ledger: Ledger) -> list[int]:
    """The parts of a chunk that may matter, by those tokens of the answer that it decides: others cost and say little.

    A chunk of one sentence is read quickly, a chunk without one is not: what a sentence restores is asked first. Where
    none restores anything, the chunk is read without its halves, and only halves that matter are halved again.
    """
    with_it, without = ledger.token_losses([given, given | {whole}])
    tokens = decisive(without - with_it)

    def screened(left_out: Sequence[LeftOut]) -> list[Tensor]:
        return ledger.screened(left_out, tokens)

    before, without_all = screened([given, given | {whole}])
    alone = restoring_a_token(units, given, without_all, without_all - before, screened)
    if alone:
        return alone

    def lost_by(groups: Sequence[Group]) -> list[float]:
        left_out = [given | {units[unit] for unit in group} for group in groups]
        return [lost(loss, before) for loss in screened(left_out)]

    return halved([tuple(range(len(units)))], lost_by, NOTICEABLE / 2)


def _source(question: TokenizedQuestion, place: Place, score: float, role: Role, decode: Decode) -> Source:
    document, passage = place.document, place.passage
    make = partial(Source, place.index, document.name, metadata=document.metadata)
    if place.characters is None or document.text is None:
        tokens = question.chunks[passage.chunk].token_ids[passage.start : passage.stop]
        return make(None, None, decode(tokens), score, role, passage.chunk)
    own = document.own_characters(*place.characters)
    if own is None:  # a template's
        return make(None, None, document.text[slice(*place.characters)], score, role, passage.chunk)
    start, end = _stripped(document.text, *own)
    first, _ = document.own_span
    page = document.page_at(start)
    return make(start - first, end - first, document.text[start:end], score, role, passage.chunk, page=page)


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """The characters without white space around them, unless nothing else is there."""
    passage = text[start:end]
    words = passage.strip()
    start += len(passage) - len(passage.lstrip()) if words else 0
    return start, start + len(words or passage)


def _joined_role(of_chunk: Role, of_part: Role) -> Role:
    return "redundant" if "redundant" in (of_chunk, of_part) else of_part


def _with_role(source: Source, needed: bool) -> Source:
    role: Role = "redundant" if source.role == "redundant" else "needed" if needed else "sole"
    return replace(source, role=role)


# --- chunks and documents ---------------------------------------------------------------------------------------------


def _chunk_losses(
    units: Sequence[Passage], places: Sequence[Sequence[Place]], together: Sequence[GroupLoss], ledger: Ledger
) -> list[ChunkLoss]:
    group_of = {chunk: number for number, group in enumerate(together) for chunk in group.chunks}
    found = list[ChunkLoss]()
    for chunk, of_chunk in enumerate(places):
        where = (_documents(of_chunk), *_only(of_chunk))
        if chunk in group_of:
            found.append(ChunkLoss(*where, None, group=group_of[chunk]))
        else:
            (losses,) = ledger.token_losses([frozenset({units[chunk]})])
            found.append(ChunkLoss(*where, float(losses.sum()), tuple(losses.tolist())))
    return found


def _document_losses(
    places: Sequence[Sequence[Place]],
    chunks: Sequence[ChunkLoss],
    together: Sequence[GroupLoss],
    support: Support,
    ledger: Ledger,
) -> tuple[DocumentLoss, ...]:
    total, unknown = dict[int, float](), set[int]()
    names = {place.index: place.document.name for of_chunk in places for place in of_chunk}
    members = {member.unit for member in support.members}
    for number, (of_chunk, chunk) in enumerate(zip(places, chunks, strict=True)):
        if chunk.loss is None:
            continue
        shared = len(of_chunk) > 1
        if shared and number in members and support.loss >= NOTICEABLE:
            own = ledger.losses([frozenset({place.passage}) for place in of_chunk])
        else:
            own = [0.0 if shared else chunk.loss] * len(of_chunk)
        for place, loss in zip(of_chunk, own, strict=True):
            total[place.index] = total.get(place.index, 0.0) + loss
    for group in together:
        first, *others = {place.index for chunk in group.chunks for place in places[chunk]}
        total[first] = total.get(first, 0.0) + group.loss
        unknown |= {first, *others} if others else set()
    return tuple(
        DocumentLoss(index, names[index], None if index in unknown else total[index]) for index in sorted(names)
    )


def _documents(of_chunk: Sequence[Place]) -> tuple[int, ...]:
    return tuple(place.index for place in of_chunk)


def _only(of_chunk: Sequence[Place]) -> tuple[int | None, int | None]:
    """The characters of a chunk of one document."""
    characters = of_chunk[0].characters if len(of_chunk) == 1 else None
    return characters or (None, None)
