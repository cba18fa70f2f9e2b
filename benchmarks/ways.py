"""The three ways to answer a question about a long text, each timed and weighed.

ours             FocusModel: all chunks in one pass, their keys and values read in place
one-by-one       the same method as the authors' code runs it: chunk after chunk (one_by_one.py)
full-attention   the plain model over text and question, by transformers' generate
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from benchmarks.machine import Peak, now, peak_memory
from benchmarks.one_by_one import OneByOne
from focus_core.cache.chunks import ChunkSet
from focus_core.methods.focus import FocusDecoding, FocusModel

OURS, ONE_BY_ONE, FULL_ATTENTION = "ours", "one-by-one", "full-attention"


@dataclass(frozen=True)
class Text:
    """A text in chunks, two questions about it, and an answer.

    Attributes:
        chunks: token ids `[tokens]` of each chunk
        question: token ids `[1, tokens]`: dynamic prompt and local context
        another_question: a second one about the same chunks
        answer: token ids `[tokens]`, appended in place of the likeliest ones, so that ours and one-by-one read the same
    """

    chunks: list[Tensor]
    question: Tensor
    another_question: Tensor
    answer: Tensor


@dataclass(frozen=True)
class Measurement:
    """One run of one way.

    Attributes:
        seconds: by figure. `first_token`: from nothing read to the first token's logits; `step`: each further token;
            and where text and question are read apart, `prefill`: the text's part of `first_token`, and
            `second_question`: another question about the same text, to its first token's logits
        peak: memory taken
        cache_bytes: of all keys and values at the end
        logits: `[1 + answer, vocabulary]`
    """

    seconds: dict[str, float]
    peak: Peak
    cache_bytes: int | None = None
    logits: Tensor | None = None


def run_ours(focus: FocusModel, text: Text) -> Measurement:
    clock = Clock(focus.device)
    with peak_memory(focus.device) as peak:
        chunks = ChunkSet.of(focus.prefill(text.chunks))
        prefill = clock.lap()
        question = text.question.tolist()
        decoding = FocusDecoding(focus, chunks, question, question)
        logits = [decoding.start()]
        first_token = prefill + clock.lap()
        steps = []
        for token in text.answer:
            logits.append(decoding.step(token[None]))
            steps.append(clock.lap())
        another = text.another_question.tolist()
        FocusDecoding(focus, chunks, another, another).start()
        second_question = clock.lap()
    seconds = {
        "prefill": prefill,
        "first_token": first_token,
        "second_question": second_question,
        "step": median(steps),
    }
    return Measurement(seconds, peak, _chunk_bytes(chunks) + decoding.appended_bytes, torch.cat(logits).float().cpu())


def run_one_by_one(focus: FocusModel, text: Text) -> Measurement:
    way = OneByOne(focus.model, focus.projections)
    clock = Clock(focus.device)
    with peak_memory(focus.device) as peak:
        logits = [way.start(text.chunks, text.question)]
        first_token = clock.lap()
        steps = []
        for token in text.answer:
            logits.append(way.step(token[None]))
            steps.append(clock.lap())
    seconds = {"first_token": first_token, "step": median(steps)}
    return Measurement(seconds, peak, way.cache_bytes, torch.cat(logits).float().cpu())


def run_full_attention(focus: FocusModel, text: Text) -> Measurement:
    prompt = torch.cat([*text.chunks, text.question[0]])[None].to(focus.device)
    laps = Laps(focus.device)
    with peak_memory(focus.device) as peak:
        focus.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=1 + len(text.answer),
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            streamer=laps,
        )
    handed_over, first_token, *steps = laps.seconds  # the streamer gets the prompt first
    return Measurement({"first_token": handed_over + first_token, "step": median(steps)}, peak)


WAYS: dict[str, Callable[[FocusModel, Text], Measurement]] = {
    OURS: run_ours,
    ONE_BY_ONE: run_one_by_one,
    FULL_ATTENTION: run_full_attention,
}


class Clock:
    """Seconds since the lap before."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last = now(device)

    def lap(self) -> float:
        before, self._last = self._last, now(self._device)
        return self._last - before


class Laps(BaseStreamer):
    """Notes when `generate` has the next token."""

    def __init__(self, device: torch.device) -> None:
        self._clock = Clock(device)
        self.seconds: list[float] = []

    def put(self, value: Tensor) -> None:
        self.seconds.append(self._clock.lap())

    def end(self) -> None: ...


def _chunk_bytes(chunks: ChunkSet) -> int:
    """All that the blocks of these chunks hold, in use or not."""
    return sum({id(run.block): run.block.nbytes for run in chunks.runs}.values())
