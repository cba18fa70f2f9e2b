"""The engine on a tiny random model: documents in any order and combination give what a cold run gives."""

from __future__ import annotations

import io
import itertools
import shutil
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from focus_core import (
    ConfigError,
    ContextOverflowError,
    DocumentError,
    FocusConfig,
    FocusEngine,
    FocusModel,
    OutOfMemoryError,
    PreparedDocuments,
)
from focus_core import device as device_module
from focus_core.engine import engine as engine_module
from focus_core.engine import shared as registry
from focus_core.loading.adapters import ADAPTER_WEIGHTS
from focus_core.methods.focus import FocusDecoding
from focus_core.methods.limits import make_plan
from focus_core.engine.sampling import Sampler
from tests.model_zoo import random_projections
from tests.tiny import byte_tokenizer

A, B, C = ("alpha " * 30, "The second document. " * 9, "third: 3\n" * 5)
QUESTION = "Which?"


def make_engine(*, seed: int = 0, store_bytes: int | None = None, **config: int) -> FocusEngine:
    """A random Llama over bytes, window 512, chunks of 64; its projections are not copies."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    settings = LlamaConfig(
        vocab_size=259, num_hidden_layers=3, max_position_embeddings=512, initializer_range=0.3, **sizes
    )
    settings.bos_token_id, settings.eos_token_id = 1, 2
    model = LlamaForCausalLM(settings)
    chosen = {"chunk_size": 64, "dynamic_prompt": 32, "local_window": 128, "plain_up_to": 0, **config}
    engine = FocusEngine.from_model(model, byte_tokenizer(), config=FocusConfig(**chosen), store_bytes=store_bytes)
    engine.focus.projections.load_state_dict(random_projections(model).state_dict())
    return engine


@pytest.fixture
def engine() -> FocusEngine:
    return make_engine()


@pytest.fixture
def tiny_folder(model_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def cold(question: str, documents: list[str], **options: object) -> str:
    return make_engine().generate(question, documents, max_new_tokens=8, **options).text


@pytest.mark.parametrize("documents", [[A], [A, B], [B, A], [C, B, A], [A, A], [B, C, B]])
def test_prepared_documents_answer_as_a_cold_run(engine: FocusEngine, documents: list[str]) -> None:
    """A wrong row, a stale prompt or a mixed-up order would change the answer."""
    prepared = {text: engine.prepare(text) for text in (A, B, C)}
    engine.generate("Something else?", [prepared[C], prepared[A]], max_new_tokens=3)
    answer = engine.generate(QUESTION, [prepared[text] for text in documents], max_new_tokens=8)
    assert answer.text == cold(QUESTION, documents)
    assert answer.usage.cache_creation == 0
    assert answer.usage.cache_read == answer.usage.document_tokens


def test_order_of_documents_matters(engine: FocusEngine) -> None:
    """Guards the test above: with this model another order is another answer."""
    assert cold(QUESTION, [A, B]) != cold(QUESTION, [B, A])


def test_same_raw_text_is_read_once(engine: FocusEngine) -> None:
    first = engine.generate(QUESTION, [A, B], max_new_tokens=8)
    second = engine.generate(QUESTION, [A, B], max_new_tokens=8)
    assert second.text == first.text
    assert (first.usage.cache_read, first.usage.cache_creation) == (0, len(A) + len(B))
    assert (second.usage.cache_read, second.usage.cache_creation) == (len(A) + len(B), 0)


def test_chunks_dropped_from_the_store_are_read_again() -> None:
    small = make_engine(store_bytes=0)
    prepared = small.prepare([A, B])
    answer = small.generate(QUESTION, prepared, max_new_tokens=8)
    assert answer.text == cold(QUESTION, [A, B])
    assert answer.usage.cache_read == 0
    assert small.shared.store.nbytes == 0


def test_stream_joined_is_the_answer_and_ends_with_usage(engine: FocusEngine) -> None:
    pieces = list(engine.stream(QUESTION, [A], max_new_tokens=8))
    assert "".join(piece.text for piece in pieces) == engine.generate(QUESTION, [A], max_new_tokens=8).text
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish_reason == "length"
    assert pieces[-1].usage is not None
    assert pieces[-1].usage.output_tokens == 8


def test_batch_equals_one_by_one_with_prompts_and_answers_of_any_length(engine: FocusEngine) -> None:
    questions = ["Why?", "A much longer question about the second of the documents?", "Where is the end"]
    stop = engine.generate(questions[0], [A, B], max_new_tokens=12).text[2:5]  # ends the first answer early
    batch = engine.generate(questions, [A, B], max_new_tokens=12, stop=stop)
    alone = [engine.generate(question, [A, B], max_new_tokens=12, stop=stop) for question in questions]
    assert [answer.text for answer in batch] == [answer.text for answer in alone]
    assert [answer.usage.output_tokens for answer in batch] == [answer.usage.output_tokens for answer in alone]
    assert len({answer.usage.output_tokens for answer in alone}) > 1, "all answers ended together"


def test_a_batch_reads_once_and_says_so(engine: FocusEngine) -> None:
    answers = engine.generate([QUESTION, "Why?", "Where?"], [A, B], max_new_tokens=2)
    assert [answer.usage.cache_creation for answer in answers] == [len(A) + len(B), 0, 0]
    assert {answer.usage.cache_read + answer.usage.cache_creation for answer in answers} == {len(A) + len(B)}


def test_batch_of_long_prompts_with_different_chunks(engine: FocusEngine) -> None:
    prompts = [A + B + "and so", C + A + B + "it ends"]
    batch = engine.generate(prompts, max_new_tokens=6, chat_template=False)
    assert [a.text for a in batch] == [engine.generate(p, max_new_tokens=6, chat_template=False).text for p in prompts]
    assert all(answer.usage.chunks > 1 for answer in batch)


def test_short_texts_are_read_by_the_plain_model() -> None:
    plain = make_engine(plain_up_to=400)
    answer = plain.generate(QUESTION, [C], max_new_tokens=8)
    ids = plain.tokenizer(f"user: {QUESTION}\nassistant:", add_special_tokens=False)["input_ids"]
    row = torch.tensor([[1, *plain.tokenizer(C, add_special_tokens=False)["input_ids"], 1, *ids]])
    expected = plain.focus.model.generate(row, max_new_tokens=8, do_sample=False)[0, row.shape[1] :]
    assert answer.usage.chunks == 0
    assert answer.text == plain.tokenizer.decode(expected, skip_special_tokens=True).lstrip()


def test_messages_and_system_prompt_go_through_the_chat_template(engine: FocusEngine) -> None:
    as_messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    by_option = engine.generate(QUESTION, [A], system="Be brief.", max_new_tokens=8)
    assert engine.generate(as_messages, [A], max_new_tokens=8).text == by_option.text
    assert by_option.usage.input_tokens > engine.generate(QUESTION, [A], max_new_tokens=8).usage.input_tokens


def test_end_of_sequence_ends_the_answer(engine: FocusEngine) -> None:
    usual = engine.generate(QUESTION, [A], max_new_tokens=8)
    first = next(iter(engine.stream(QUESTION, [A], max_new_tokens=1, chat_template=False)))
    ids = engine.tokenizer(first.text, add_special_tokens=False)["input_ids"]
    engine._eos = frozenset(ids)
    answer = engine.generate(QUESTION, [A], max_new_tokens=8, chat_template=False)
    assert (answer.text, answer.finish_reason, answer.usage.output_tokens) == ("", "stop", 1)
    assert usual.finish_reason == "length"


def test_seed_repeats_an_answer_and_another_seed_does_not(engine: FocusEngine) -> None:
    def drawn(seed: int) -> str:
        return engine.generate(QUESTION, [A], max_new_tokens=20, temperature=1.5, seed=seed).text

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_two_open_streams_of_one_thread_do_not_disturb_each_other(engine: FocusEngine) -> None:
    """A lock held for a whole stream would hang here."""
    streams = [engine.stream(QUESTION, [text], max_new_tokens=8) for text in (A, B)]
    texts = ["", ""]
    alive: list[tuple[int, Iterator[object]]] = list(enumerate(streams))
    while alive:
        for index, stream in list(alive):
            piece = next(stream, None)
            if piece is None:
                alive.remove((index, stream))
            else:
                texts[index] += piece.text  # type: ignore[attr-defined]
    assert texts == [cold(QUESTION, [A]), cold(QUESTION, [B])]


def test_closing_a_stream_leaves_the_engine_free(engine: FocusEngine) -> None:
    stream = engine.stream(QUESTION, [A], max_new_tokens=50)
    next(stream)
    stream.close()
    assert not engine.shared.turn.locked()
    assert engine.generate(QUESTION, [A], max_new_tokens=8).text == cold(QUESTION, [A])


def test_threads_get_their_own_answers(engine: FocusEngine) -> None:
    expected = {text: cold(QUESTION, [text]) for text in (A, B, C)}
    wrong: list[str] = []

    def work(text: str) -> None:
        for _ in range(3):
            if engine.generate(QUESTION, [text], max_new_tokens=8).text != expected[text]:
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(text,)) for text in (A, B, C)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_threads_that_prepare_the_same_text_read_it_once(engine: FocusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    prefill = engine.focus.prefill

    def counting(chunks: list[torch.Tensor], **options: object) -> object:
        read.append(len(chunks))
        return prefill(chunks, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(engine.focus, "prefill", counting)
    long = "".join(f"line {number}\n" for number in range(2000))
    engine.focus.config = replace(engine.focus.config, window=4096)
    threads = [threading.Thread(target=engine.prepare, args=(long,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(read) == -(-len(long) // 64)


def test_whoever_gets_a_report_may_ask(engine: FocusEngine) -> None:
    """Between two passes the engine is free, for a question about other documents too."""
    answers: list[str] = []

    def ask(done: int, total: int) -> None:
        if not answers:
            answers.append("")
            answers[0] = engine.generate(QUESTION, [C], max_new_tokens=8).text

    assert engine.generate(QUESTION, [A], max_new_tokens=8, report=ask).text == cold(QUESTION, [A])
    assert answers == [cold(QUESTION, [C])]
    assert not engine.shared.turn.locked()


def test_a_batch_too_large_for_one_pass_is_divided(engine: FocusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = [f"Question {number}?" for number in range(7)]
    whole = engine.generate(questions, [A], max_new_tokens=6)
    sizes: list[int] = []
    step = FocusDecoding.step

    def counting(self: FocusDecoding, tokens: torch.Tensor) -> torch.Tensor:
        sizes.append(len(tokens))
        return step(self, tokens)

    monkeypatch.setattr(FocusDecoding, "step", counting)
    three = 3 * engine.count_question_tokens(questions[0])
    monkeypatch.setattr(engine_module, "tokens_per_pass", lambda _: three)
    divided = engine.generate(questions, [A], max_new_tokens=6)
    assert [answer.text for answer in divided] == [answer.text for answer in whole]
    assert max(sizes) == 3


def test_lack_of_memory_in_a_pass_names_the_way_out(engine: FocusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(engine.focus, "next_token_logits", failing)
    with pytest.raises(OutOfMemoryError, match=r"Tried to allocate 2 GiB.*parallel_chunks"):
        engine.generate(QUESTION, [A])
    assert not engine.shared.turn.locked()


def test_room_for_questions_is_asked_for_before_any_work(engine: FocusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a question and its answer append to every chunk takes memory too."""
    monkeypatch.setattr(device_module, "free_memory", lambda _: 400 * engine.focus.cache_bytes_per_token)
    read: list[int] = []
    engine.generate(QUESTION, [A], max_new_tokens=8)
    with pytest.raises(OutOfMemoryError):
        engine.generate(QUESTION, [B], max_new_tokens=100, report=lambda done, _: read.append(done))
    assert read == []


def test_room_for_a_question_is_asked_for_where_all_has_been_read(
    engine: FocusEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = engine.prepare(A)
    monkeypatch.setattr(device_module, "free_memory", lambda _: 20 * engine.focus.cache_bytes_per_token)
    with pytest.raises(OutOfMemoryError):
        engine.generate(QUESTION, prepared, max_new_tokens=8)


def test_what_the_question_itself_needs_does_not_give_way(engine: FocusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would stay in memory all the same, and be counted as free."""
    store = engine.shared.store
    engine.prepare(A)
    kept = store.nbytes
    monkeypatch.setattr(device_module, "free_memory", lambda _: kept - store.nbytes)
    with pytest.raises(OutOfMemoryError):
        engine.generate(QUESTION, [A, C], max_new_tokens=1)
    assert store.nbytes == kept


def test_a_batch_leaves_room_for_what_is_still_to_be_read(engine: FocusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that the questions' keys and values took would be missing for the documents, and the batch refused."""
    questions = [f"{QUESTION} {number}" for number in range(6)]
    alone = cold(questions[0], [A])
    chunks = sum(map(len, engine._layout.chunks_of([engine.tokenize(A)])))
    one = 3 * (32 + 1 + 8)  # three chunks; a prompt, its BOS and an answer
    store, capacity = engine.shared.store, (chunks + 2 * one) * engine.focus.cache_bytes_per_token
    monkeypatch.setattr(device_module, "free_memory", lambda _: capacity - store.nbytes)
    answers = engine.generate(questions, [A], max_new_tokens=8)
    assert answers[0].text == alone
    assert len(answers) == 6


def test_a_batch_is_divided_by_what_the_memory_holds(engine: FocusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty questions, each of which could be asked alone, were refused together."""
    questions = [f"{QUESTION} {number}" for number in range(20)]
    together = engine.generate(questions, [A], max_new_tokens=8)
    monkeypatch.setattr(device_module, "free_memory", lambda _: 500 * engine.focus.cache_bytes_per_token)
    sizes: list[int] = []
    made = FocusDecoding.__init__

    def noting(self: FocusDecoding, *arguments: Any) -> None:
        made(self, *arguments)
        sizes.append(len(arguments[2]))

    monkeypatch.setattr(FocusDecoding, "__init__", noting)
    divided = engine.generate(questions, [A], max_new_tokens=8)
    assert [answer.text for answer in divided] == [answer.text for answer in together]
    assert sum(sizes) == 20
    assert 1 <= max(sizes) < 20


def test_a_tokenizer_without_bos_has_none_whatever_the_model_says() -> None:
    """Qwen2's config names a BOS that its tokenizer never writes, and that it was never trained with."""
    made = make_engine(plain_up_to=400)
    made.tokenizer.bos_token = None
    engine = FocusEngine(made.shared, config=FocusConfig(chunk_size=64, dynamic_prompt=32, local_window=128))
    assert made.focus.bos_token_id == 1
    assert engine.count_question_tokens(QUESTION, chat_template=False) == len(QUESTION)


def test_documents_beside_each_other_are_not_glued_together() -> None:
    """Read by the plain model, "…12" and "34…" would say 1234."""
    engine = make_engine(plain_up_to=400)
    answer = engine.generate(QUESTION, ["12", "34"], max_new_tokens=1, chat_template=False)
    assert answer.usage.chunks == 0
    assert (
        answer.text
        == make_engine(plain_up_to=400).generate(QUESTION, ["12\n\n34"], max_new_tokens=1, chat_template=False).text
    )
    plan = make_plan(engine._layout, engine.tokenize(QUESTION), [engine.tokenize("12"), engine.tokenize("34")], 1)
    assert "12\n\n34" in engine.tokenizer.decode(plan.local)


def test_what_the_plain_model_has_no_room_for_is_read_in_chunks() -> None:
    engine = make_engine(plain_up_to=511)
    answer = engine.generate(QUESTION, ["x" * 450], max_new_tokens=100)
    assert answer.usage.chunks == 8


def test_a_document_of_which_nothing_could_be_asked_is_not_prepared(engine: FocusEngine) -> None:
    read: list[int] = []
    with pytest.raises(ContextOverflowError, match="memory of 600 chunks"):
        engine.prepare(["short", "x" * 64 * 600], report=lambda done, _: read.append(done))
    assert read == []


def test_report_counts_chunks(engine: FocusEngine) -> None:
    seen: list[tuple[int, int]] = []
    engine.prepare([A, B], report=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == 3 + 3


def test_every_document_is_seen_once_and_in_order(engine: FocusEngine) -> None:
    prepared = engine.prepare([A, B])
    assert len(prepared) == 2
    assert prepared.tokens == len(A) + len(B)
    assert engine.tokenizer.decode(prepared.texts[0]) == A


@pytest.mark.parametrize("documents", [["text", "  \n "], [""], []])
def test_empty_documents_are_refused(engine: FocusEngine, documents: list[str]) -> None:
    with pytest.raises(DocumentError, match="empty"):
        engine.generate(QUESTION, documents)


def test_foreign_document_types_and_foreign_handles_are_refused(engine: FocusEngine) -> None:
    with pytest.raises(DocumentError, match="Document 2 of 2 is a int"):
        engine.generate(QUESTION, ["text", 3])  # type: ignore[list-item]
    with pytest.raises(DocumentError, match="documents is a PosixPath, not a text or a list of texts"):
        engine.generate(QUESTION, Path("a.txt"))  # type: ignore[arg-type]
    with pytest.raises(DocumentError, match=r"half of a character at place 5 \('.udce9'\)"):
        engine.generate(QUESTION, ["caf\u00e9 \udce9"])
    with pytest.raises(DocumentError, match="another"):
        engine.generate(QUESTION, PreparedDocuments(([5, 6],), "another model"))


def test_what_does_not_fit_is_refused_before_any_work(engine: FocusEngine) -> None:
    read: list[int] = []
    with pytest.raises(ContextOverflowError, match=r"memory of \d+ chunks.*512 positions"):
        list(engine.stream(QUESTION, ["x" * 64 * 500], max_new_tokens=8, report=lambda done, _: read.append(done)))
    with pytest.raises(ContextOverflowError, match="max_new_tokens=500"):
        engine.generate(QUESTION, [A], max_new_tokens=500)
    assert read == []
    assert engine.shared.store.nbytes == 0


def test_documents_larger_than_the_memory_are_refused(engine: FocusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "free_memory", lambda _: 1000)
    with pytest.raises(OutOfMemoryError, match="GiB are free on cpu"):
        engine.generate(QUESTION, [A], max_new_tokens=8)


def test_what_is_kept_for_later_gives_way_to_what_is_needed(
    engine: FocusEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With memory taken by others since the start, a document would be refused for the sake of those before it."""
    store = engine.shared.store
    engine.generate(QUESTION, [A], max_new_tokens=1)
    capacity = store.nbytes + engine.count_tokens(B) * engine.focus.cache_bytes_per_token // 2
    monkeypatch.setattr(device_module, "free_memory", lambda _: capacity - store.nbytes)
    answer = engine.generate(QUESTION, [B], max_new_tokens=1)
    assert answer.usage.cache_creation == answer.usage.document_tokens
    assert 0 < store.nbytes <= capacity
    assert engine.generate(QUESTION, [A], max_new_tokens=1).usage.cache_creation > 0  # some of A had to go


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_new_tokens": -3}, "max_new_tokens=-3"),
        ({"stop": ["a", ""]}, "empty string"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": 1e-45}, "temperature=1e-45"),
        ({"top_k": 3.5}, "top_k=3.5"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"seed": 2**70}, "seed=1180591620717411303424"),
    ],
)
def test_impossible_options_are_refused(engine: FocusEngine, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine.generate(QUESTION, [A], **options)


def test_unknown_options_and_empty_questions_are_refused(engine: FocusEngine) -> None:
    with pytest.raises(TypeError, match="temprature"):
        engine.generate(QUESTION, [A], temprature=1.0)
    with pytest.raises(ConfigError, match="empty"):
        engine.generate("", [A], chat_template=False)
    engine.tokenizer.chat_template = "{% for m in messages %}User: {{ m.content }}{% endfor %}"
    with pytest.raises(ConfigError, match="empty"):
        engine.generate(" ", [A])
    with pytest.raises(ConfigError, match="Message 1 of 1 needs 'role' and 'content', both text"):
        engine.generate([{"role": "user"}], [A])
    engine.tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(ConfigError, match="chat template refuses these messages: no system role"):
        engine.generate(QUESTION, [A], system="Be brief.")


def test_an_adapter_that_was_trained_again_is_loaded_again(tiny_folder: Path) -> None:
    adapter = tiny_folder / "adapter"
    first = FocusEngine.from_pretrained(tiny_folder, adapter=adapter, device="cpu")
    assert FocusEngine.from_pretrained(tiny_folder, adapter=adapter).shared is first.shared  # "auto" is the CPU here
    weights = load_file(adapter / ADAPTER_WEIGHTS)
    save_file({name: 2 * tensor for name, tensor in weights.items()}, adapter / ADAPTER_WEIGHTS)
    second = FocusEngine.from_pretrained(tiny_folder, adapter=adapter, device="cpu")
    name = next(iter(weights))
    assert torch.equal(second.focus.projections.state_dict()[name], 2 * first.focus.projections.state_dict()[name])


def test_the_store_of_a_named_model_can_be_given_a_budget(model_folder: Path) -> None:
    engine = FocusEngine.from_pretrained(model_folder, device="cpu", dtype="float64", store_bytes=0)
    engine.prepare([A])
    assert engine.shared.store.nbytes == 0


def test_several_prompts_of_tokens_are_refused_not_joined(engine: FocusEngine) -> None:
    with pytest.raises(ConfigError, match=r"shape \[2, 3\]"):
        engine.focus.generate(torch.ones(2, 3, dtype=torch.long), max_new_tokens=1)


def test_tokens_of_texts_are_remembered_up_to_a_number(engine: FocusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenized: list[str] = []
    tokenize = engine.tokenize
    monkeypatch.setattr(engine_module, "_REMEMBERED_TOKENS", len(A) + len(C))
    monkeypatch.setattr(engine, "tokenize", lambda text: tokenized.append(text) or tokenize(text))
    for text in (A, C, A, B, A, C):  # B drives out both: it is the longest
        engine.prepare([text])
    assert tokenized == [A, C, B, A, C]


def test_engines_without_an_adapter_share_their_projections(engine: FocusEngine) -> None:
    assert FocusEngine(engine.shared).focus.projections is engine.focus.projections


def test_weights_are_shared_by_engines_of_one_name(model_folder: Path) -> None:
    first = FocusEngine.from_pretrained(model_folder, device="cpu")
    second = FocusEngine.from_pretrained(model_folder, device="cpu", config=FocusConfig(chunk_size=32))
    assert second.focus.model is first.focus.model
    assert second.config.chunk_size != first.config.chunk_size
    first.prepare([A])
    assert second.generate(QUESTION, [A], max_new_tokens=2).text is not None


def test_ctrl_c_while_waiting_for_a_turn_takes_it_from_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    lock = engine.shared.turn

    def interrupted() -> None:
        raise KeyboardInterrupt

    def read() -> None:
        with engine.shared.one_pass() as turn, turn.paused():
            lock.acquire()  # another thread's turn
            monkeypatch.setattr(turn, "_take", interrupted)

    with pytest.raises(KeyboardInterrupt):
        read()
    assert lock.locked()
    lock.release()


def test_a_turn_is_given_back_behind_a_pause() -> None:
    engine = make_engine()
    with engine.shared.one_pass() as turn:
        with turn.paused():
            assert not engine.shared.turn.locked()
        assert engine.shared.turn.locked()
    assert not engine.shared.turn.locked()


def test_texts_are_remembered_up_to_a_number_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_REMEMBERED_TOKENS", 2 * len(A))
    engine = make_engine()
    counted: list[str] = []
    tokenize = engine.tokenize
    monkeypatch.setattr(engine, "tokenize", lambda text: counted.append(text) or tokenize(text))
    texts = [f"{number}{A[1:]}" for number in range(3)]
    for text in (*texts, texts[2], texts[1], texts[0], texts[2]):  # of tokens that are letters, two fit
        engine.prepare(text)
    assert counted == [*texts, texts[0], texts[2]]


def test_questions_that_need_passes_of_their_own_hold_nothing_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "tokens_per_pass", lambda model: 1)
    engine = make_engine()
    make, made = engine._decoding, list[weakref.ref[Any]]()

    def watching(*arguments: Any) -> Any:
        assert not [decoding for decoding in made if decoding() is not None]
        decoding = make(*arguments)
        made.append(weakref.ref(decoding))
        return decoding

    monkeypatch.setattr(engine, "_decoding", watching)
    engine.generate([QUESTION, "What else?", "Why?"], [A], max_new_tokens=3)
    assert len(made) == 3


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ({"book.txt": "text"}, r"documents is a dict.*list\(documents.values\(\)\)"),
        (b"text", "documents is a bytes.*Decode it"),
        (io.StringIO("a\nb"), "documents is a StringIO.*read_file"),
    ],
)
def test_what_would_be_taken_to_pieces_is_refused(engine: FocusEngine, documents: Any, message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        engine.generate(QUESTION, documents)
    with pytest.raises(DocumentError, match=message):
        engine.prepare(documents)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop": [1]}, "stop holds 1"),
        ({"temperature": None}, "temperature=None: must be a number"),
        ({"temperature": "hot"}, "temperature='hot': must be a number"),
        ({"seed": 1.5}, "seed=1.5: must be a whole number"),
        ({"max_new_tokens": 2.5}, "max_new_tokens=2.5: must be a whole number"),
        ({"max_new_tokens": "3"}, "max_new_tokens='3': must be a whole number"),
    ],
)
def test_options_of_another_type_are_named(engine: FocusEngine, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine.generate(QUESTION, [A], **options)


def test_no_stop_strings_may_be_none(engine: FocusEngine) -> None:
    assert engine.generate(QUESTION, [A], max_new_tokens=8, stop=None).text == cold(QUESTION, [A])


def test_questions_of_another_type_are_named(engine: FocusEngine) -> None:
    with pytest.raises(ConfigError, match="The question is a NoneType"):
        engine.generate(None)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="A list of questions where one is asked"):
        next(engine.stream(["a", "b"]))  # type: ignore[list-item]
    with pytest.raises(DocumentError, match="half of a character at place"):
        engine.generate("What \udcff?")


def test_settings_of_the_method_go_into_the_config(model_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"give config=FocusConfig\(chunk_size=…\)"):
        FocusEngine.from_pretrained(model_folder, chunk_size=512)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "mps"}, "device='mps': FocusLLM runs on 'cpu' and 'cuda'"),
        ({"device": "meta"}, "device='meta': FocusLLM runs on 'cpu' and 'cuda'"),
        ({"dtype": "float8_e4m3fn"}, "dtype='float8_e4m3fn': use 'auto', 'float32'"),
        ({"dtype": torch.float32}, "dtype=torch.float32: use .* as text"),
    ],
)
def test_unknown_devices_and_dtypes_are_named(model_folder: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FocusEngine.from_pretrained(model_folder, **arguments)


def test_what_one_model_prepared_is_not_read_by_another_made_in_python(model_folder: Path) -> None:
    first, second = (
        FocusEngine.from_model(AutoModelForCausalLM.from_pretrained(model_folder), byte_tokenizer()) for _ in range(2)
    )
    with pytest.raises(DocumentError, match="Prepare them again"):
        second.generate(QUESTION, first.prepare(A))


@pytest.fixture
def penalised(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens of each question count for the repetition penalty."""
    seen: list[int] = []
    make = engine_module.Sampler

    def noting(config: Any, tokens: torch.Tensor) -> Any:
        seen.append(len(tokens))
        return make(config, tokens)

    monkeypatch.setattr(engine_module, "Sampler", noting)
    return seen


def test_the_repetition_penalty_counts_the_local_context(engine: FocusEngine, penalised: list[int]) -> None:
    """Of one long prompt, what is read in chunks does not count, as documents do not."""
    engine.generate(A, chat_template=False, max_new_tokens=1)
    engine.generate("Why?", [A], chat_template=False, max_new_tokens=1)
    assert penalised == [engine.config.local_window + 1, len("Why?") + 1]  # and a BOS


def test_the_repetition_penalty_never_counts_documents(penalised: list[int]) -> None:
    """Read by the plain model, they stand in the same row as the question."""
    answer = make_engine(plain_up_to=400).generate("Why?", [A], chat_template=False, max_new_tokens=1)
    assert answer.usage.chunks == 0
    assert penalised == [len("Why?") + 1]


def test_an_answer_ends_where_the_tokenizer_says(engine: FocusEngine) -> None:
    """Some models have no generation config."""
    model = engine.shared.loaded.model
    model.generation_config = None
    tokenizer = byte_tokenizer()
    assert FocusEngine.from_model(model, tokenizer)._eos == {tokenizer.eos_token_id}


def test_chunks_are_counted_up_to_the_last(engine: FocusEngine) -> None:
    """The count would begin again with every block of chunks."""
    seen: list[tuple[int, int]] = []
    engine.prepare("".join(f"line {number}\n" for number in range(500)), report=lambda *done: seen.append(done))
    total = seen[-1][1]
    assert total > 64
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (total, total)


def test_tokens_of_a_document_are_counted_without_a_bos_that_is_not_there(engine: FocusEngine) -> None:
    """Under the authors' rule only the first chunk has one."""
    config = FocusConfig(chunk_size=64, dynamic_prompt=32, local_window=128, plain_up_to=0, bos_per_chunk=False)
    answer = FocusEngine(engine.shared, config=config).generate(QUESTION, [A], max_new_tokens=1)
    assert answer.usage.document_tokens == len(A)


def test_weights_are_shared_by_all_who_ask_for_the_same(tiny_folder: Path) -> None:
    """By default or by name, one after the other or at the same time; and by nobody else."""

    def load(**settings: Any) -> Any:
        return FocusEngine.from_pretrained(tiny_folder, device="cpu", **settings).shared

    made: list[Any] = []
    threads = [threading.Thread(target=lambda: made.append(load())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(shared) for shared in made}) == 1
    assert load(dtype="float32") is made[0]
    assert load(dtype="bfloat16") is not made[0]
    assert load(attn_implementation="eager") is not made[0]
    (tiny_folder / "generation_config.json").write_text("{}")  # written again
    assert load() is not made[0]


def test_a_special_token_as_stop_string_ends_the_answer(engine: FocusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It never becomes text, so that no search in the text would find it."""
    engine.tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    turn, tokens = engine.tokenizer.convert_tokens_to_ids("<turn>"), iter([70, 71, None, 72, 73])

    def choose(samplers: list[Sampler], logits: Tensor) -> list[int]:
        token = next(tokens)
        return [turn if token is None else token]

    monkeypatch.setattr(engine_module, "choose", choose)
    answer = engine.generate(QUESTION, [A], max_new_tokens=5, stop=["<turn>"])
    assert answer.text == engine.tokenizer.decode([70, 71])
    assert (answer.finish_reason, answer.usage.output_tokens) == ("stop", 3)


@pytest.mark.parametrize("nbytes", ["1GB", -5, 1.5])
def test_impossible_store_sizes_are_named(model_folder: Path, nbytes: Any) -> None:
    with pytest.raises(ConfigError, match=f"store_bytes={nbytes!r}"):
        FocusEngine.from_pretrained(model_folder, device="cpu", store_bytes=nbytes)


def test_the_embedded_model_is_never_rounded_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU "auto" is bfloat16, in which it finds less than its card says."""

    class LoadingError(Exception):
        pass

    def load(*_: Any, dtype: str, **__: Any) -> None:
        raise LoadingError(dtype)

    monkeypatch.setattr(registry, "load_model", load)
    monkeypatch.setattr(registry, "_shared", {})
    monkeypatch.setattr(registry, "_resolve", lambda name: (name, None))
    for model, asked, wanted in ((None, "auto", "float32"), (None, "bfloat16", "bfloat16"), ("a/b", "auto", "auto")):
        with pytest.raises(LoadingError, match=wanted):
            FocusEngine.from_pretrained(model, dtype=asked)


@pytest.mark.parametrize("name", ["model", "adapter"])
def test_an_empty_name_is_refused(name: str) -> None:
    """A variable that is not set would be taken for the embedded model, or for no adapter."""
    with pytest.raises(ConfigError, match=f"{name}='': name a folder or a hub id"):
        FocusEngine.from_pretrained(**{name: ""})  # type: ignore[arg-type]


def test_without_a_template_an_answer_goes_on_where_the_question_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first space or line end would be lost, and a stop string there not be found."""
    engine = make_engine()
    engine.tokenizer.chat_template = None
    tokens = itertools.cycle(engine.tokenize(" \n a"))
    monkeypatch.setattr(engine_module, "choose", lambda samplers, logits: [next(tokens)])
    assert engine.generate(QUESTION, [A], max_new_tokens=4).text == " \n a"
    assert engine.generate(QUESTION, [A], max_new_tokens=4, stop="\n").text == " "


def test_documents_of_another_folder_of_the_same_name_are_refused(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens of one model's tokenizer would go to another model."""
    monkeypatch.chdir(tiny_folder.parent)
    prepared = FocusEngine.from_pretrained("model", device="cpu").prepare([A])
    (tmp_path / "else").mkdir()
    shutil.copytree(tiny_folder, tmp_path / "else" / "model")
    monkeypatch.chdir(tmp_path / "else")
    with pytest.raises(DocumentError, match="Prepare them again"):
        FocusEngine.from_pretrained("model", device="cpu").generate(QUESTION, prepared)


def test_closing_stops_the_steps(engine: FocusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer would be made to its end, and thrown away."""
    steps: list[int] = []
    step = FocusModel.decode_step

    def counted(self: FocusModel, *arguments: Any, **options: Any) -> Tensor:
        steps.append(1)
        return step(self, *arguments, **options)

    monkeypatch.setattr(FocusModel, "decode_step", counted)
    monkeypatch.setattr(engine, "_eos", frozenset())
    pieces = engine.stream(QUESTION, [A], max_new_tokens=50)
    next(pieces)
    pieces.close()
    assert len(steps) < 10
