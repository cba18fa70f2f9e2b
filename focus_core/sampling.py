"""From logits to the next token, with transformers' own logits processors."""

from __future__ import annotations

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
        """The next token from `logits [vocab]`.

        Drawn on the CPU, so that a seed gives the same answer wherever the model runs.
        """
        if self._greedy and not self._processors:  # then only the token has to leave the device
            return int(logits.argmax(-1))
        scores = logits.float().cpu()[None]
        scores = self._processors(self._seen[None], scores)
        if self._greedy:
            token = int(scores.argmax(-1))
        else:
            token = int(torch.multinomial(torch.softmax(scores, dim=-1)[0], 1, generator=self._random))
        self._seen = torch.cat([self._seen, torch.tensor([token])])
        return token


def _processors(config: SamplingConfig) -> LogitsProcessorList:
    chain = LogitsProcessorList()
    if config.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    if config.temperature == 0:
        return chain
    chain.append(TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        chain.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        chain.append(TopPLogitsWarper(config.top_p))
    if config.min_p:
        chain.append(MinPLogitsWarper(config.min_p))
    return chain
