"""A document inside the question's message, of the embedded model: as a stock chain or a chat window hands it over."""

from __future__ import annotations

import random
from functools import cache

import pytest

from focus_core import FocusEngine
from focus_core.evaluation.facts import Fact, filler_sentences, hide
from recipes.embedded_model.tokenizer import CHAT_TEMPLATE
from tests.embedded import needs_embedded

pytestmark = needs_embedded
QUESTION = "What is the pass key?"


@cache
def engine() -> FocusEngine:
    return FocusEngine.from_pretrained(device="cpu", progress=False)


@pytest.mark.parametrize(("sentences", "method"), [(20, "plain"), (60, "plain"), (130, "plain"), (200, "focus")])
def test_it_finds_what_it_finds_in_documents(sentences: int, method: str) -> None:
    """Within the window it answered nonsense: the mark of a question stood in front of the document."""
    rng = random.Random(sentences)
    fact = Fact("pass key", "", str(rng.randint(10_000, 99_999)), "passkey")
    text = hide([fact], filler_sentences(rng, sentences), rng, [0.5]).text
    answer = engine().generate(f"{text}\n\n{QUESTION}", max_new_tokens=20)
    assert (answer.method, fact.value in answer.text) == (method, True)
    if method == "plain":
        assert answer.tokens == engine().generate(QUESTION, [text], max_new_tokens=20, method="plain").tokens


def test_a_long_prompt_is_read_as_document_and_question() -> None:
    """The chunks of the text, and the question alone as local context."""
    tokenizer, layout = engine().shared.tokenizer, engine().layout
    text = "The grass is green. " * 300
    prompt = tokenizer.prompt([{"role": "user", "content": f"{text}\n\n{QUESTION}"}], chat_template=True)
    alone = tokenizer.prompt([{"role": "user", "content": QUESTION}], chat_template=True)
    chunks, context = layout.long_prompt(prompt)
    assert context.row == alone.row
    assert [token for chunk in chunks for token in chunk.token_ids] == tokenizer.tokenize(text)


def test_the_recipe_writes_the_same_template() -> None:
    assert engine().tokenizer.chat_template == CHAT_TEMPLATE
