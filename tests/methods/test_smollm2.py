"""A real instruct model gets what its chat template means, and each method is the plain model at its end."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from focus_core import FocusConfig, FocusEngine
from focus_core.loading.peek import settings_on_disk
from tests.models import needs_model

STORY = Path(__file__).parents[2] / "cookbook" / "texts" / "the_lamp_keeper.txt"
QUESTION = "What cargo did the ship carry?"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


CONFIG = FocusConfig(chunk_size=96, select_tokens=600, select_top_p=1)


@cache
def engine() -> FocusEngine:
    return FocusEngine.from_pretrained("smollm2", device="cpu", progress=False, config=CONFIG)


@cache
def part() -> str:
    """Of the story what the tests can read in seconds: the storm."""
    text = STORY.read_text(encoding="utf-8")
    return text[text.index("In the winter of the great storm") : text.index("What Osric did then")].strip()


@torch.no_grad()
def generated(system: str | None) -> list[int]:
    """By transformers alone, with the text in the user's turn."""
    tokenizer, model = engine().tokenizer, engine().focus.model
    messages = [{"role": "user", "content": f"{part()}\n\n{QUESTION}"}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = torch.tensor([tokenizer(rendered, add_special_tokens=False)["input_ids"]])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)
    return output[0, ids.shape[1] :].tolist()


@needs_model("smollm2")
@pytest.mark.parametrize(("method", "system"), [("plain", None), ("select", "You answer in one sentence.")])
def test_answers_are_those_of_transformers_on_the_templated_text(method: str, system: str | None) -> None:
    answer = engine().generate(QUESTION, [part()], method=method, system=system, max_new_tokens=16)
    assert (answer.method, all(found.read for found in answer.chunk_scores)) == (method, True)
    assert list(answer.tokens) == generated(system)
    assert (answer.usage.chunks > 2) == (method == "select")


@needs_model("smollm2")
def test_its_adapter_comes_with_the_package() -> None:
    assert engine().focus.trained
    assert settings_on_disk("smollm2", None, CONFIG) == engine().config
    config = engine().config
    assert (config.plain_up_to, config.focus_up_to, config.layout) == (2048, 64, "chat")


@needs_model("smollm2")
@pytest.mark.parametrize(("tokens", "method"), [(1500, "plain"), (4000, "focus"), (30_000, "select")])
def test_the_method_is_the_one_that_was_measured_to_answer_best(tokens: int, method: str) -> None:
    as_shipped = FocusEngine(engine().shared, config=FocusConfig())
    assert as_shipped.plan([_words(tokens)], QUESTION, max_new_tokens=8, calibrate=False).method == method


def _words(tokens: int) -> str:
    text = STORY.read_text(encoding="utf-8")
    return (text * 20)[: tokens * len(text) // engine().count_tokens(text)]


@needs_model("smollm2")
def test_it_finds_what_no_window_of_600_tokens_holds() -> None:
    text = STORY.read_text(encoding="utf-8")
    answer = engine().generate(QUESTION, [text], method="select", max_new_tokens=24)
    best = max(answer.chunk_scores, key=lambda found: found.score)
    assert "oranges" in (best.chunk.text or "")
    assert "oranges" in answer.text
    assert sum(found.read for found in answer.chunk_scores) < len(answer.chunk_scores)
