"""The recipe of the embedded model: its own FocusLLM steps are the engine's, and its commands lead into one another."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed

from focus_core.cache.chunks import ChunkSet
from focus_core.config import FocusConfig
from focus_core.engine.engine import FocusEngine
from focus_core.evaluation import facts
from focus_core.loading.named import EMBEDDED_FOLDER
from focus_core.methods.focus import FocusModel
from recipes.embedded_model import documents, memory
from recipes.embedded_model.data import OTHER_FORMS, Sampler

DRAWN = (documents.text_document, documents.list_document, documents.chunked_pairs, documents.chunked_repeats)


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    text = " ".join(facts.filler_sentences(random.Random(0), 2000))
    return Sampler(AutoTokenizer.from_pretrained(EMBEDDED_FOLDER / "base"), [text])


@pytest.fixture(scope="module")
def model(sampler: Sampler) -> LlamaForCausalLM:
    set_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    shape = {"num_hidden_layers": 8, "max_position_embeddings": 2048, "vocab_size": sampler.vocab_size}
    return LlamaForCausalLM(LlamaConfig(**sizes, **shape, initializer_range=0.2)).eval()


def batch(sampler: Sampler, make: documents.Maker, rng: random.Random) -> documents.Documents:
    return documents.in_chunks(sampler.bos, 40, 4, [make(sampler, rng, 150), make(sampler, rng, 131)])


@pytest.mark.parametrize(
    "make",
    [
        DRAWN[0],
        pytest.param(DRAWN[1], marks=pytest.mark.long),
        *(pytest.param(make, marks=pytest.mark.slow) for make in DRAWN[2:]),
    ],
)
def test_steps_of_the_recipe_are_those_of_the_engine(
    sampler: Sampler, model: LlamaForCausalLM, make: documents.Maker
) -> None:
    rng = random.Random(1)
    docs = batch(sampler, make, rng)
    docs.slots = documents.draw_slots(rng, docs.home, 9, 4)
    steps = documents.draw_steps(docs, rng)
    with torch.no_grad():
        logits = model.lm_head(memory.forward(model, docs, steps).states)
    focus = FocusModel(model, config=FocusConfig(window=2048))
    for row, (document, length) in enumerate(zip(steps.document.tolist(), steps.length.tolist(), strict=True)):
        chunks = [
            docs.chunks[document, chunk, : docs.sizes[document, chunk]] for chunk in docs.slots[document].tolist()
        ]
        local = steps.ids[row : row + 1, :length]
        condensed = focus.decode_candidates(ChunkSet.of(focus.prefill(chunks)), local)
        expected = focus.next_token_logits(local, condensed)[0]
        torch.testing.assert_close(logits[row], expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("make", DRAWN)
def test_an_answer_stands_where_the_document_is_said_to_have_it(sampler: Sampler, make: documents.Maker) -> None:
    rng = random.Random(2)
    for _ in range(5):
        ids, asked = make(sampler, rng, 300)
        assert asked
        for one in asked:
            first, last = one.source
            assert one.row.ids[one.sought_from] in ids[first : last + 1]
            assert one.row.weights[one.sought_from] > 0


@pytest.mark.parametrize("make", [documents.chunked_pairs, documents.chunked_repeats])
def test_what_is_copied_stands_where_it_is_said_to(sampler: Sampler, make: documents.Maker) -> None:
    ids, asked = make(sampler, random.Random(3), 300)
    for one in asked:
        first, last = one.source
        assert ids[first : last + 1] == one.row.ids[1:]


def test_a_line_stands_where_it_is_said_to(sampler: Sampler) -> None:
    ids, asked = documents.list_document(sampler, random.Random(3), 300)
    for one in asked:
        first, last = one.source
        key, value = sampler.encoder.decode(ids[first : last + 1]).split(": ")
        assert "\n" not in key + value
        assert first == 0 or sampler.encoder.decode(ids[first - 1 : first]).endswith("\n")
        assert key in (told := sampler.encoder.decode(one.row.ids))
        assert told.rstrip().endswith(f" {value}")


def test_a_near_miss_shares_a_word_and_tells_nothing(sampler: Sampler) -> None:
    rng = random.Random(5)
    for number in range(50):
        fact = facts.make_fact(rng) if number % 2 else facts.pass_key(rng)
        said = documents.near_miss(sampler, rng, fact)
        shared = {*re.findall(r"\w+", f"{fact.attribute} {fact.entity}")} - {"the"}
        assert shared & {*re.findall(r"\w+", said)}, (fact, said)
        assert fact.value not in said, (fact, said)


def test_a_document_of_which_all_facts_are_held_out_is_text(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "facts", lambda rng, count: [])
    for seed in range(20):
        tokens, asked = documents.text_document(sampler, random.Random(seed), 200)
        assert tokens
        assert asked


def test_slots_repeat_only_chunks_that_no_question_asks_for() -> None:
    home = torch.tensor([[-1, 2, 2, 0], [1, 1, -1, -1]])
    slots = documents.draw_slots(random.Random(0), home, 50, 4)
    assert slots.shape == (2, 50)
    for of_document, homes in zip(slots.tolist(), ({0, 2}, {1}), strict=True):
        assert set(of_document) == {0, 1, 2, 3}
        assert all(of_document.count(chunk) == 1 for chunk in homes)


def test_the_evaluation_has_questions_that_no_training_asks() -> None:
    words = "[A-Za-z]+( [A-Za-z]+){0,3}"
    for trained in (*facts.QUESTIONS, *OTHER_FORMS["fact"]):
        form = re.escape(trained).replace(r"\{w\}", words).replace(r"\{x\}", words)
        assert not [asked for asked in facts.REWORDED_QUESTIONS if re.fullmatch(form, asked, re.IGNORECASE)]


def run(command: str, *arguments: str | Path) -> None:
    module = f"recipes.embedded_model.{command}"
    done = subprocess.run([sys.executable, "-m", module, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.recipe
@pytest.mark.timeout(900)
def test_the_commands_lead_from_texts_to_a_model_that_loads(tmp_path: Path) -> None:
    rng = random.Random(0)
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "speech.txt").write_text("\n".join(facts.filler_sentences(rng, 3000)))
    names = ("tokenizer", "base", "memory", "adapter", "model")
    tokenizer, base, read, adapter, model = (tmp_path / name for name in names)
    text = ("--text", texts)
    run("tokenizer", *text, "--out", tokenizer)
    run("base", *text, "--tokenizer", tokenizer, "--out", base, "--steps", "1")
    for total in ("1", "2"):  # the second time it goes on
        run("memory", *text, "--base", base, "--out", read, "--steps", total)
    run("adapter", *text, "--base", read, "--out", adapter, "--steps", "1")
    run("export", "--base", read, "--adapter", adapter / "adapter", "--out", model)
    engine = FocusEngine.from_pretrained(model / "base", adapter=model / "adapter")
    assert engine.generate("What is the pass key?", [(texts / "speech.txt").read_text()[:9000]], max_new_tokens=2).text
