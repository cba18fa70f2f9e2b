"""Settings of wrappers and of single calls: one list of names for LangChain and LlamaIndex."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PrivateAttr, model_validator
from pydantic.json_schema import SkipJsonSchema

from focus_core import Document, FocusConfig, FocusEngine, Options, PreparedDocuments
from focus_core.config import DEFAULT_NEW_TOKENS
from focus_core.engine.answers import Event
from focus_core.engine.engine import Question
from focus_core.engine.options import nearest
from focus_core.errors import ConfigError, DocumentError, warn
from focus_core.text.documents import require_sequence
from focus_integrations.engines import EngineSettings, default_model, longest_input, name_of, shared_engine
from focus_integrations.streams import stop_if_abandoned

WholeText = Document | PreparedDocuments
Wrapper = TypeVar("Wrapper", bound="FocusSettings")

_RENAMED = {"max_new_tokens": "max_tokens", "system": "system_prompt"}  # as LangChain and LlamaIndex call them
_ONLY_ENGINE = {"report", "stop"}  # a call's `stop` is an argument of the frameworks
PER_CALL = tuple(_RENAMED.get(name, name) for name in Options.__annotations__ if name not in _ONLY_ENGINE)


@dataclass(frozen=True)
class Call:
    """One request to the engine: everything besides the question."""

    documents: list[WholeText] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    system_prompt: str | None = None

    @cached_property
    def texts(self) -> list[WholeText]:
        """The documents, equal ones once."""
        return without_duplicates(self.documents)

    @property
    def arguments(self) -> dict[str, Any]:
        """For `FocusEngine.stream`, without question and system prompt."""
        return {"documents": self.texts or None, **self.options}

    @property
    def digest(self) -> str:
        """Of everything that a call asks for besides the question."""
        return content_digest([self.texts, self.options])


class FocusSettings(BaseModel):
    """Fields of a wrapper. Building one loads nothing; the engine comes with the first question."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    model: str = Field(default_factory=default_model, validation_alias=AliasChoices("model", "model_name"))
    """A model folder, a hub id, or "embedded". By default the value of `FOCUSLLM_MODEL`, else "embedded"."""
    adapter: str | None = None
    """Folder or hub id of trained candidate projections."""
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    chunk_size: int | None = None
    local_window: int | None = None
    dynamic_prompt: int | None = None
    parallel_chunks: int | None = None
    max_tokens: int | None = Field(default=None, validation_alias=AliasChoices("max_tokens", "max_new_tokens"))
    """Tokens that an answer may have; by default 256, less if the window is smaller."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: list[str] = Field(default_factory=list)
    """Strings that end an answer and are no part of it; those of a call come on top."""
    system_prompt: str | None = None
    chat_template: bool = True
    """False hands a prompt to the model as it stands, to be continued."""
    method: str = "auto"
    """"focus", "plain" or "auto": the plain model for texts that fit its window with the question."""
    given_engine: SkipJsonSchema[FocusEngine | None] = Field(default=None, exclude=True, repr=False)
    """An engine that is there already, instead of one by the name of a model: see `from_engine`."""

    _engine: FocusEngine | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _none_is_the_default(cls, values: Any) -> Any:
        """Programs pass `temperature=None` to any model, to say nothing about it."""
        return _without_none(values) if isinstance(values, dict) else values

    @classmethod
    def from_engine(cls: type[Wrapper], engine: FocusEngine, **settings: Any) -> Wrapper:
        """Around an engine that is there already; `settings` are those of sampling and prompting."""
        loaded = engine.shared.loaded
        settings = {"method": engine.method, **_without_none(settings)}
        return cls(model=loaded.model_id, adapter=loaded.adapter_id, given_engine=engine, **settings)

    def __deepcopy__(self: Wrapper, memo: dict[int, Any] | None = None) -> Wrapper:
        """The copy shares the engine: its locks and weights are not to be copied."""
        memo = {} if memo is None else memo
        for engine in (self._engine, self.given_engine):
            memo[id(engine)] = engine
        return super().__deepcopy__(memo)

    def __getstate__(self) -> dict[Any, Any]:
        """Without the engine, which is shared again when the copy is first used.

        Raises:
            ConfigError: the wrapper was made `from_engine`
        """
        if self.given_engine is not None:
            name = type(self).__name__
            raise ConfigError(
                f"A {name} made from_engine cannot be pickled: its engine exists in this process only. "
                f"Name the model instead: {name}(model=…)."
            )
        bare = self.model_copy()
        bare._engine = None
        return super(FocusSettings, bare).__getstate__()

    @property
    def engine(self) -> FocusEngine:
        """The engine; loads the model if it is not loaded yet.

        Raises:
            FocusError: the model cannot be loaded, or cannot work
        """
        if self.given_engine is not None:
            return self.given_engine
        if self._engine is None:
            self._engine = shared_engine(self.engine_settings)
        return self._engine

    @property
    def engine_settings(self) -> EngineSettings:
        """Everything that an engine is made from."""
        sizes = {name: getattr(self, name) for name in ("chunk_size", "local_window", "dynamic_prompt")}
        config = FocusConfig(parallel_chunks=self.parallel_chunks, **sizes)
        return EngineSettings(self.model, self.adapter, self.revision, self.device, self.dtype, config)

    @property
    def longest_answer(self) -> int:
        """Tokens that an answer may have, as far as can be said without a window."""
        return self.max_tokens or DEFAULT_NEW_TOKENS

    @property
    def longest_input(self) -> int | None:
        """About how many tokens of documents fit, with room for the answer; `None` if only loading could tell."""
        return longest_input(self.engine_settings, self.longest_answer, self.given_engine)

    @property
    def identifying(self) -> dict[str, Any]:
        """Every setting that can change an answer, for response caches and traces."""
        without_effect = ("parallel_chunks", "given_engine")
        settings = {name: getattr(self, name) for name in FocusSettings.model_fields if name not in without_effect}
        if self.given_engine is not None:
            settings["engine"] = name_of(self.given_engine)
        return {**settings, "stop": list(self.stop)}

    def _events(self, questions: Sequence[Question], call: Call, **options: Any) -> Generator[tuple[int, Event]]:
        """`stream_batch`. Loads the model, if it is not loaded yet, when the first event is asked for."""
        yield from self.engine.stream_batch(questions, **call.arguments, **options, report=stop_if_abandoned)

    def call(self, given: dict[str, Any], stop: Sequence[str] | str | None = None) -> Call:
        """The settings of this wrapper with those of one call on top.

        Args:
            given: `documents` (core documents and prepared ones), and the names in `PER_CALL`; `None` sets nothing
            stop: added to the wrapper's own

        Raises:
            ConfigError: a name that is not known
        """
        known = ("documents", "stop", *PER_CALL)
        unknown = next((name for name in given if _RENAMED.get(name, name) not in known), None)
        if unknown is not None:
            near = nearest(unknown, known)
            raise ConfigError(
                f"{type(self).__name__} takes no argument {unknown!r}. "
                + (f"Did you mean {near!r}?" if near else f"A call can set: {', '.join(known)}.")
            )
        given = {_RENAMED.get(name, name): value for name, value in _without_none(given).items()}
        documents = given.pop("documents", None)
        options = {name: getattr(self, name) for name in PER_CALL} | given
        system_prompt = options.pop("system_prompt")
        options["max_new_tokens"] = options.pop("max_tokens")
        more = [stop] if isinstance(stop, str) else list(stop or [])
        options["stop"] = tuple(dict.fromkeys([*self.stop, *more]))
        return Call(documents or [], options, system_prompt)


def _without_none(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def documents_from(
    documents: Any, kind: type, convert: Callable[[Any], Document | None], *, called: str
) -> list[WholeText]:
    """A framework's documents as the engine's.

    Args:
        documents: one or a list of: the framework's documents, texts, core documents, prepared documents
        kind: the framework's class of documents
        convert: makes a core document of one of them, or returns `None` to skip one without text, with a warning
        called: the name of `kind` in messages

    Raises:
        DocumentError: something that is neither a document nor text, an empty text, nothing but documents without text,
            or an iterator
    """
    if isinstance(documents, Iterator):
        raise DocumentError("documents is an iterator, but it is read more than once: pass a list.")
    if documents is None:
        raise DocumentError("documents is None. Give a list of documents, or leave it out.")
    require_sequence(documents)
    alone = isinstance(documents, kind | str | Document | PreparedDocuments)
    listed = [documents] if alone else list(documents)
    found: list[WholeText] = []
    skipped: list[int] = []
    for number, document in enumerate(listed, 1):
        where = f"Document {number} of {len(listed)}"
        if isinstance(document, Document | PreparedDocuments):
            found.append(document)
        elif isinstance(document, kind):
            whole = convert(document)
            if whole is None:
                skipped.append(number)
            else:
                found.append(whole)
        elif isinstance(document, str) and document.strip():
            found.append(Document(document))
        elif isinstance(document, str):
            raise DocumentError(f"{where} is empty. Leave it out or give its text.")
        else:
            raise DocumentError(
                f"{where} is a {type(document).__name__}. Give a {called}, a string, or a result of `engine.prepare`."
            )
    if skipped and not found:
        raise DocumentError(f"All documents ({len(skipped)}) are empty: there is no text to read. Give their text.")
    if skipped:
        numbers = ", ".join(map(str, skipped))
        warn(f"Skipped {len(skipped)} of {len(listed)} documents, because they hold no text: number {numbers}.")
    return found


def without_duplicates(documents: Iterable[WholeText]) -> list[WholeText]:
    """The documents in their order, each once: the first of those with the same content stays."""
    first: dict[Any, WholeText] = {}
    for document in documents:
        first.setdefault(document.key, document)
    return list(first.values())


def content_digest(value: Any) -> str:
    """A digest of everything that a request can hold; equal content has an equal digest."""
    digest = sha256()
    _feed(digest, value)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, PreparedDocuments | Document):
        _feed(digest, [type(value).__name__, value.key])
    elif isinstance(value, dict):
        _feed(digest, ["dict", *(item for name in sorted(value) for item in (name, value[name]))])
    elif isinstance(value, list | tuple):
        digest.update(f"list {len(value)} ".encode())
        for item in value:
            _feed(digest, item)
    else:
        content = value if isinstance(value, str) else repr(value)
        encoded = content.encode("utf-8", errors="surrogatepass")
        digest.update(f"{type(value).__name__} {len(encoded)} ".encode() + encoded)
