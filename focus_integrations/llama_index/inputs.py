"""What users hand over, checked before LlamaIndex takes it: each error names what was given and the way out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from inspect import isclass, iscoroutinefunction
from typing import Any, TypeVar

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms import LLM
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate, SelectorPromptTemplate
from llama_index.core.schema import BaseNode, ImageNode, Node, NodeWithScore, QueryBundle
from llama_index.core.storage.docstore.types import BaseDocumentStore
from pydantic import BaseModel

from focus_core.errors import ConfigError, DocumentError, warn
from focus_integrations.settings import kind_of

Method = TypeVar("Method", bound=Callable[..., Any])


def hits_from(nodes: Any, *, called: str = "nodes") -> list[NodeWithScore]:
    """Nodes as a retriever returns them; a node without a score, or a document, gets none.

    Raises:
        DocumentError: no list, or something in it that is no node
    """
    if isinstance(nodes, str | bytes | Mapping | BaseModel) or not isinstance(nodes, Iterable):
        raise DocumentError(
            f"{called} is {kind_of(nodes)}, not a list. Give the nodes that a retriever returns, or ask the model: "
            "llm.complete(question, documents=…)."
        )
    listed = list(nodes)
    hits = []
    for number, node in enumerate(listed, 1):
        if not isinstance(node, BaseNode | NodeWithScore):
            raise DocumentError(
                f"Number {number} of {len(listed)} {called} is {kind_of(node)}. Give nodes as a retriever returns them "
                "(NodeWithScore), or documents: Document(text=…)."
            )
        hits.append(node if isinstance(node, NodeWithScore) else NodeWithScore(node=node))
    return hits


def warn_of_pictures(nodes: Iterable[BaseNode]) -> None:
    """A warning that names nodes with a picture, sound or film beside their text, which alone is read."""
    more = [node.node_id for node in nodes if _holds_more_than_text(node)]
    if more:
        warn(f"Only the text is read of nodes that hold a picture, sound or film too: {', '.join(more)}.")


def _holds_more_than_text(node: BaseNode) -> bool:
    if isinstance(node, ImageNode):
        return bool(node.image or node.image_path or node.image_url)
    resources = ("image_resource", "audio_resource", "video_resource")
    return isinstance(node, Node) and any(getattr(node, name, None) is not None for name in resources)


def query_from(query: Any) -> QueryBundle:
    """The question with what LlamaIndex keeps beside it.

    Raises:
        ConfigError: no string and no `QueryBundle`
    """
    if not isinstance(query, str | QueryBundle):
        raise ConfigError(f"query is {kind_of(query)}. Give a string, or a QueryBundle.")
    return QueryBundle(query) if isinstance(query, str) else query


def docstore_from(given: Any) -> BaseDocumentStore | None:
    """A docstore, or that of an index or a storage context.

    Raises:
        ConfigError: something that has no docstore
    """
    found = given if given is None or isinstance(given, BaseDocumentStore) else getattr(given, "docstore", given)
    if found is None or isinstance(found, BaseDocumentStore):
        return found
    raise ConfigError(
        f"docstore is {kind_of(given)}. Give a docstore, an index or a storage context. For a list of documents, make "
        "a store: SimpleDocumentStore(), then add_documents(documents)."
    )


def model_from(given: Any) -> LLM:
    """A model of LlamaIndex.

    Raises:
        ConfigError: the name of one, a class, another library's model
    """
    if isinstance(given, LLM):
        return given
    if isinstance(given, str):
        raise ConfigError(f"llm={given!r} is a name. Give a model: llm=FocusLLM(model={given!r}).")
    if isclass(given):
        raise ConfigError(f"llm is the class {given.__name__}. Give a model: llm={given.__name__}().")
    raise ConfigError(f"llm is {kind_of(given)}, not a model of LlamaIndex. Give llm=FocusLLM(…).")


def template_from(given: Any, *, called: str, variable: str) -> BasePromptTemplate:
    """A template, or one made of its text.

    Args:
        variable: must be in the template

    Raises:
        ConfigError: no template, or one without `variable`, whose value would never reach the model
    """
    template = PromptTemplate(given) if isinstance(given, str) else given
    if not isinstance(template, BasePromptTemplate):
        raise ConfigError(
            f"{called} is {kind_of(given)}. Give a PromptTemplate, or its text, with {{{variable}}} in it."
        )
    written = template.default_template if isinstance(template, SelectorPromptTemplate) else template
    name = (written.template_var_mappings or {}).get(variable, variable)
    if name not in written.template_vars and not written.function_mappings:
        raise ConfigError(
            f"{called} does not hold {{{name}}}: the model would never see it. Write it where it belongs."
        )
    return template


def output_class(given: Any) -> type[BaseModel]:
    """The class that an answer is read as.

    Raises:
        ConfigError: an instance, or a class that pydantic does not know
    """
    if isclass(given) and issubclass(given, BaseModel):
        return given
    if isinstance(given, BaseModel):
        raise ConfigError(f"output_cls is {kind_of(given)} itself. Give its class: output_cls={type(given).__name__}.")
    raise ConfigError(f"output_cls={given!r} is no class of pydantic. Give a subclass of pydantic.BaseModel.")


def of_messages(method: Method) -> Method:
    """For chat endpoints: refuses what is no list of messages before LlamaIndex's callbacks see it."""

    @wraps(method)
    def checked(self: Any, messages: Any, **kwargs: Any) -> Any:
        _require_messages(messages)
        return method(self, messages, **kwargs)

    @wraps(method)
    async def achecked(self: Any, messages: Any, **kwargs: Any) -> Any:
        _require_messages(messages)
        return await method(self, messages, **kwargs)

    return achecked if iscoroutinefunction(method) else checked  # type: ignore[return-value]


def _require_messages(messages: Any) -> None:
    give = "Give a list: [ChatMessage(role='user', content=…)]; text alone goes to complete()."
    if isinstance(messages, str | bytes | Mapping | BaseModel) or not isinstance(messages, Iterable):
        raise ConfigError(f"messages is {kind_of(messages)}. {give}")
    foreign = next((message for message in messages if not isinstance(message, ChatMessage)), None)
    if foreign is not None or None in messages:
        raise ConfigError(f"messages holds {kind_of(foreign)}. {give}")
    if not messages:
        raise ConfigError("There are no messages to answer.")
