"""Loss on questions that training does not see, with the controls that tell reading from style.

Much of what an adapter learns first is how answers sound. So the same questions are asked three times: of their own
documents, of those of another record, and of a chunk that says nothing. Only the difference to the first is reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import torch

from focus_core.errors import warn
from focus_core.methods.focus import FocusModel
from focus_core.training.ahead import Examples
from focus_core.training.config import TrainingConfig
from focus_core.training.data import FileExamples
from focus_core.training.examples import TrainingExample
from focus_core.training.kept import KeptChunks
from focus_core.training.log import FIRST_TOKEN, HELD_OUT_LOSS, NOTHING, OTHERS
from focus_core.training.loss import FocusLoss

_EMPTY_PAGE = "This page was left empty."


class Validation:
    """Callable with a model: mean losses by name.

    Args:
        config: with `validation` or `held_out`
        kept: where the chunks' keys and values are looked for; the same chunks come with every evaluation
    """

    def __init__(
        self, config: TrainingConfig, focus: FocusModel, tokenizer_id: str, *, kept: KeptChunks | None = None
    ) -> None:
        self._kept = kept
        make = FileExamples.held_out(config, focus, tokenizer_id)
        self._asked = make.asked
        self.digest = f"{make.data_digest}, {config.validation_examples} of them"
        own = make.different(config.validation_examples)
        nothing = make.chunks_of(_EMPTY_PAGE)
        self.examples = {
            HELD_OUT_LOSS: own,
            OTHERS: [other for number in range(len(own)) for other in _about_others(own, number)],
            NOTHING: [replace(one, chunks=nothing) for one in own],
        }
        if not self.examples[OTHERS]:
            del self.examples[OTHERS]
            warn(
                "validation: all questions are about the same documents, so that there is no control with other ones. "
                "Hold out records with different documents."
            )

    def warn_of(self, trained: Examples) -> None:
        """Say so if questions that are held out are trained as well."""
        both = self._asked & trained.asked if isinstance(trained, FileExamples) else ()
        if both:
            warn(
                f"validation: {len(both):,} of {len(self._asked):,} questions are trained as well, so that their loss "
                "says nothing about new ones. Take them out of one of the two."
            )

    @torch.no_grad()
    def __call__(self, focus: FocusModel) -> dict[str, float]:
        """The mean loss of a target, of all and of each answer's first token, with right documents and without."""
        found, loss = dict[str, float](), FocusLoss(focus, kept=self._kept)
        for name, examples in self.examples.items():
            losses = torch.cat([loss.target_losses(example) for example in examples])
            first = torch.tensor([position for example in examples for position in _is_first(example)])
            found[name] = losses.mean().item()
            found[f"{name}{FIRST_TOKEN}"] = losses[first.to(losses.device)].mean().item()
        return found


def _about_others(own: Sequence[TrainingExample], number: int) -> list[TrainingExample]:
    """An example with the documents of the next one that has others, or nothing."""
    one = own[number]
    others = (other.chunks for other in (*own[number + 1 :], *own[:number]) if other.chunks != one.chunks)
    return [replace(one, chunks=chunks) for chunks in islice(others, 1)]


def _is_first(example: TrainingExample) -> list[bool]:
    """Of each target, whether it is the first token of its answer."""
    return [target == 0 for question in example.questions for target in question.targets]
