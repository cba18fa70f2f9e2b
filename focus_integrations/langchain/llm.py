"""FocusLLM: the language model of LangChain, text in and text out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseLLM, LangSmithParams
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from pydantic import ConfigDict, PrivateAttr

from focus_core import Answer, Finished
from focus_integrations.langchain.base import LangChainSettings, answer_metadata, usage_metadata
from focus_integrations.langchain.bound import BoundModel
from focus_integrations.langchain.readings import relaying, telling
from focus_integrations.settings import Call, content_digest
from focus_integrations.sources import live_metadata
from focus_integrations.streams import OnReading, answers_in_thread, in_thread

_OF_THE_RUN = {"tags", "metadata", "run_name", "run_id"}


class FocusLLM(LangChainSettings, BaseLLM):
    """A local model that answers from whole documents.

    Example:
        `FocusLLM().invoke("What is the pass key?", documents=[text, document])`

    A call takes `documents` (LangChain's, strings, or prepared ones), `stop`, `system_prompt` and everything in
    `focus_integrations.settings.PER_CALL`. Without `documents` a prompt may itself be longer than the window: all but
    its end is then prefilled in chunks.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True, protected_namespaces=())

    # Digest of the present call. LangChain keys its response cache by `_identifying_params` and forgets the call's
    # own arguments: without this, the answer about one document would be given for another.
    _call_digest: str | None = PrivateAttr(default=None)

    @property
    def _llm_type(self) -> str:
        return "focusllm"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        call = {"call": self._call_digest} if self._call_digest else {}
        return {**self.identifying, **call}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self.with_names(super()._get_ls_params(stop=stop, **kwargs), kwargs)

    # --- the response cache -------------------------------------------------------------------------------------------

    def _known_by(self, arguments: dict[str, Any]) -> FocusLLM:
        """This model as the response cache should know it during one call."""
        own = {name: value for name, value in arguments.items() if name not in _OF_THE_RUN}
        if not own:
            return self
        call = self.call_with(own, None)
        known = self.model_copy()
        known.__dict__.pop("_serialized", None)  # a cached property, of the model without the call
        known._call_digest = content_digest([call.digest, call.system_prompt])
        return known

    def generate(
        self, prompts: list[str], stop: list[str] | None = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        """LangChain's `generate`, with a response cache that tells documents apart."""
        known = self._known_by(kwargs)
        result = super(FocusLLM, known).generate(prompts, stop, callbacks, **kwargs)
        self._engine = known._engine or self._engine  # held here, it is not loaded again for the next call
        return result

    async def agenerate(
        self, prompts: list[str], stop: list[str] | None = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        """LangChain's `agenerate`, with a response cache that tells documents apart."""
        known = self._known_by(kwargs)
        result = await super(FocusLLM, known).agenerate(prompts, stop, callbacks, **kwargs)
        self._engine = known._engine or self._engine
        return result

    def bind(self, **kwargs: Any) -> BoundModel:
        """Arguments for every call: `documents`, settings, `stop`. Those of the call replace those of the same name."""
        return BoundModel(bound=self, kwargs=kwargs, config={})

    # --- answers ------------------------------------------------------------------------------------------------------

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        call = self.call_with(kwargs, stop)
        on_reading = telling(run_manager)
        answers = self.engine.generate(
            list(prompts), system=call.system_prompt, **call.arguments, on_reading=on_reading
        )
        return self._result(answers)

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        call = self.call_with(kwargs, stop)
        relay = relaying(run_manager)
        events = self._events(prompts, call, system=call.system_prompt, on_reading=relay)
        return self._result(await answers_in_thread(events, len(prompts), relay))

    def _result(self, answers: list[Answer]) -> LLMResult:
        return LLMResult(
            generations=[[_generation(answer)] for answer in answers],
            llm_output={"token_usage": _summed(answers), "model_name": self.model},
        )

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        for chunk in self._chunks(prompt, self.call_with(kwargs, stop, streamed=True), telling(run_manager)):
            if run_manager is not None:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        relay = relaying(run_manager)
        made = self._chunks(prompt, self.call_with(kwargs, stop, streamed=True), relay)
        async with aclosing(in_thread(made, relay)) as chunks:
            async for chunk in chunks:
                if run_manager is not None:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    def _chunks(self, prompt: str, call: Call, on_reading: OnReading | None) -> Iterator[GenerationChunk]:
        asked = self._events([prompt], call, system=call.system_prompt, on_reading=on_reading)
        with closing(asked) as events:
            for _, event in events:
                info = {**live_metadata(event), **(_info(event) if isinstance(event, Finished) else {})}
                yield GenerationChunk(text=event.text, generation_info=info or None)


def _generation(answer: Answer) -> Generation:
    return Generation(text=answer.text, generation_info=_info(answer))


def _info(end: Answer | Finished) -> dict[str, Any]:
    return {**answer_metadata(end), "usage_metadata": usage_metadata(end.usage)}


def _summed(answers: list[Answer]) -> dict[str, int]:
    prompt = sum(answer.usage.input_tokens for answer in answers)
    completion = sum(answer.usage.output_tokens for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
