"""Step 2a: what the base learns from: `<bos>piece of a document<bos>question, answer<eos><bos>question …`.

The layout is that of a FocusLLM row (a chunk followed by the prompt). Every batch is made from its own number, so a
training that is stopped and resumed sees exactly the same data.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerFast

from focus_core.evaluation import facts
from focus_core.evaluation.facts import Document, Fact
from recipes.embedded_model.texts import reset

TEXT_WEIGHT = 0.2  # of an ordinary text token that is trained on at all
TEXT_SHARE = 0.25  # of the ordinary text tokens that are trained on
SHARP_FROM = 0.5  # weights from here on are of tokens that the document tells
CONTINUATION_WEIGHT = 2.5
ANSWER_WEIGHT = 1.0
PREFIX_WEIGHT = 1.2  # of the words before the value: they stand in the question
NAMING_WEIGHT = 3.0  # of the attribute's first token: its chunks offer other attributes of the same owner
DECIDING_WEIGHTS = (6.0, 2.0)  # of the first tokens of a value: they tell which fact was meant, the rest is copying
PAIR_WEIGHT = 1.5  # of a pair's first value token
QUESTION_TOKENS = 34  # room that one question with its answer takes, roughly


@dataclass(frozen=True)
class Stage:
    """A level of difficulty: row length, facts per row, and from which share of the training it applies."""

    start: float
    length: int
    max_facts: int
    rows: int


STAGES = (
    Stage(0.00, 128, 4, 40),
    Stage(0.15, 192, 7, 28),
    Stage(0.35, 320, 12, 18),
    Stage(0.60, 512, 20, 12),
    Stage(0.82, 1152, 30, 5),
)
HARD_FORMS = (3, 7, 7)  # of facts.QUESTIONS: in lower case, and "What is E's A?", where the answer turns words round
OTHER_SHARE = 0.3  # of the questions are asked in these forms, which no evaluation asks in
OTHER_FORMS = {  # {w}, {x}: some words of the texts, so that the model learns to pass over what it does not know
    "fact": (
        "Who is the {a} of {e}?",
        "Who's the {a} of {e}?",
        "Which is the {a} of {e}?",
        "How large is the {a} of {e}?",
        "Where is the {a} of {e}?",
        "Give me the {a} of {e}.",
        "Name the {a} of {e}.",
        "Do you know the {a} of {e}?",
        "Can you tell me what the {a} of {e} is?",
        "What {a} does {e} have?",
        "Which {a} has {e}?",
        "{e}: what is the {a}?",
        "{w} the {a} of {e}?",
        "{w} the {a} of {e} {x}?",
        "{w} {a} {x} {e}?",
        "{w} {e}'s {a}?",
    ),
    "passkey": ("Give me the pass key.", "What pass key is hidden here?", "{w} pass key?", "{w} the pass key {x}?"),
    "key": ("What is {e}?", "Give me {e}.", "Find the value of {e}.", "{e}?", "{w} {e}?", "{w} {e} {x}?"),
}
SYSTEM_TEXTS = ("Answer from the text.", "You are a helpful assistant.", "Use the documents. Be brief.")


@dataclass
class Row:
    """Token ids and, for each, the weight of predicting it (0: not trained on)."""

    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def add(self, ids: list[int], weight: float) -> None:
        self.ids += ids
        self.weights += [weight] * len(ids)


class Sampler:
    """Makes rows from texts and generated facts; all randomness comes from the `rng` it is called with."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> None:
        self.encoder = tokenizer.backend_tokenizer
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.vocab_size = len(tokenizer)
        self.space = self.encode(" ")[0]
        self.texts = [facts.split_sentences(text) for text in texts]
        self.sizes = [len(pieces) for pieces in self.texts]
        plain = {w for text in texts for w in text.split() if w.isascii() and w.isalpha() and 3 <= len(w) <= 10}
        self.plain_words = sorted(plain)

    def encode(self, text: str) -> list[int]:
        return self.encoder.encode(text, add_special_tokens=False).ids

    def filler(self, rng: random.Random, chars: int) -> list[str]:
        """Sentences of a text from a random place, or of generated filler, about `chars` characters in all."""
        generated = rng.random() < 0.2
        pieces = [] if generated else rng.choices(self.texts, self.sizes)[0]
        at = 0 if generated else rng.randrange(max(1, len(pieces) - 400))
        chosen: list[str] = []
        while chars > 0:
            piece = facts.filler_sentence(rng) if generated else pieces[at % len(pieces)]
            at += 1
            chars -= len(piece) + 1
            chosen.append(piece)
        if generated or rng.random() < 0.4:
            return chosen
        return facts.split_sentences(reset("".join(chosen), rng))

    def facts(self, rng: random.Random, count: int) -> list[Fact]:
        """`count` facts that are easily taken for one another: families of look-alikes, key lists, pass keys."""
        made: list[Fact] = []
        while len(made) < count:
            room = count - len(made)
            draw = rng.random()
            if draw < 0.12:
                made += facts.key_values(rng, min(room, rng.choice((1, 4, 10, 20))))
            elif draw < 0.24 and not any(f.kind == "passkey" for f in made):
                made.append(facts.pass_key(rng, rng.choice((4, 5, 5, 5, 6))))
            else:
                fact = self.open_fact(rng) if rng.random() < 0.08 else facts.make_fact(rng)
                made += [fact, *facts.distractors(rng, fact, min(room - 1, rng.choice((0, 1, 3, 6, 12, 20))))]
        unique = {(f.attribute, f.entity): f for f in made if not facts.held_out(f)}
        return list(unique.values())

    def open_fact(self, rng: random.Random) -> Fact:
        """A fact in words taken from the texts, so that the model matches what is written and knows no list."""
        draw = [rng.choice(self.plain_words) for _ in range(4)]
        name = " ".join(draw[: rng.randint(1, 2)]).lower()
        owner = f"the {draw[2]} {draw[3]}".lower() if rng.random() < 0.6 else f"{draw[2]} {draw[3]}".title()
        number = rng.random() < 0.5
        return Fact(name, owner, facts.number(rng, 2, 6) if number else rng.choice(self.plain_words))

    def row(self, rng: random.Random, stage: Stage) -> Row:
        """One row of at most `stage.length` tokens."""
        draw = rng.random()
        if draw < 0.30:
            return self.random_pairs(rng, stage.length)
        if draw < 0.36:
            return self.random_repeats(rng, stage.length)
        if draw < 0.44:
            return self.document_row(rng, stage.length, 0, dense=False)
        if draw < 0.50:
            return self.document_row(rng, stage.length, rng.randint(2, stage.length // 20), dense=True, keys=True)
        dense = rng.random() < 0.6
        most = min(stage.max_facts, stage.length // 30) if dense else stage.max_facts
        return self.document_row(rng, stage.length, rng.randint(min(2, most), most), dense)

    def rows(self, rng: random.Random, stage: Stage) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and weights of a batch, `[stage.rows, stage.length]`, padded at the right."""
        ids = torch.zeros(stage.rows, stage.length, dtype=torch.long)
        weights = torch.zeros(stage.rows, stage.length)
        for index in range(stage.rows):
            row = self.row(rng, stage)
            used = min(len(row.ids), stage.length)
            ids[index, :used] = torch.tensor(row.ids[:used])
            weights[index, :used] = torch.tensor(row.weights[:used])
        return ids, weights

    def random_pairs(self, rng: random.Random, length: int) -> Row:
        """Keys of a few random tokens with their values, then the keys again: only the whole key tells the value.

        The keys share their tokens (they are drawn from a small pool), as facts share attributes and owners.
        """
        size, infix = rng.randint(2, 4), [rng.randrange(3, self.vocab_size) for _ in range(rng.randint(0, 2))]
        lead, link = ([rng.randrange(3, self.vocab_size) for _ in range(rng.randint(0, 2))] for _ in range(2))
        pool = [[rng.randrange(3, self.vocab_size) for _ in range(rng.randint(2, 6))] for _ in range(size)]
        most = max(2, (length - 2) // (2 * (size + len(infix) + len(lead) + len(link) + 2)))
        values: dict[tuple[int, ...], list[int]] = {}
        for _ in range(rng.randint(2, most)):
            key = tuple(rng.choice(choices) for choices in pool)
            values[key] = [rng.randrange(3, self.vocab_size) for _ in range(rng.randint(1, 3))]
        row = Row([self.bos], [0.0])
        for key, value in values.items():
            row.add([*lead, key[0], *infix, *key[1:], *link, *value], 0.0)
        asked = list(values)
        while len(row.ids) < length - 16:
            rng.shuffle(asked)
            for key in asked:
                row.add([self.bos, *lead, key[0], *infix, *key[1:], *link], 0.0)
                row.add(values[key], ANSWER_WEIGHT)
                row.weights[-len(values[key])] = PAIR_WEIGHT
        return row

    def random_repeats(self, rng: random.Random, length: int) -> Row:
        """Random tokens, then pieces of them again: nothing but copying helps, so copying is learned at once."""
        row = Row([self.bos], [0.0])
        size = rng.randint(length // 4, length // 2)
        piece = [rng.randrange(3, self.vocab_size) for _ in range(size)]
        row.add(piece, 0.0)
        while len(row.ids) < length - 8:
            start, lead, run = rng.randrange(size), rng.randint(1, 6), rng.randint(4, 30)
            row.add([self.bos, *piece[start : start + lead]], 0.0)
            row.add(piece[start + lead : start + lead + run], CONTINUATION_WEIGHT)
        return row

    def document_row(self, rng: random.Random, length: int, count: int, dense: bool, keys: bool = False) -> Row:
        """A piece of a document with `count` facts (or `keys`) in it, and as many questions as find room."""
        chosen = facts.key_values(rng, count) if keys else self.facts(rng, count) if count else []
        hidden = sum(55 if f.kind == "fact" else 25 for f in chosen)
        questions = max(1, min(len(chosen) or 3, length // (2 * QUESTION_TOKENS), rng.randint(2, 12)))
        size = length - questions * QUESTION_TOKENS - 2
        chars = rng.randint(1, 60) if dense else max(rng.randint(20, 200), round(size * 2.6) - hidden)
        text = facts.hide(chosen, self.filler(rng, chars), rng, self.places(rng, len(chosen)))
        ids, present, start, end = self.cut(rng, text, size)
        row = Row([self.bos], [0.0])
        for token in ids:
            row.add([token], TEXT_WEIGHT if rng.random() < TEXT_SHARE else 0.0)
        rng.shuffle(present)
        asked = present + [None] * (2 if present else 12)
        if present and rng.random() < 0.3:
            asked.insert(0, None)
        for fact in asked:
            prompt, answer, weight = self.task(rng, fact, text.text[start:end])
            if len(row.ids) + 1 + len(prompt) + len(answer) <= length:
                row.add([self.bos, *prompt], 0.0)
                row.add(answer, weight)
                if fact:
                    self.stress(row, answer, fact)
        return row

    def stress(self, row: Row, answer: list[int], fact: Fact) -> None:
        """Gives the first tokens of the value their greater weight, and the space before a number some."""
        value = self.encode(f" {fact.value}")
        at = next(i for i in range(len(answer) - len(value), -1, -1) if answer[i : i + len(value)] == value)
        first = len(row.ids) - len(answer)
        for index in range(at):
            row.weights[first + index] = PREFIX_WEIGHT
        if at > 1 and fact.kind == "fact":
            row.weights[first + 1] = NAMING_WEIGHT  # after " The"
        if value[0] == self.space:  # that a number follows is the document's to tell, too
            row.weights[first + at] = DECIDING_WEIGHTS[1]
            at += 1
        for weight, index in zip(DECIDING_WEIGHTS, range(first + at, len(row.ids) - 1), strict=False):
            row.weights[index] = weight
        if fact.kind == "key":  # in a list of numbers every digit is followed by another one somewhere else
            row.weights[first + at + 1 :] = [DECIDING_WEIGHTS[1]] * (len(row.ids) - first - at - 1)

    def places(self, rng: random.Random, count: int) -> list[float] | None:
        """Half of the documents have their facts side by side (a list), the others anywhere."""
        if count < 2 or rng.random() < 0.6:
            return None
        at = rng.random()
        return [at] * count

    def cut(self, rng: random.Random, document: Document, size: int) -> tuple[list[int], list[Fact], int, int]:
        """At most `size` tokens from near the start, and which facts are whole within them."""
        encoding = self.encoder.encode(document.text, add_special_tokens=False)
        first = rng.choice((0, rng.randint(0, 12))) if len(encoding.ids) > 40 else 0
        ids, offsets = encoding.ids[first : first + size], encoding.offsets[first : first + size]
        start, end = offsets[0][0], offsets[-1][1]
        present = [f for f, (a, b) in zip(document.facts, document.spans, strict=True) if a >= start and b <= end]
        return ids, present, start, end

    def task(self, rng: random.Random, fact: Fact | None, text: str) -> tuple[list[int], list[int], float]:
        """A prompt and what continues it: a question, the beginning of a statement, or the first words of a passage."""
        if fact is None:
            return *self.passage(rng, text), CONTINUATION_WEIGHT
        draw = rng.random()
        if draw < 0.65:
            asked = self.question(rng, fact)
            asked = asked.lower() if rng.random() < 0.04 else asked
            system = f"{rng.choice(SYSTEM_TEXTS)}\n" if rng.random() < 0.08 else ""
            return self.encode(f"{system}Question: {asked}\nAnswer:"), self.answer(fact), ANSWER_WEIGHT
        ending = "\n" if fact.kind == "key" else "."
        return self.encode(fact.restatement(rng)), [*self.encode(f" {fact.value}{ending}"), self.eos], ANSWER_WEIGHT

    def question(self, rng: random.Random, fact: Fact) -> str:
        """A question as the evaluation asks it, most often a hard one, or in other words."""
        if rng.random() < OTHER_SHARE:
            first, second = (" ".join(rng.choices(self.plain_words, k=rng.randint(1, 4))) for _ in range(2))
            form = rng.choice(OTHER_FORMS[fact.kind])
            return form.format(a=fact.attribute, e=fact.entity, w=first, x=second)
        hard = fact.kind == "fact" and rng.random() < 0.45
        return fact.question(rng, rng.choice(HARD_FORMS) if hard else None)

    def answer(self, fact: Fact) -> list[int]:
        """A whole sentence: its last words before the value are then like those in the document, and easy to find."""
        said = {"key": f" {fact.entity}: {fact.value}", "passkey": f" The pass key is {fact.value}."}
        text = said.get(fact.kind, f" The {fact.attribute} of {fact.entity} is {fact.value}.")
        return [*self.encode(text), self.eos]

    def passage(self, rng: random.Random, text: str) -> tuple[list[int], list[int]]:
        """The first words of a random passage of `text`, and the words that follow there."""
        pieces = text.strip().split(" ")
        lead, run = rng.randint(5, 24), rng.randint(6, 16)
        at = rng.randrange(max(1, len(pieces) - lead - run))
        return self.encode(" ".join(pieces[at : at + lead]).lstrip()), self.encode(
            "".join(" " + piece for piece in pieces[at + lead : at + lead + run])
        )


def stage_at(progress: float) -> Stage:
    """The stage that applies at `progress` (0 to 1) of the training."""
    return [stage for stage in STAGES if stage.start <= progress][-1]


class Batches(IterableDataset):
    """Batches `first_step` … `steps`: token ids and weights, padded to the stage's length."""

    def __init__(self, sampler: Sampler, first_step: int, steps: int, seed: int) -> None:
        self.sampler, self.first_step, self.steps, self.seed = sampler, first_step, steps, seed

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for step in range(self.first_step, self.steps):
            yield self.batch(step)

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Batch number `step`; a share of it is of an earlier, easier stage."""
        rng = random.Random(f"{self.seed}/{step}")
        progress = step / self.steps * (1.0 if rng.random() < 0.7 else rng.random())
        stage = stage_at(progress)
        return self.sampler.rows(rng, stage)
