"""Whole documents reach the engine whole, once and in order, whatever carries them; nothing is left out in silence."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    HumanMessageChunk,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.content import create_plaintext_block, create_text_block
from langchain_core.prompt_values import StringPromptValue
from langchain_core.prompts import PromptTemplate

from focus_core import Document as WholeDocument
from focus_core import FocusEngine
from focus_core.errors import ConfigError, DocumentError, FocusWarning
from focus_core.text.tokenizer import TextTokenizer
from focus_integrations.langchain import ChatFocusLLM, FocusLLM, FocusPromptValue
from focus_integrations.langchain.documents import whole_documents_of
from focus_integrations.langchain.messages import conversation_from
from tests.integrations.langchain.conftest import text_of
from tests.integrations.spies import EngineCall
from tests.tiny import byte_tokenizer

A = "In the first story Ada keeps the lighthouse. " * 4
B = "In the second story Edith sells bread. " * 4
C = "In the third story nobody speaks. " * 4


def blocks(*listed: Any) -> list[Any]:
    return list(listed)


# --- as an argument ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        (A, [A]),
        (Document(A), [A]),
        ([A, Document(B)], [A, B]),
        ((Document(B), A), [B, A]),
        ([A, B, A, Document(B)], [A, B]),
        ({"a": B, "b": A}.values(), [B, A]),
    ],
    ids=["string", "document", "list", "tuple", "duplicates", "view"],
)
def test_documents_may_be_strings_or_langchains(
    model: Any, asked: list[EngineCall], documents: Any, expected: list[str]
) -> None:
    model.invoke("Who?", documents=documents, max_tokens=1)
    assert [call.documents for call in asked] == [expected]


def test_metadata_stay_outside(model: Any, asked: list[EngineCall]) -> None:
    """They hold paths, scores, ids; a model that shall read them is shown them by a document prompt."""
    model.invoke("Who?", documents=[Document(A, metadata={"source": "a.txt", "score": 0.3})], max_tokens=1)
    assert asked[0].documents == [A]


def test_a_generator_is_refused(model: Any) -> None:
    """The response cache looks at the documents first; the model would then be asked without any."""
    with pytest.raises(DocumentError, match="pass a list"):
        model.invoke("Who?", documents=(text for text in [A, B]))


@pytest.mark.parametrize("wrong", [[A, 5], [None], [b"bytes"], [["nested"]]], ids=str)
def test_what_is_no_document_is_refused(model: Any, wrong: list[Any]) -> None:
    with pytest.raises(DocumentError, match=rf"Document {len(wrong)} of {len(wrong)} is (a|None)"):
        model.invoke("Who?", documents=wrong)


def test_an_empty_document_is_refused(model: Any) -> None:
    with pytest.raises(DocumentError, match="empty"):
        model.invoke("Who?", documents=[A, "  "])


def test_an_empty_page_is_skipped_with_a_warning(model: Any, asked: list[EngineCall]) -> None:
    """It is a document of LangChain's, and comes from a loader; an empty text is a mistake of the program."""
    with pytest.warns(FocusWarning, match="Skipped 1 of 3 documents, because they hold no text: number 2"):
        model.invoke("Who?", documents=[Document(A), Document(" "), B], max_tokens=1)
    assert asked[0].documents == [A, B]
    with pytest.raises(DocumentError, match=r"All documents \(1\) are empty"):
        model.invoke("Who?", documents=Document(""))


def test_documents_can_be_bound(model: Any, asked: list[EngineCall]) -> None:
    about_a = model.bind(documents=[A])
    about_a.invoke("Who?", max_tokens=1)
    list(about_a.stream("Who?", max_tokens=1))
    about_a.batch(["Who?", "What?"], max_tokens=1)
    assert [call.documents for call in asked] == [[A]] * len(asked)
    assert sum(len(call.questions) for call in asked) == 4


async def test_bound_documents_hold_for_every_way_to_ask(model: Any, asked: list[EngineCall]) -> None:
    """LangChain's own binding forgets them in `generate`."""
    bound = model.bind(documents=[A]).bind(max_tokens=1).with_config(tags=["a"])
    prompt = StringPromptValue(text="Who?")
    prompts = [prompt.to_messages() if isinstance(model, ChatFocusLLM) else prompt.text]
    bound.generate(prompts)
    await bound.agenerate(prompts)
    bound.generate_prompt([prompt])
    await bound.agenerate_prompt([prompt], max_tokens=2)
    assert [call.documents for call in asked] == [[A]] * 4
    assert [call.options["max_new_tokens"] for call in asked] == [1, 1, 1, 2]


def test_documents_of_the_call_replace_bound_ones(model: Any, asked: list[EngineCall]) -> None:
    model.bind(documents=[A]).invoke("Who?", documents=[B], max_tokens=1)
    assert asked[0].documents == [B]


def test_prepared_documents_go_wherever_documents_go(model: Any) -> None:
    prepared = model.engine.prepare([A])
    assert text_of(model.invoke("Who?", documents=prepared)) == text_of(model.invoke("Who?", documents=[A]))
    mixed = text_of(model.invoke("Who?", documents=[prepared, Document(B)]))
    assert mixed == text_of(model.invoke("Who?", documents=[A, B]))


def test_a_plain_prompt_longer_than_the_window_is_read_in_chunks(model: Any, engine: FocusEngine) -> None:
    """Unchanged programs put everything into one prompt."""
    long = "word " * (engine.config.window // 3) + "Who?"
    assert engine.count_tokens(long) > engine.config.window
    assert text_of(model.invoke(long, max_tokens=4)) == engine.generate(long, max_new_tokens=4).text


# --- as content blocks ------------------------------------------------------------------------------------------------


def test_text_blocks_hold_documents_and_the_question(chat: ChatFocusLLM, asked: list[EngineCall]) -> None:
    """`message.text`, from which prompts are usually made, leaves the documents out."""
    content = blocks(create_plaintext_block(text=A), create_text_block("Who?"), create_plaintext_block(text=B))
    chat.invoke([HumanMessage(content)], max_tokens=1)
    assert asked[0].documents == [A, B]
    assert asked[0].questions == [[{"role": "user", "content": "Who?"}]]


def test_title_and_context_of_a_block_are_read_before_its_text(chat: ChatFocusLLM, asked: list[EngineCall]) -> None:
    block = create_plaintext_block(text=A, title="The lighthouse", context="Found in 1911.")
    chat.invoke([HumanMessage(blocks(block, create_text_block("Who?")))], max_tokens=1)
    assert asked[0].documents == [f"The lighthouse\n\nFound in 1911.\n\n{A}"]


def test_blocks_come_first_then_the_argument_each_text_once(chat: ChatFocusLLM, asked: list[EngineCall]) -> None:
    messages: list[BaseMessage] = [
        SystemMessage(blocks(create_text_block("Be brief."), create_plaintext_block(text=C))),
        HumanMessage(blocks(create_plaintext_block(text=B), "Who?", create_plaintext_block(text=C))),
    ]
    chat.invoke(messages, documents=[Document(B), A], max_tokens=1)
    assert asked[0].documents == [C, B, A]
    assert [message["role"] for message in asked[0].questions[0]] == ["system", "user"]


def test_documents_of_earlier_messages_stay(chat: ChatFocusLLM, asked: list[EngineCall]) -> None:
    """A conversation about a document goes on about it."""
    history = [HumanMessage(blocks(create_plaintext_block(text=A), create_text_block("Who?")))]
    answer = chat.invoke(history, max_tokens=4)
    chat.invoke([*history, answer, HumanMessage("And then?")], max_tokens=1)
    assert [call.documents for call in asked] == [[A], [A]]
    assert [message["role"] for message in asked[1].questions[0]] == ["user", "assistant", "user"]


@pytest.mark.parametrize("text", [None, 5])
def test_a_text_block_without_text_is_refused(chat: ChatFocusLLM, text: Any) -> None:
    with pytest.raises(ConfigError, match=f"A text block holds {text} for its text"):
        chat.invoke([HumanMessage(blocks({"type": "text", "text": text}))])


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image", "url": "https://example.com/cat.png"},
        {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
        {"type": "audio", "base64": "AAAA", "mime_type": "audio/wav"},
        {"type": "file", "base64": "AAAA", "mime_type": "application/pdf"},
        {"type": "thoughts", "value": 1},
    ],
    ids=lambda block: block["type"],
)
def test_other_blocks_are_refused_by_name(chat: ChatFocusLLM, block: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"type '{block['type']}' cannot be read: this model reads text only"):
        chat.invoke([HumanMessage(blocks(block, create_text_block("Who?")))])


def test_a_text_block_that_only_points_to_its_text_is_refused(chat: ChatFocusLLM) -> None:
    """Nothing is fetched from anywhere."""
    block = create_plaintext_block(url="https://example.com/a.txt")
    with pytest.raises(DocumentError, match="Give the text"):
        chat.invoke([HumanMessage(blocks(block, create_text_block("Who?")))])


# --- messages ---------------------------------------------------------------------------------------------------------


def test_messages_of_tools_are_refused_by_name(chat: ChatFocusLLM) -> None:
    call = {"name": "add", "args": {}, "id": "1", "type": "tool_call"}
    with pytest.raises(ConfigError, match="AIMessage holds tool calls"):
        chat.invoke([HumanMessage("Add."), AIMessage("", tool_calls=[call])])
    with pytest.raises(ConfigError, match="A ToolMessage cannot be read"):
        chat.invoke([HumanMessage("Add."), ToolMessage("5", tool_call_id="1")])


def test_neighbours_of_one_role_become_one_message(chat: ChatFocusLLM, asked: list[EngineCall]) -> None:
    """Templates demand roles that take turns."""
    chat.invoke([HumanMessage("Hello."), HumanMessage("Who?"), AIMessage("Ada."), HumanMessage("Why?")], max_tokens=1)
    assert asked[0].questions[0] == [
        {"role": "user", "content": "Hello.\n\nWho?"},
        {"role": "assistant", "content": "Ada."},
        {"role": "user", "content": "Why?"},
    ]


def test_streamed_messages_can_be_handed_back(chat: ChatFocusLLM, asked: list[EngineCall]) -> None:
    """What a stream adds up to is a chunk, of another class than a whole message."""
    whole, *chunks = chat.stream("Who?", max_tokens=4)
    for chunk in chunks:
        whole += chunk
    assert isinstance(whole, AIMessageChunk)
    chat.invoke([HumanMessageChunk(content="Who?"), whole, ChatMessage(content="Why?", role="user")], max_tokens=1)
    assert [message["role"] for message in asked[1].questions[0]] == ["user", "assistant", "user"]


def test_without_messages_there_is_nothing_to_answer(chat: ChatFocusLLM) -> None:
    with pytest.raises(ConfigError, match="no messages"):
        chat.invoke([])


# --- as a prompt value ------------------------------------------------------------------------------------------------


def test_a_prompt_value_carries_documents_into_a_chat(chat: ChatFocusLLM, asked: list[EngineCall]) -> None:
    chat.invoke(FocusPromptValue("Who?", [Document(A), B, A]), max_tokens=1)
    assert asked[0].documents == [A, B]
    assert asked[0].questions == [[{"role": "user", "content": "Who?"}]]


def test_a_prompt_value_is_one_long_prompt_for_the_language_model(llm: FocusLLM, asked: list[EngineCall]) -> None:
    llm.invoke(FocusPromptValue("Who?", [Document(A), B, A]), max_tokens=1)
    assert asked[0].questions == [f"{A}\n\n{B}\n\nWho?"]


def test_equal_prompt_values_are_equal_messages() -> None:
    first, second = (FocusPromptValue("Who?", [A, B]).to_messages() for _ in range(2))
    assert first == second
    assert first != FocusPromptValue("Who?", [B, A]).to_messages()


def test_control_tokens_of_a_file_name_in_the_document_prompt_are_text() -> None:
    """The name becomes a part of the text, and ends no turn there."""
    prompt = PromptTemplate.from_template("{source}: {page_content}")
    (document,) = whole_documents_of(Document("some text", metadata={"source": "<eos>.txt"}), prompt)
    tokenizer = byte_tokenizer()
    tokens = TextTokenizer(tokenizer).document(document).token_ids
    assert tokenizer.decode(list(tokens)) == "<eos>.txt: some text"
    assert not set(tokenizer.all_special_ids) & set(tokens)


def test_a_document_knows_its_characters_behind_its_prompt() -> None:
    """Those of a source are the document's own, whatever stands around them."""
    page = Document("The pass key is 7.", metadata={"source": "a.txt"})
    prompt = PromptTemplate.from_template("{source}\n\n{page_content} (end)")
    (document,) = whole_documents_of(page, prompt)
    assert isinstance(document, WholeDocument)
    assert document.text is not None
    assert document.own is not None
    assert document.text[slice(*document.own)] == page.page_content
    (as_it_stands,) = whole_documents_of(page)
    assert isinstance(as_it_stands, WholeDocument)
    assert as_it_stands.own is None
    block = create_plaintext_block(text=page.page_content, title="A title", context="Where it is from")
    ((text, name, own),) = conversation_from([HumanMessage([block, create_text_block("Which?")])]).documents
    assert (text[slice(*own)], name) == (page.page_content, "A title")
