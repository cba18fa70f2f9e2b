"""From logits to the next token, with transformers' own logits processors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from focus_core.config import SamplingConfig
from focus_core.methods.base import likeliest, not_finite


class Sampler:
    """Chooses one token after the other for one question.

    Args:
        seen: `[tokens]`, what the repetition penalty counts besides the answer: the local context
    """

    def __init__(self, config: SamplingConfig, seen: Tensor) -> None:
        self._greedy = config.temperature == 0
        self._processors = _processors(config)
        self._seen = seen
        self._random = torch.Generator()
        if config.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(config.seed)

    def choose(self, logits: Tensor) -> int:
        """The next token from `logits [vocab]`, float32 on the CPU.

        Raises:
            UnsupportedModelError: the logits are not finite
        """
        scores = self._processors(self._seen[None], logits[None])
        if not scores.max().isfinite():
            raise not_finite()
        if self._greedy:
            token = int(scores.argmax(-1))
        else:
            token = int(torch.multinomial(torch.softmax(scores, dim=-1)[0], 1, generator=self._random))
        self._seen = torch.cat([self._seen, torch.tensor([token])])
        return token

    @property
    def is_greedy(self) -> bool:
        """Whether it is always the token with the highest logit."""
        return self._greedy and not self._processors


def choose(samplers: Sequence[Sampler], logits: Tensor) -> Sequence[int | Exception]:
    """The next tokens of questions with these samplers from `logits [questions, vocab]` on any device.

    Drawn on the CPU, so that a seed gives the same answer on every device. If all are greedy, only the tokens leave the
    device. The error of one sampler takes the place of its token.
    """
    if all(sampler.is_greedy for sampler in samplers):
        return likeliest(logits)
    rows = logits.float().cpu()
    return [_choose(sampler, row) for sampler, row in zip(samplers, rows, strict=True)]


def _choose(sampler: Sampler, row: Tensor) -> int | Exception:
    try:
        return sampler.choose(row)
    except Exception as error:
        return error


def _processors(config: SamplingConfig) -> LogitsProcessorList:
    chain = LogitsProcessorList()
    if config.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(float(config.repetition_penalty)))
    if config.temperature == 0:
        return chain
    chain.append(TemperatureLogitsWarper(float(config.temperature)))  # transformers refuses the integer 1
    if config.top_k:
        chain.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        chain.append(TopPLogitsWarper(config.top_p))
    if config.min_p:
        chain.append(MinPLogitsWarper(config.min_p))
    return chain
