"""Step 3a: long documents in chunks with questions about them, and the steps of decoding to be learned from them."""

from __future__ import annotations

import math
import random
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Self

import torch
from torch.utils.data import IterableDataset

from focus_core.evaluation import facts
from recipes.embedded_model.data import (
    CONTINUATION_WEIGHT,
    DECIDING_WEIGHTS,
    NAMING_WEIGHT,
    PAIR_WEIGHT,
    Row,
    Sampler,
    Stage,
)

TOKENS = 5120  # of a batch's documents with the questions after every chunk
LARGE = 400  # tokens: chunks of this size and more are as hard as those that the model is used with
LARGE_SHARE = 0.5
MANY_SHARE = 0.12  # of the batches: a memory as long as that of a long document, of small chunks
MANY_TOKENS = 12288  # of such a batch
MANY_SLOTS = 480  # the candidates of about 400,000 tokens
SLOTS_SHARE = 0.3  # of the batches: chunks without an answer stand in the memory again and again, up to `MANY_SLOTS`
NEAR_MISS_SHARE = 0.5  # of the documents of facts: with sentences that share a word with one of them
NEAR_MISSES = 6  # of them in a document, at most
LIST_SHARE = 0.2  # of the documents of facts: nothing but `key: value` lines
_DRAWS = 50  # of sentences, until one has a verb
STEPS = 84  # rows of local context in a batch
WINDOW_ROWS = (Stage(0, 256, 8, 6), Stage(0, 512, 20, 3), Stage(0, 1024, 30, 2))


@dataclass
class Asked:
    """A question, and which tokens of the document (first, last) hold its answer."""

    row: Row
    source: tuple[int, int]
    sought_from: int  # first token of the answer that only the document can tell


@dataclass(frozen=True)
class Asks:
    """How much is asked about a document: facts and passages, at most, and whether of a crowd of facts."""

    facts: int
    passages: int
    crowd: float = 0.0  # share of the documents that hold at least eight facts


Drawn = tuple[list[int], list[Asked]]  # a document's tokens, and the questions about it
Maker = Callable[..., Drawn]
SOME, OF_LARGE_CHUNKS, OF_MANY_CHUNKS = Asks(4, 5), Asks(10, 8, crowd=0.5), Asks(2, 1)


def chunked_pairs(sampler: Sampler, rng: random.Random, tokens: int) -> Drawn:
    """Random keys with values as a document, and some of the keys as questions."""
    row = sampler.random_pairs(rng, 2 * tokens)
    starts = [i for i, token in enumerate(row.ids) if token == sampler.bos] + [len(row.ids)]
    document, asked = row.ids[1 : starts[1]], []
    for a, b in pairwise(starts[1:]):
        found = _find(document, row.ids[a + 1 : b])
        if found is not None:
            first = next(i for i, w in enumerate(row.weights[a:b]) if w)
            asked.append(Asked(Row(row.ids[a:b], row.weights[a:b]), (found, found + b - a - 2), first))
    return document, rng.sample(asked, min(len(asked), 8))


def chunked_repeats(sampler: Sampler, rng: random.Random, tokens: int) -> Drawn:
    """Random tokens as a document, some pieces of it as questions."""
    piece = [rng.randrange(3, sampler.vocab_size) for _ in range(tokens)]
    asked = []
    for _ in range(6):
        start, lead, run = rng.randrange(max(1, tokens - 20)), rng.randint(2, 8), rng.randint(4, 16)
        given, then = piece[start : start + lead], piece[start + lead : start + lead + run]
        row = Row([sampler.bos, *given], [0.0] * (1 + len(given)))
        row.add(then, CONTINUATION_WEIGHT)
        asked.append(Asked(row, (start, start + len(given) + len(then) - 1), 1 + len(given)))
    return piece, asked


def _find(document: list[int], piece: list[int]) -> int | None:
    for i in range(len(document) - len(piece) + 1):
        if document[i] == piece[0] and document[i : i + len(piece)] == piece:
            return i
    return None


def text_document(sampler: Sampler, rng: random.Random, tokens: int, asks: Asks = SOME) -> Drawn:
    """A document with facts in it, and questions about it."""
    count = rng.choice((1, 2, rng.randint(2, 6), rng.randint(6, 24)))
    if rng.random() < asks.crowd:
        count = rng.randint(8, 24)
    count = max(1, min(count, tokens // 26))
    made = sampler.facts(rng, count)
    hidden = sum(60 if fact.kind == "fact" else 25 for fact in made)
    chars = max(rng.randint(20, 200), round(tokens * 2.9) - hidden)
    places = sampler.places(rng, len(made)) if rng.random() < 0.2 else None
    filler = sampler.filler(rng, chars)
    if made and rng.random() < NEAR_MISS_SHARE:
        for _ in range(rng.randint(1, NEAR_MISSES)):
            filler.insert(rng.randint(0, len(filler)), near_miss(sampler, rng, rng.choice(made)))
    document = facts.hide(made, filler, rng, places)
    encoding = sampler.encoder.encode(document.text, add_special_tokens=False)
    ids = encoding.ids[:tokens]
    ends = [b for _, b in encoding.offsets[:tokens]]
    spans = {
        f: (bisect_right(ends, a), bisect_left(ends, b))
        for f, (a, b) in zip(document.facts, document.spans, strict=True)
        if b <= ends[-1]
    }
    chosen = rng.sample(list(spans), min(len(spans), asks.facts))
    asked = [_asked(sampler, rng, fact, spans[fact]) for fact in chosen]
    for _ in range(asks.passages):
        found = _passage(sampler, rng, ids)
        if found:
            asked.append(found)
    if not asked:
        return text_document(sampler, rng, tokens, asks)
    return ids, asked


def near_miss(sampler: Sampler, rng: random.Random, fact: facts.Fact) -> str:
    """A sentence that says something else of a word of the fact, as "the key was too small" of a pass key."""
    word = rng.choice([word for word in f"{fact.attribute} {fact.entity}".split() if word != "the"])
    sentences = rng.choices(sampler.texts, sampler.sizes)[0]
    for sentence in rng.choices(sentences, k=_DRAWS):
        said = re.search(r" (is|was|had been|would be) .*", sentence)
        if said:
            return f"{rng.choice(sampler.plain_words).capitalize()} the {word}{said[0]}"
    return f"{rng.choice(sampler.plain_words).capitalize()} the {word} was {rng.choice(sampler.plain_words)}."


def list_document(sampler: Sampler, rng: random.Random, tokens: int) -> Drawn:
    """Nothing but `key: value` lines, and some of the keys as questions."""
    lines = facts.key_values(rng, max(4, tokens // 5))
    text = "".join(f"{fact.entity}: {fact.value}\n" for fact in lines)
    encoding = sampler.encoder.encode(text, add_special_tokens=False)
    ends = [b for _, b in encoding.offsets[:tokens]]
    asked, start = [], 0
    for fact in lines:
        end = start + len(f"{fact.entity}: {fact.value}")
        if end <= ends[-1]:
            asked.append((fact, (bisect_right(ends, start), bisect_left(ends, end))))
        start = end + 1
    chosen = rng.sample(asked, min(len(asked), 10))
    return encoding.ids[:tokens], [_asked(sampler, rng, fact, source) for fact, source in chosen]


def _asked(sampler: Sampler, rng: random.Random, fact: facts.Fact, source: tuple[int, int]) -> Asked:
    prompt, answer, weight = sampler.task(rng, fact, "")
    row = Row([sampler.bos, *prompt], [0.0] * (len(prompt) + 1))
    row.add(answer, weight)
    sampler.stress(row, answer, fact)
    deciding = next(i for i, w in enumerate(row.weights) if w == DECIDING_WEIGHTS[0])
    return Asked(row, source, deciding - (row.ids[deciding - 1] == sampler.space))


def _passage(sampler: Sampler, rng: random.Random, ids: list[int]) -> Asked | None:
    """A piece of `ids` to be continued; without the space before it, so that its first tokens may be other ones."""
    lead, run = rng.randint(6, 24), rng.randint(6, 16)
    at = rng.randrange(max(1, len(ids) - lead - run))
    piece = ids[at : at + lead + run]
    again = sampler.encode(sampler.encoder.decode(piece).lstrip())
    if len(piece) < lead + run or again[-run - 3 :] != piece[-run - 3 :]:
        return None
    row = Row([sampler.bos, *again[:-run]], [0.0] * (1 + len(again) - run))
    row.add(again[-run:], CONTINUATION_WEIGHT)
    return Asked(row, (at, at + len(piece) - 1), 1 + len(again) - run)


@dataclass
class Tensors:
    """Tensors that go from device to device together."""

    def to(self, device: str) -> Self:
        return replace(self, **{name: tensor.to(device) for name, tensor in vars(self).items()})


@dataclass
class Documents(Tensors):
    """`D` documents of `C` chunks of at most `S` tokens, and their questions, `G` tokens in all."""

    chunks: torch.Tensor  # [D, C, S]
    sizes: torch.Tensor  # [D, C]
    questions: torch.Tensor  # [D, G]
    weights: torch.Tensor  # [D, G]: of predicting this token
    segment: torch.Tensor  # [D, G]: number of the question, -1 after the last
    place: torch.Tensor  # [D, G]: position within the question
    home: torch.Tensor  # [D, G]: the chunk in which this token is found; -1 where that is unknown
    slots: torch.Tensor  # [D, M]: which chunk each slot of the memory is of


def draw_chunk_size(rng: random.Random, low: int, high: int) -> int:
    """Tokens of a chunk; `LARGE_SHARE` of them are at least `LARGE`, the rest of any order of magnitude."""
    size = log_uniform(rng, low, high)
    return rng.randint(LARGE, high) if rng.random() < LARGE_SHARE else size


def log_uniform(rng: random.Random, low: int, high: int) -> int:
    """A number whose order of magnitude is drawn evenly."""
    return round(math.exp(rng.uniform(math.log(low), math.log(high))))


def draw_batch(sampler: Sampler, rng: random.Random) -> Documents:
    """As many documents of one shape as `TOKENS` allow."""
    size = draw_chunk_size(rng, 48, 1000)
    count = log_uniform(rng, 2, min(64, max(2, TOKENS // (size + 100))))
    make = rng.choices((text_document, chunked_pairs, chunked_repeats), (0.75, 0.15, 0.10))[0]
    if make is not text_document:
        size = min(size, 128)
        count = min(count, max(2, 1024 // size))
    elif rng.random() < MANY_SHARE:
        size = log_uniform(rng, 48, 96)
        count = rng.randint(32, MANY_TOKENS // (size + 100))
        make = partial(text_document, asks=OF_MANY_CHUNKS)
    elif rng.random() < LIST_SHARE:
        make = list_document
    elif size >= LARGE:
        make = partial(text_document, asks=OF_LARGE_CHUNKS)
    docs = in_chunks(sampler.bos, size, count, _draw_documents(sampler, rng, make, size, count))
    if rng.random() < SLOTS_SHARE:
        docs.slots = draw_slots(rng, docs.home, log_uniform(rng, count, MANY_SLOTS), count)
    return docs


def draw_slots(rng: random.Random, home: torch.Tensor, total: int, count: int) -> torch.Tensor:
    """`total` slots of `count` chunks in any order; chunks that no question asks for repeat.

    Makes the memory of a document of 400,000 tokens at the cost of reading a few thousand.
    """
    slots = []
    for homes in home.tolist():
        others = [c for c in range(count) if c not in homes] or list(range(count))
        of_document = [*range(count), *rng.choices(others, k=total - count)]
        slots.append(rng.sample(of_document, total))
    return torch.tensor(slots)


def _draw_documents(sampler: Sampler, rng: random.Random, make: Maker, size: int, count: int) -> list[Drawn]:
    drawn: list[Drawn] = []
    used = 0
    while used < TOKENS and len(drawn) < 12:
        ids, rows = make(sampler, rng, size * count - rng.randrange(size))
        used += count * (size + sum(len(asked.row.ids) for asked in rows))
        if drawn and used > 1.3 * TOKENS:
            break
        drawn.append((ids, rows))
    return drawn


def in_chunks(bos: int, size: int, count: int, drawn: list[Drawn]) -> Documents:
    """Documents cut into `count` chunks of at most `size` tokens after their BOS, as tensors."""
    chunks = torch.zeros(len(drawn), count, size + 1, dtype=torch.long)
    sizes = torch.ones(len(drawn), count, dtype=torch.long)
    length = max(sum(len(asked.row.ids) for asked in rows) for _, rows in drawn)
    questions = torch.zeros(len(drawn), length, dtype=torch.long)
    weights, segment, place, home = torch.zeros(len(drawn), length), questions - 1, questions.clone(), questions - 1
    chunks[:, :, 0] = bos
    for d, (ids, rows) in enumerate(drawn):
        for c in range(count):
            part = ids[c * size : (c + 1) * size]
            chunks[d, c, 1 : 1 + len(part)] = torch.tensor(part, dtype=torch.long)
            sizes[d, c] = 1 + len(part)
        at = 0
        for number, asked in enumerate(rows):
            row, (first, last) = asked.row, asked.source
            end = at + len(row.ids)
            if first // size == last // size < count:
                home[d, at + asked.sought_from : end] = first // size
            questions[d, at:end], weights[d, at:end] = torch.tensor(row.ids), torch.tensor(row.weights)
            segment[d, at:end], place[d, at:end] = number, torch.arange(end - at)
            at = end
    slots = torch.arange(count).expand(len(drawn), -1)
    return Documents(chunks, sizes, questions, weights, segment, place, home, slots)


@dataclass
class Steps(Tensors):
    """Some steps of decoding: rows of local context that end with the newest token.

    `R` rows over all documents, `L` tokens, padded at the right.
    """

    document: torch.Tensor  # [R]
    newest: torch.Tensor  # [R]: place of the newest token among the document's questions
    length: torch.Tensor  # [R]
    ids: torch.Tensor  # [R, L]


def draw_steps(docs: Documents, rng: random.Random) -> Steps:
    """Of every question, the first steps that only the document can tell, and a few others."""
    chosen: list[tuple[int, int]] = []
    for d in range(len(docs.questions)):
        weights, segment = docs.weights[d].tolist(), docs.segment[d].tolist()
        for number in range(max(segment) + 1):
            targets = [g - 1 for g, w in enumerate(weights) if w and segment[g] == number]
            deciding = [g for g in targets if weights[g + 1] in (*DECIDING_WEIGHTS, NAMING_WEIGHT, PAIR_WEIGHT)]
            others = [g for g in targets if g not in deciding]
            chosen += [(d, g) for g in {*deciding, *rng.sample(others, min(len(others), 4))}]
    chosen = rng.sample(chosen, min(len(chosen), STEPS))
    document, newest = torch.tensor(chosen).T
    length = docs.place[document, newest] + 1
    places = torch.arange(int(length.max()))
    source = (newest - length + 1)[:, None] + places
    ids = docs.questions[document[:, None], source.clamp(max=docs.questions.shape[1] - 1)]
    return Steps(document, newest, length, ids)


class Batches(IterableDataset):
    def __init__(self, sampler: Sampler, first: int, steps: int, seed: int) -> None:
        self.sampler, self.first, self.steps, self.seed = sampler, first, steps, seed

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, Documents, Steps]]:
        for step in range(self.first, self.steps):
            rng = random.Random(f"{self.seed}/memory/{step}")
            ids, weights = self.sampler.rows(rng, rng.choice(WINDOW_ROWS))
            docs = draw_batch(self.sampler, rng)
            yield ids, weights, docs, draw_steps(docs, rng)
