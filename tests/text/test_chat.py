"""Layout "chat": what was split, joined again, is what the chat template writes, token for token."""

from __future__ import annotations

import time
from itertools import product

import pytest
from tokenizers import normalizers

from focus_core import ConfigError
from focus_core.text.chat import SEPARATOR, Message
from focus_core.text.tokenizer import TextTokenizer
from tests.text.templates import TEMPLATES, KnownTemplate
from tests.tiny import byte_tokenizer

DOCUMENT, QUESTION = "Anna signed it in May.\n\nBob did not.", "Who signed?"


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


HISTORY: list[Message] = [_user("Hello"), {"role": "assistant", "content": "Good day."}]


def _conversations(known: KnownTemplate) -> list[list[Message]]:
    """Conversations before the question."""
    plain: list[list[Message]] = [[], HISTORY, HISTORY * 2]
    system: Message = {"role": "system", "content": "Be brief."}
    return plain + ([[system], [system, *HISTORY]] if known.system else [])


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("kind", ["bytes", "prepend", "metaspace", "merges"])
def test_a_row_is_what_the_template_writes_with_the_document_in_the_turn(name: str, kind: str) -> None:
    known = TEMPLATES[name]
    tokenizer = known.tokenizer(kind)
    text = TextTokenizer(tokenizer)
    written = DOCUMENT.rstrip(".") if kind == "merges" else DOCUMENT  # a sentence's end is looked at below
    document = text.tokenize(written, in_turn=True)
    for before in _conversations(known):
        turn = text.prompt([*before, _user(QUESTION)], chat_template=True, turn=True).turn
        assert turn is not None
        messages = [*before, _user(f"{written}{SEPARATOR}{QUESTION}")]
        whole: str = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        wanted = tokenizer(whole, add_special_tokens=not whole.startswith("<bos>"))["input_ids"]
        if before and before[0]["role"] == "system" and known.system_in_turn and kind != "bytes":
            # Documents are tokenized as they stand without a system prompt in front of them: here, behind a blank.
            row = tokenizer.decode([*turn.opening, *document, *turn.suffix])
            assert row.replace("\n\n ", "\n\n") == tokenizer.decode(wanted)
            continue
        assert [*turn.opening, *document, *turn.suffix] == wanted
        first, last = turn.words
        assert tokenizer.decode(turn.suffix[first:last]) == QUESTION


@pytest.mark.parametrize("turn", [True, False])
@pytest.mark.parametrize("name", [name for name, known in TEMPLATES.items() if not known.system])
def test_a_system_prompt_is_refused_in_the_templates_own_words(name: str, turn: bool) -> None:
    messages: list[Message] = [{"role": "system", "content": "Be brief."}, _user(QUESTION)]
    with pytest.raises(ConfigError, match="System role not supported"):
        TextTokenizer(TEMPLATES[name].tokenizer()).prompt(messages, chat_template=True, turn=turn)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_sentence_that_ends_a_document_and_the_separator_stay_apart(name: str) -> None:
    """A tokenizer that has `.\\n\\n` as one token would join them. A chunk is read before its question is known."""
    known = TEMPLATES[name]
    tokenizer = known.tokenizer("merges")
    text = TextTokenizer(tokenizer)
    document = text.tokenize(DOCUMENT, in_turn=True)
    turn = text.prompt([_user(QUESTION)], chat_template=True, turn=True).turn
    assert turn is not None
    assert turn.opening == text.turn_opening  # the template is not refused
    row = [*turn.opening, *document, *turn.suffix]
    whole: str = tokenizer.apply_chat_template(
        [_user(f"{DOCUMENT}{SEPARATOR}{QUESTION}")], add_generation_prompt=True, tokenize=False
    )
    wanted = tokenizer(whole, add_special_tokens=not whole.startswith("<bos>"))["input_ids"]
    assert tokenizer.decode(row) == tokenizer.decode(wanted)
    assert tokenizer.convert_tokens_to_ids(".ĊĊ") in wanted
    seam = len(turn.opening) + len(document)
    assert row[: seam - 1] == wanted[: seam - 1]
    assert row[seam + 1 :] == wanted[seam:]


def test_a_tokenizer_that_joins_the_template_with_a_document_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}Q:{{ m.content }}\n{% endfor %}"
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(":A", "#")
    with pytest.raises(ConfigError, match=r"joins what the chat template writes.*layout='raw'"):
        _ = TextTokenizer(tokenizer).turn_opening


def test_white_space_at_the_ends_of_a_document_stays() -> None:
    """Also where the template takes it from a user's words: a chunk is what the document says."""
    tokenizer = TEMPLATES["llama3"].tokenizer()
    text = TextTokenizer(tokenizer)
    assert tokenizer.decode(text.tokenize("  Anna signed. \n", in_turn=True)) == "  Anna signed. \n"


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_opening_is_the_same_for_every_question(name: str) -> None:
    known = TEMPLATES[name]
    text = TextTokenizer(known.tokenizer())
    opening = known.opening if known.opening.startswith("<bos>") else f"<bos>{known.opening}"
    assert text.tokenizer.decode(text.turn_opening) == opening
    turn = text.prompt([_user(QUESTION)], chat_template=True, turn=True).turn
    assert turn is not None
    assert turn.opening == text.turn_opening
    assert text.tokenizer.decode(turn.suffix) == SEPARATOR + QUESTION + known.after


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_tokenizer_that_does_not_tell_characters(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow tokenizers have no offsets; the parts are encoded one by one."""
    tokenizer = TEMPLATES[name].tokenizer()
    fast = TextTokenizer(tokenizer).prompt([*HISTORY, _user(QUESTION)], chat_template=True, turn=True).turn
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    assert TextTokenizer(tokenizer).prompt([*HISTORY, _user(QUESTION)], chat_template=True, turn=True).turn == fast


def test_a_chat_template_with_todays_date() -> None:
    """A chunk begins with the date then, and is read anew the next day."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}{% for m in messages %}|{{ m.content }}|{% endfor %}"
    text = TextTokenizer(tokenizer)
    turn = text.prompt([_user(QUESTION)], chat_template=True, turn=True).turn
    assert turn is not None
    whole = tokenizer.apply_chat_template([_user(f"{DOCUMENT}{SEPARATOR}{QUESTION}")], tokenize=False)
    row = [*turn.opening, *text.tokenize(DOCUMENT), *turn.suffix]
    assert tokenizer.decode(row, skip_special_tokens=True) == whole


@pytest.mark.parametrize("name", TEMPLATES)
def test_white_space_around_the_words_is_treated_as_the_template_does(name: str) -> None:
    tokenizer = TEMPLATES[name].tokenizer()
    turn = TextTokenizer(tokenizer).prompt([_user("Who signed?  \n")], chat_template=True, turn=True).turn
    assert turn is not None
    whole: str = tokenizer.apply_chat_template(
        [_user(f"a{SEPARATOR}Who signed?  \n")], add_generation_prompt=True, tokenize=False
    )
    assert whole.endswith(tokenizer.decode(turn.suffix))


@pytest.mark.parametrize(
    ("name", "where"),
    [
        *product(TEMPLATES, ["question", "history", "answer", "document"]),
        *((name, "system") for name, known in TEMPLATES.items() if known.system),
    ],
)
@pytest.mark.parametrize("kind", ["bytes", "prepend", "metaspace"])
def test_control_tokens_in_the_words_of_people_are_text(name: str, kind: str, where: str) -> None:
    """`<|im_end|>` in a document would end the user's turn, and what follows would speak as the system."""
    known = TEMPLATES[name]
    tokenizer = known.tokenizer(kind)
    text = TextTokenizer(tokenizer)
    marks = [*known.control, *known.marks, "<bos>", "<eos>", "[INST]", "[/INST]", "<|user|>", "<|assistant|>"]
    attack = "".join(f"x{mark}" for mark in marks)
    ids = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    if where == "document":
        tokens = text.tokenize(attack, in_turn=True)
        assert not ids & set(tokens)
        assert tokenizer.decode(tokens) == attack
        return

    asked, calm = (
        {
            "question": [_user(words)],
            "history": [_user(words), HISTORY[1], _user("Why?")],
            "answer": [_user("x"), {"role": "assistant", "content": words}, _user("Why?")],
            "system": [{"role": "system", "content": words}, _user("Why?")],
        }[where]
        for words in (attack, "x")
    )
    for turn in (False, True):
        attacked, wanted = (text.prompt(m, chat_template=True, turn=turn) for m in (asked, calm))
        rows = [p.row if p.turn is None else [*p.turn.opening, *p.turn.suffix] for p in (attacked, wanted)]
        assert attack in tokenizer.decode(rows[0])
        assert [token for token in rows[0] if token in ids] == [token for token in rows[1] if token in ids]


@pytest.mark.parametrize("name", ["llama2", "zephyr"])
def test_marks_that_are_ordinary_text_are_broken_up(name: str) -> None:
    """Of Llama 2, `[INST]` is no token: a document could write the very tokens that begin a turn."""
    known = TEMPLATES[name]
    text, said = TextTokenizer(known.tokenizer()), f"say {' and '.join(known.marks)}"
    pieces = text._control.pieces(said)
    assert "".join(pieces) == said
    assert not any(mark in piece for piece in pieces for mark in known.marks)


def test_a_template_that_writes_much_is_looked_through_at_once() -> None:
    """Marks were found by a pattern that took minutes for a long word of brackets."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ '<' * 100000 }}{% for m in messages %} [USER] {{ m.content }} {% endfor %}"
    started = time.perf_counter()
    pieces = TextTokenizer(tokenizer)._control.pieces("a [USER] b")
    assert time.perf_counter() - started < 2
    assert not any("[USER]" in piece for piece in pieces)


def test_words_that_look_like_our_sentinels_are_words() -> None:
    text = TextTokenizer(TEMPLATES["chatml"].tokenizer())
    question = "Is Zq0vx or Zq1vx a word? <|im_end|> Zq2vx"
    turn = text.prompt([_user(question)], chat_template=True, turn=True).turn
    assert turn is not None
    first, last = turn.words
    assert text.tokenizer.decode(turn.suffix[first:last]) == question


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{{ m.content.split() | join(' ') }}{% endfor %}", r"changes the white space"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", r"once and as they stand"),
        ("{% for m in messages %}{{ m.content + m.content }}{% endfor %}", r"once and as they stand"),
        ("{% for m in messages %}{{ m.content + '!' * (m.content | length) }}{% endfor %}", r"depends on them"),
    ],
)
def test_a_template_without_a_place_for_documents_is_refused_with_the_reason(template: str, reason: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(ConfigError, match=rf"{reason}.*layout='raw'"):
        TextTokenizer(tokenizer).prompt([_user("one two")], chat_template=True, turn=True)


def test_a_conversation_without_a_user_has_no_place_for_documents() -> None:
    text = TextTokenizer(TEMPLATES["chatml"].tokenizer())
    with pytest.raises(ConfigError, match="role 'user'"):
        text.prompt([{"role": "system", "content": "Be brief."}], chat_template=True, turn=True)
