"""One source tree under `compare.py`: prefill and decode steps of its `focus_core`, timed once for each line of input.

Runs as a script with the tree in PYTHONPATH and imports nothing else of this repository. Of both trees it builds the
same random model, chunks and questions, so that their logits can be compared.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

_TRAINED = 0.02  # by how much candidate projections differ from the model's own maps, as if they had been trained


class Tree(Protocol):
    """The calls that both APIs allow."""

    def prefill(self, chunks: list[Tensor]) -> Any: ...

    def decoding(self, prefilled: Any, rows: list[list[int]]) -> Any:
        """For questions whose dynamic prompts and local contexts are `rows`; may be called again."""


class OldTree:
    """Before the rooms: `prefill` returns the cache, which a decoding changes. Its modules are no longer here."""

    def __init__(self, model: Any, **settings: int) -> None:
        from focus_core.config import FocusConfig

        self.focus = import_module("focus_core.model").FocusModel(model, config=FocusConfig(**settings))

    def prefill(self, chunks: list[Tensor]) -> Any:
        return self.focus.prefill(chunks)

    def decoding(self, prefilled: Any, rows: list[list[int]]) -> Any:
        fresh = import_module("focus_core.chunk_cache").ChunkCache.from_rows(prefilled.rows())
        return import_module("focus_core.decoding").FocusDecoding(self.focus, fresh, rows, rows)


class NewTree:
    """Since the rooms: chunks are never changed, and a decoding holds the tokens that it appends."""

    def __init__(self, model: Any, **settings: int) -> None:
        from focus_core.config import FocusConfig
        from focus_core.methods.focus import FocusModel

        self.focus = FocusModel(model, config=FocusConfig(**settings))

    def prefill(self, chunks: list[Tensor]) -> Any:
        from focus_core.cache.chunks import ChunkSet

        return ChunkSet.of(self.focus.prefill(chunks))

    def decoding(self, prefilled: Any, rows: list[list[int]]) -> Any:
        from focus_core.methods.focus import FocusDecoding

        return FocusDecoding(self.focus, prefilled, rows, rows)


def tree_in_path(model: Any, **settings: int) -> Tree:
    """An adapter for the API that the tree has."""
    import focus_core

    folder = Path(focus_core.__file__).parent
    kind: Callable[..., Tree] = NewTree if (folder / "methods").is_dir() else OldTree
    return kind(model, **settings)


class Work:
    """The same work in any tree.

    Args:
        asked: as `compare.py` writes it: `model` (fields of LlamaConfig), numbers of `chunks` and `steps`, tokens of a
            chunk (`chunk_size`) and of a `question`, and `questions`: how many are asked together, in turn
    """

    def __init__(self, asked: dict[str, Any]) -> None:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(LlamaConfig(**asked["model"]), dtype=torch.float32).eval()
        self.tree = tree_in_path(model, chunk_size=asked["chunk_size"], local_window=asked["question"])
        with torch.no_grad():
            for weight in self.tree.focus.projections.parameters():  # type: ignore[attr-defined]
                weight.add_(torch.randn_like(weight), alpha=_TRAINED)
        vocabulary = model.config.vocab_size
        self.chunks = list(torch.randint(0, vocabulary, (asked["chunks"], asked["chunk_size"])))
        most = max(asked["questions"])
        self.questions = torch.randint(0, vocabulary, (most, asked["question"])).tolist()
        self.answers = torch.randint(0, vocabulary, (asked["steps"], most))
        self.asked_together: list[int] = asked["questions"]

    def measure(self) -> dict[str, Any]:
        """Seconds by figure, and the logits of the first question's last step."""
        began = time.perf_counter()
        prefilled = self.tree.prefill(self.chunks)
        seconds = {"prefill": time.perf_counter() - began}
        for count in self.asked_together:
            decoding = self.tree.decoding(prefilled, self.questions[:count])
            logits, steps = decoding.start(), []
            for tokens in self.answers[:, :count]:
                began = time.perf_counter()
                logits = decoding.step(tokens)
                steps.append(time.perf_counter() - began)
            seconds[f"step, {count} question{'s' if count > 1 else ''}"] = median(steps)
        return {"seconds": seconds, "logits": logits[0].tolist()}


def main() -> None:
    asked: dict[str, Any] = json.loads(sys.argv[1])
    torch.set_num_threads(asked["threads"])
    work = Work(asked)
    import focus_core

    print(json.dumps({"focus_core": str(Path(focus_core.__file__).parent)}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(work.measure()), flush=True)


if __name__ == "__main__":
    main()
