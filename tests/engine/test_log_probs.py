"""How likely another answer would have been, by every method, against transformers and against the answer's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from focus_core import ConfigError, ContextOverflowError, FocusEngine
from tests.engines import QUESTION, A, B, C, make_engine

SAID = "a fox"


@torch.no_grad()
def by_transformers(engine: FocusEngine, row: list[int], said: list[int]) -> list[float]:
    logits = engine.focus.model(torch.tensor([[*row, *said]])).logits[0].log_softmax(-1)
    return [float(logits[len(row) + place - 1, token]) for place, token in enumerate(said)]


@pytest.mark.parametrize("documents", [None, [B]], ids=["no document", "a document"])
def test_by_the_plain_model_it_is_that_of_transformers(documents: list[str] | None) -> None:
    engine = make_engine(method="plain")
    answer = engine.generate(QUESTION, documents, max_new_tokens=4)
    prompt = engine.shared.tokenizer.prompt([{"role": "user", "content": QUESTION}], chat_template=True)
    around = engine.layout.before(prompt), engine.layout.after(prompt)
    row = [*around[0], *engine.tokenize(B), *around[1]] if documents else list(prompt.row)
    wanted = by_transformers(engine, row, engine.tokenize(SAID))
    assert engine.log_probs(answer, SAID) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("layout", ["raw", "chat"])
@pytest.mark.parametrize("method", ["focus", "plain", "select", "experts"])
def test_it_does_not_depend_on_what_was_answered(method: str, layout: str) -> None:
    """The same after either answer, and what `explain` says of an answer with these tokens."""
    engine = make_engine(method=method, layout=layout)
    first, other = (
        engine.generate(QUESTION, [A, B, C], max_new_tokens=6, temperature=temperature, seed=3)
        for temperature in (0.0, 4.0)
    )
    assert first.tokens != other.tokens
    assert engine.log_probs(first, SAID) == pytest.approx(engine.log_probs(other, SAID), abs=1e-5)
    assert len(engine.log_probs(first, SAID)) == len(SAID)
    said = replace(first, tokens=tuple(engine.tokenize(SAID)))
    assert engine.log_probs(first, SAID) == pytest.approx(engine.explain(said).log_probs, abs=1e-5)


def test_what_cannot_be_said() -> None:
    engine = make_engine(method="focus")
    answer = engine.generate(QUESTION, [A, B], max_new_tokens=2)
    with pytest.raises(ConfigError, match="text='' has no tokens"):
        engine.log_probs(answer, "")
    with pytest.raises(ContextOverflowError):
        engine.log_probs(answer, "x" * 2000)
    with pytest.raises(ConfigError, match="another engine"):
        make_engine(method="focus").log_probs(answer, SAID)
