"""What one call can ask for, and what it reports."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage, trim_messages
from langchain_core.messages.content import create_plaintext_block, create_text_block
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.tools import tool

from focus_core import FocusEngine
from focus_core.errors import ConfigError, FocusError
from focus_integrations.langchain import ChatFocusLLM, FocusLLM
from tests.integrations.langchain.conftest import text_of
from tests.integrations.spies import EngineCall
from tests.model_zoo import build
from tests.tiny import byte_tokenizer

DOCUMENT = "The gates were closed at noon, and nobody saw the keeper again. " * 6


# --- settings ---------------------------------------------------------------------------------------------------------


def test_stop_strings_of_the_call_come_on_top_of_the_models_own(
    model_class: Any, tiny_settings: dict[str, Any]
) -> None:
    """Whichever comes first ends the answer; others forget the constructor's when a call has some."""
    whole = text_of(model_class(**tiny_settings).invoke("Who?"))
    early, late = whole[4], whole[8:10]
    first = min(whole.index(early), whole.index(late))
    ending_late = model_class(**tiny_settings, stop=[late])
    assert text_of(ending_late.invoke("Who?")) == whole[: whole.index(late)]
    assert text_of(ending_late.invoke("Who?", stop=[early])) == whole[:first]
    assert text_of(model_class(**tiny_settings, stop=[early]).invoke("Who?", stop=[late])) == whole[:first]
    assert "".join(map(text_of, ending_late.stream("Who?", stop=[early]))) == whole[:first]


def test_every_setting_works_on_the_model_and_on_the_call(
    model_class: Any, tiny_settings: dict[str, Any], asked: list[EngineCall]
) -> None:
    settings = {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 20,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "seed": 3,
        "system_prompt": "Be brief.",
        "max_tokens": 5,
    }
    by_model = text_of(model_class(**tiny_settings | settings).invoke("Who?"))
    by_call = text_of(model_class(**tiny_settings).invoke("Who?", **settings))
    bound = text_of(model_class(**tiny_settings).bind(**settings).invoke("Who?"))
    assert by_model == by_call == bound
    assert len(by_model) == 5
    assert asked[0].options == asked[1].options == asked[2].options
    assert asked[0].options["temperature"] == 0.7
    assert (asked[0].options["top_p"], asked[0].options["top_k"], asked[0].options["seed"]) == (0.9, 20, 3)


def test_a_call_that_sets_something_leaves_the_model_as_it_was(model: Any) -> None:
    before = text_of(model.invoke("Who?"))
    model.invoke("Who?", max_tokens=2, temperature=1.5, seed=1, system_prompt="Be wild.")
    assert text_of(model.invoke("Who?")) == before


def test_max_new_tokens_is_another_name_for_max_tokens(model_class: Any, tiny_settings: dict[str, Any]) -> None:
    """That of transformers, and of the engine."""
    named = {name: value for name, value in tiny_settings.items() if name != "max_tokens"}
    assert len(text_of(model_class(**named, max_new_tokens=3).invoke("Who?"))) == 3
    assert len(text_of(model_class(**tiny_settings).invoke("Who?", max_new_tokens=3))) == 3


def test_temperature_zero_is_greedy_and_a_seed_repeats(model: Any) -> None:
    greedy = text_of(model.invoke("Who?"))
    assert text_of(model.invoke("Who?", temperature=0)) == greedy
    assert text_of(model.invoke("Who?", temperature=0, seed=5)) == greedy
    wild = [text_of(model.invoke("Who?", temperature=3.0, seed=seed)) for seed in (1, 1, 2)]
    assert wild[0] == wild[1]
    assert wild[0] != wild[2]
    assert wild[0] != greedy


def test_the_system_prompt_stands_before_the_question(
    model_class: Any, tiny_settings: dict[str, Any], engine: FocusEngine
) -> None:
    expected = engine.generate("Who?", system="Be brief.", max_new_tokens=6).text
    assert expected != engine.generate("Who?", max_new_tokens=6).text
    assert text_of(model_class(**tiny_settings).invoke("Who?", system_prompt="Be brief.", max_tokens=6)) == expected
    own = model_class(**tiny_settings, system_prompt="Be brief.")
    assert text_of(own.invoke("Who?", max_tokens=6)) == expected


def test_without_the_template_a_prompt_is_continued(model: Any, engine: FocusEngine) -> None:
    expected = engine.generate("Once upon", chat_template=False, max_new_tokens=6).text
    assert text_of(model.invoke("Once upon", chat_template=False, max_tokens=6)) == expected


def test_impossible_values_are_refused(model: Any) -> None:
    for wrong in ({"temperature": -1}, {"max_tokens": 0}, {"top_p": 0.0}, {"stop": [""]}):
        with pytest.raises(FocusError):
            model.invoke("Who?", **wrong)


# --- reports ----------------------------------------------------------------------------------------------------------


def test_a_second_question_reads_nothing(chat: ChatFocusLLM) -> None:
    """And says so in LangChain's own words."""
    document = "Told for the first time. " * 20
    first = chat.invoke("Who?", documents=[document]).usage_metadata
    second = chat.invoke("What else?", documents=[document]).usage_metadata
    assert first is not None
    assert second is not None
    assert first["input_token_details"] == {"cache_read": 0, "cache_creation": len(document)}
    assert second["input_token_details"] == {"cache_read": len(document), "cache_creation": 0}
    assert first["total_tokens"] == first["input_tokens"] + first["output_tokens"]


def test_the_reason_for_the_end_is_said_once(chat: ChatFocusLLM) -> None:
    """LangChain glues the texts of all chunks together: on two chunks it would be "lengthlength"."""
    whole, *chunks = chat.stream("Who?")
    for chunk in chunks:
        whole += chunk
    assert whole.response_metadata["finish_reason"] == "length"
    assert whole.response_metadata["model_name"] == chat.model
    answer = chat.invoke("Who?", stop=[str(whole.content)[5]])
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.response_metadata["model_provider"] == "focusllm"


def test_the_language_model_reports_usage_and_end(llm: FocusLLM) -> None:
    result = llm.generate(["Who?", "What else?"], max_tokens=4)
    assert [one[0].generation_info["finish_reason"] for one in result.generations] == ["length", "length"]  # type: ignore[index]
    each = [one[0].generation_info["usage_metadata"] for one in result.generations]  # type: ignore[index]
    assert result.llm_output is not None
    usage = result.llm_output["token_usage"]
    assert usage["completion_tokens"] == 8
    assert usage["prompt_tokens"] == sum(one["input_tokens"] for one in each)
    assert usage["total_tokens"] == usage["prompt_tokens"] + 8


def test_langchains_usage_callback_adds_up(chat: ChatFocusLLM) -> None:
    counter = UsageMetadataCallbackHandler()
    replies = [chat.invoke("Who?", {"callbacks": [counter]}, documents=[DOCUMENT]) for _ in range(2)]
    expected = sum(reply.usage_metadata["input_tokens"] for reply in replies if reply.usage_metadata)
    assert counter.usage_metadata[chat.model]["input_tokens"] == expected


def test_tokens_are_counted_with_the_models_tokenizer(model: Any) -> None:
    """LangChain's default asks the network for the tokenizer of GPT-2, and counts 0 without one."""
    assert model.get_num_tokens("Grüße") == len("Grüße".encode())
    assert len(model.get_token_ids("abc")) == 3


def test_messages_are_counted_with_template_and_documents(chat: ChatFocusLLM) -> None:
    """As the answer's usage counts them: a program that checks before it asks must not be wrong."""
    blocks: list[Any] = [create_plaintext_block(text=DOCUMENT, title="Gates"), create_text_block("Who?")]
    conversations: list[list[BaseMessage]] = [
        [HumanMessage("Who?")],
        [SystemMessage("Be brief."), HumanMessage(blocks)],
    ]
    for messages in conversations:
        usage = chat.invoke(messages, max_tokens=1).usage_metadata
        assert usage is not None
        assert chat.get_num_tokens_from_messages(messages) == usage["input_tokens"]
    with pytest.raises(ConfigError, match="no tools"):
        chat.get_num_tokens_from_messages([HumanMessage("Who?")], tools=[dict])


def test_documents_that_come_twice_are_counted_once(chat: ChatFocusLLM) -> None:
    """As they are read."""
    blocks: list[Any] = [create_plaintext_block(text=DOCUMENT), create_text_block("Who?")]
    messages = [HumanMessage(blocks), AIMessage("Ada."), HumanMessage(blocks)]
    usage = chat.invoke(messages, max_tokens=1).usage_metadata
    assert usage is not None
    assert chat.get_num_tokens_from_messages(messages) == usage["input_tokens"]


@pytest.mark.parametrize("strategy", ["first", "last"])
def test_histories_are_trimmed_to_a_part_of_a_message(chat: ChatFocusLLM, strategy: Any) -> None:
    """Then LangChain counts an empty list, too."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    around = chat.get_num_tokens_from_messages([HumanMessage("x")]) - 1
    (trimmed,) = trim_messages(
        [HumanMessage(letters)],
        max_tokens=around + 7,
        token_counter=chat,
        strategy=strategy,
        allow_partial=True,
        text_splitter=list,
    )
    assert trimmed.content == (letters[:7] if strategy == "first" else letters[-7:])
    assert chat.get_num_tokens_from_messages([]) == 0


def test_histories_with_messages_of_tools_are_counted_and_trimmed(chat: ChatFocusLLM) -> None:
    """Another model called them; once they are trimmed away, this one goes on."""
    call = {"name": "add", "args": {"a": 2}, "id": "1", "type": "tool_call"}
    calling, result = AIMessage("", tool_calls=[call]), ToolMessage("5", tool_call_id="1")
    image = HumanMessage(["Look:", {"type": "image", "url": "https://example.com/cat.png"}])
    history: list[BaseMessage] = [HumanMessage("Add."), calling, result, AIMessage("5."), image, HumanMessage("Why?")]
    counts = [chat.get_num_tokens_from_messages(history[:number]) for number in range(len(history) + 1)]
    assert counts == sorted(set(counts))
    assert counts[2] - counts[1] > len(str(call))
    last = chat.get_num_tokens_from_messages(history[-1:])
    for counter in (chat, chat.bind(documents=[DOCUMENT])):
        trimmed = trim_messages(history, max_tokens=last + 5, token_counter=counter, start_on="human")
        assert trimmed == [HumanMessage("Why?")]
        assert trim_messages(history, max_tokens=counts[-1], token_counter=counter) == history


def test_parts_of_a_conversation_are_counted_where_the_template_refuses_them(engine: FocusEngine) -> None:
    """Some templates insist on the user's turn first; `trim_messages` counts from the end."""
    tokenizer = byte_tokenizer()
    strict = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}"
    tokenizer.chat_template = strict + str(tokenizer.chat_template)
    chat = ChatFocusLLM.from_engine(FocusEngine.from_model(build("llama", vocab_size=259), tokenizer, progress=False))
    assert chat.get_num_tokens_from_messages([AIMessage("Ada.")]) == len("Ada.")
    history = [HumanMessage("Who?"), AIMessage("Ada."), HumanMessage("Why?")]
    last = chat.get_num_tokens_from_messages(history[-1:])
    assert trim_messages(history, max_tokens=last, token_counter=chat) == history[-1:]


# --- tokens as they come ----------------------------------------------------------------------------------------------


class Tokens(BaseCallbackHandler):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        self.seen.append(str(token))


class AsyncTokens(AsyncCallbackHandler):
    def __init__(self) -> None:
        self.seen: list[str] = []

    async def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        self.seen.append(str(token))


async def test_callbacks_see_every_token_once(model: Any) -> None:
    """The two base classes differ in who reports tokens: too little care gives none, too much gives two."""
    tokens, later = Tokens(), AsyncTokens()
    chunks = [text_of(chunk) for chunk in model.stream("Who?", {"callbacks": [tokens]})]
    assert tokens.seen == chunks
    achunks = [text_of(chunk) async for chunk in model.astream("Who?", {"callbacks": [later]})]
    assert later.seen == achunks == chunks


def test_a_streaming_chat_model_shows_tokens_under_invoke(tiny_settings: dict[str, Any]) -> None:
    tokens = Tokens()
    answer = ChatFocusLLM(**tiny_settings, streaming=True).invoke("Who?", {"callbacks": [tokens]})
    assert "".join(tokens.seen) == answer.content
    assert len(tokens.seen) > 8


async def test_event_streams_carry_every_token_once(model: Any) -> None:
    kind = "on_chat_model_stream" if isinstance(model, ChatFocusLLM) else "on_llm_stream"
    events = [event async for event in model.astream_events("Who?", version="v2")]
    chunks = [event["data"]["chunk"] for event in events if event["event"] == kind]
    texts = [chunk if isinstance(chunk, str) else getattr(chunk, "text", None) or "" for chunk in chunks]
    assert "".join(texts) == text_of(model.invoke("Who?"))
    assert len(chunks) > 8


async def test_the_third_event_protocol_gives_the_answer(chat: ChatFocusLLM) -> None:
    expected = chat.invoke("Who?", documents=[DOCUMENT])
    stream = chat.stream_events("Who?", version="v3", documents=[DOCUMENT])
    assert "".join(stream.text) == expected.content
    assert stream.output.usage_metadata["output_tokens"] == expected.usage_metadata["output_tokens"]  # type: ignore[index]
    later = await chat.astream_events("Who?", version="v3", documents=[DOCUMENT])
    assert "".join([text async for text in later.text]) == expected.content


# --- the rate limiter -------------------------------------------------------------------------------------------------


class Gate(BaseRateLimiter):
    def __init__(self) -> None:
        self.passed = 0

    def acquire(self, *, blocking: bool = True) -> bool:
        self.passed += 1
        return True

    async def aacquire(self, *, blocking: bool = True) -> bool:
        return self.acquire(blocking=blocking)


async def test_the_rate_limiter_is_asked_for_every_answer(tiny_settings: dict[str, Any]) -> None:
    gate = Gate()
    chat = ChatFocusLLM(**tiny_settings, rate_limiter=gate)
    chat.invoke("Who?", max_tokens=1)
    list(chat.stream("Who?", max_tokens=1))
    await chat.ainvoke("Who?", max_tokens=1)
    assert [chunk async for chunk in chat.astream("Who?", max_tokens=1)]
    assert gate.passed == 4
    chat.batch(["Who?", "What?", "When?"], max_tokens=1)
    assert gate.passed == 7


def test_the_language_model_says_that_it_has_no_rate_limiter() -> None:
    """LangChain's base class has none, and ignores the argument in silence."""
    with pytest.raises(ConfigError, match="rate_limiter"):
        FocusLLM(rate_limiter=Gate())  # type: ignore[call-arg]


# --- tools ------------------------------------------------------------------------------------------------------------


def test_tools_are_refused(chat: ChatFocusLLM) -> None:
    """Taking and dropping them would look as if the model had decided against them."""

    @tool
    def add(a: int, b: int) -> int:
        """Adds."""
        return a + b

    with pytest.raises(NotImplementedError, match="takes no tools"):
        chat.bind_tools([add])
    with pytest.raises(ConfigError, match="A ToolMessage cannot be read"):
        chat.invoke([HumanMessage("Who?"), ToolMessage("5", tool_call_id="1")])


def test_a_stream_can_be_left_at_any_time(model: Any, engine: FocusEngine) -> None:
    """The next question is answered at once."""
    stream: Iterator[Any] = model.stream("Who?", documents=[DOCUMENT])
    next(stream)
    del stream
    assert engine.shared.scheduler.idle
    assert text_of(model.invoke("Who?", max_tokens=2))
