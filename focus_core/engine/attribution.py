"""From an answer to its sources: chunks first, then the sentences of those that matter.

What leaving a part of the text out means is the method's (`methods/evidence.py`); every number here is a difference of
log-probabilities of the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from focus_core.engine.places import Place, chunk_places, sentence_places
from focus_core.engine.sources import ChunkLoss, DocumentLoss, Explanation, Role, Source
from focus_core.engine.support import NOTICEABLE, Member, Support, find_support, sufficient
from focus_core.methods.base import TokenizedQuestion
from focus_core.methods.evidence import NO_COST, NOTHING, Cost, Evidence, LeftOut, Passage

SUPPORTED = 5.0  # nats that a supported answer loses without its sources: `benchmarks/sources.py`, docs/sources.md
_DECISIVE = 0.9  # of what the answer loses without a chunk: by the tokens that hold it sentences are told apart
_MOST_REFINED = 4  # chunks whose sentences are told apart

Decode = Callable[[Sequence[int]], str]
Exclusively = Callable[[Callable[[], Tensor]], Tensor]  # runs passes of the model while no other step runs


@dataclass(eq=False)
class Ledger:
    """Losses of one answer, each computed once.

    Attributes:
        cost: of all that was computed
    """

    evidence: Evidence
    exclusively: Exclusively
    cost: Cost = NO_COST
    _known: dict[LeftOut, Tensor] = field(default_factory=dict)
    _screened: dict[tuple[LeftOut, tuple[int, ...]], float] = field(default_factory=dict)

    def token_losses(self, left_out: Sequence[LeftOut]) -> list[Tensor]:
        """Of each token of the answer, without each of these."""
        new = [one for one in dict.fromkeys([NOTHING, *left_out]) if one not in self._known]
        if new:
            self.cost += self.evidence.cost(new)
            found = self.exclusively(lambda: self.evidence.log_probs(new))
            self._known |= dict(zip(new, found, strict=True))
        return [self._known[NOTHING] - self._known[one] for one in left_out]

    def losses(self, left_out: Sequence[LeftOut]) -> list[float]:
        """Of the whole answer."""
        return [float(loss.sum()) for loss in self.token_losses(left_out)]

    def screened(self, left_out: Sequence[LeftOut], tokens: tuple[int, ...]) -> list[float]:
        """Of some tokens of the answer together."""
        new = [one for one in dict.fromkeys(left_out) if one not in self._known and (one, tokens) not in self._screened]
        if new:
            self.cost += self.evidence.cost(new, tokens)
            found = self.exclusively(lambda: self.evidence.log_probs(new, tokens)).sum(-1).tolist()
            self._screened |= {(one, tokens): value for one, value in zip(new, found, strict=True)}

        def log_prob(one: LeftOut) -> float:
            known = self._known.get(one)
            return self._screened[one, tokens] if known is None else float(known[list(tokens)].sum())

        return [log_prob(NOTHING) - log_prob(one) for one in left_out]

    @property
    def log_probs(self) -> Tensor:
        """Of the answer's tokens, with nothing left out."""
        self.token_losses([NOTHING])
        return self._known[NOTHING]


def first_parts(question: TokenizedQuestion) -> list[LeftOut]:
    """What is left out of every answer: nothing, each chunk, all chunks."""
    whole = [Passage(number, 0, len(chunk.token_ids)) for number, chunk in enumerate(question.chunks)]
    return [NOTHING, *(frozenset({passage}) for passage in whole), frozenset(whole)]


def explain(question: TokenizedQuestion, evidence: Evidence, decode: Decode, exclusively: Exclusively) -> Explanation:
    """What an answer owes to its documents.

    Args:
        question: with its answer, and with chunks, or pieces that stand for them; at least one
        decode: tokens to text
        exclusively: runs passes of the model
    """
    evidence.begin()
    ledger, places = Ledger(evidence, exclusively), chunk_places(question)
    parts = first_parts(question)
    *of_chunks, without = ledger.token_losses(parts)[1:]
    losses = [float(loss.sum()) for loss in of_chunks]
    whole = [passage for part in parts[1:-1] for passage in part]
    support = find_support(whole, NOTHING, losses, ledger.losses)
    sources = _sources(question, support, places, ledger, decode)
    return Explanation(
        sources=tuple(sorted(sources, key=lambda source: -source.score)),
        supported=support.loss >= SUPPORTED,
        support=support.loss,
        chunks=tuple(
            ChunkLoss(_documents(of), *_only(of), loss, tuple(tokens.tolist()))
            for of, loss, tokens in zip(places, losses, of_chunks, strict=True)
        ),
        documents=_document_losses(places, losses, support, ledger),
        pieces=tuple(decode([token]) for token in question.generated),
        log_probs=tuple(ledger.log_probs.tolist()),
        without_documents=tuple(without.tolist()),
        cost=ledger.cost,
    )


# --- sources ----------------------------------------------------------------------------------------------------------


def _sources(
    question: TokenizedQuestion, support: Support, places: Sequence[Sequence[Place]], ledger: Ledger, decode: Decode
) -> list[Source]:
    if support.loss < NOTICEABLE:
        return []
    found = list[Source]()
    redundant = {member.unit for member in support.members if member.role == "redundant"}
    for rank, member in enumerate(support.members):
        of_chunk = places[member.unit]
        others = redundant - {member.unit} if member.role == "redundant" else set[int]()
        given = frozenset(_whole(question, other) for other in others)
        sentences = sentence_places(question, of_chunk) if rank < _MOST_REFINED else []
        if len(sentences) > 1:
            found += _sentences(question, member, sentences, given, ledger, decode)
        elif member.score >= NOTICEABLE:
            found.append(_source(question, of_chunk[0], member.score, member.role, decode))
    needed = sum(source.role != "redundant" for source in found) > 1
    return [_with_role(source, needed) for source in found]


def _sentences(
    question: TokenizedQuestion,
    member: Member,
    sentences: Sequence[Place],
    given: LeftOut,
    ledger: Ledger,
    decode: Decode,
) -> list[Source]:
    """The sentences of a chunk that the answer rests on; the whole chunk, if they are too many to be told apart."""
    units = [place.passage for place in sentences]
    asked = _asked_sentences(units, given, _whole(question, member.unit), ledger)
    before = ledger.losses([given])[0]
    necessity = [loss - before for loss in ledger.losses([given | {units[unit]} for unit in asked])]
    support = find_support([units[unit] for unit in asked], given, necessity, ledger.losses)
    found = [
        _source(question, sentences[asked[one.unit]], one.score, _joined_role(member.role, one.role), decode)
        for one in support.members
        if one.score >= NOTICEABLE
    ]
    whole = min(sentences, key=lambda place: place.passage.start)
    return found or [_source(question, whole, member.score, member.role, decode, until=sentences[-1])]


def _asked_sentences(units: Sequence[Passage], given: LeftOut, whole: Passage, ledger: Ledger) -> list[int]:
    """The sentences that may matter, by those tokens of the answer that the chunk decides: others cost and say little.

    A chunk of one sentence is read quickly, a chunk without one is not: the sufficient ones are looked for first.
    """
    with_it, without = ledger.token_losses([given, given | {whole}])
    tokens = decisive(without - with_it)

    def screened(left_out: Sequence[LeftOut]) -> list[float]:
        return ledger.screened(left_out, tokens)

    before, without_all = screened([given, given | {whole}])
    alone = sufficient(units, given, without_all, without_all - before, screened)
    if alone:
        return alone
    losses = screened([given | {unit} for unit in units])
    noticed = [unit for unit, loss in enumerate(losses) if loss - before >= NOTICEABLE / 2]
    return noticed or [max(range(len(units)), key=lambda unit: losses[unit])]


def decisive(losses: Tensor) -> tuple[int, ...]:
    """The tokens of an answer that lose most: as few as hold nearly all that is lost."""
    order = losses.argsort(descending=True).tolist()
    lost, wanted, chosen = 0.0, _DECISIVE * float(losses.clamp(min=0).sum()), list[int]()
    for token in order:
        chosen.append(token)
        lost += float(losses[token])
        if lost >= wanted:
            break
    return tuple(sorted(chosen))


def _source(
    question: TokenizedQuestion, place: Place, score: float, role: Role, decode: Decode, *, until: Place | None = None
) -> Source:
    last = until if until is not None and until.index == place.index else place
    start, end = (None, None) if place.characters is None else (place.characters[0], (last.characters or (0, 0))[1])
    text = place.document.text
    if start is None or text is None:
        tokens = question.chunks[place.passage.chunk].token_ids[place.passage.start : last.passage.stop]
        excerpt = decode(tokens)
    else:
        excerpt = text[start:end]
    document = place.document
    return Source(
        place.index, document.name, start, end, excerpt, score, role, place.passage.chunk, metadata=document.metadata
    )


def _joined_role(of_chunk: Role, of_sentence: Role) -> Role:
    return "redundant" if "redundant" in (of_chunk, of_sentence) else of_sentence


def _with_role(source: Source, needed: bool) -> Source:
    role: Role = "redundant" if source.role == "redundant" else "needed" if needed else "sole"
    return replace(source, role=role)


def _whole(question: TokenizedQuestion, chunk: int) -> Passage:
    return Passage(chunk, 0, len(question.chunks[chunk].token_ids))


# --- chunks and documents ---------------------------------------------------------------------------------------------


def _document_losses(
    places: Sequence[Sequence[Place]], losses: Sequence[float], support: Support, ledger: Ledger
) -> tuple[DocumentLoss, ...]:
    total, names = dict[int, float](), dict[int, str | None]()
    members = {member.unit for member in support.members}
    for number, of_chunk in enumerate(places):
        shared = len(of_chunk) > 1
        if shared and number in members and support.loss >= NOTICEABLE:
            own = ledger.losses([frozenset({place.passage}) for place in of_chunk])
        else:
            own = [0.0 if shared else losses[number]] * len(of_chunk)
        for place, loss in zip(of_chunk, own, strict=True):
            total[place.index] = total.get(place.index, 0.0) + loss
            names[place.index] = place.document.name
    return tuple(DocumentLoss(index, names[index], loss) for index, loss in sorted(total.items()))


def _documents(of_chunk: Sequence[Place]) -> tuple[int, ...]:
    return tuple(place.index for place in of_chunk)


def _only(of_chunk: Sequence[Place]) -> tuple[int | None, int | None]:
    """The characters of a chunk of one document."""
    characters = of_chunk[0].characters if len(of_chunk) == 1 else None
    return characters or (None, None)
