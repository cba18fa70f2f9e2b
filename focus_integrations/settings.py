"""Settings of wrappers and of single calls: one list of names for LangChain and LlamaIndex."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from types import UnionType
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from focus_core import Document, FocusConfig, FocusEngine, Options, PreparedDocuments
from focus_core.config import DEFAULT_NEW_TOKENS
from focus_core.engine.answers import Event
from focus_core.engine.engine import Question
from focus_core.engine.options import CheckedOptions, chosen_store, nearest
from focus_core.errors import ConfigError, DocumentError, warn
from focus_core.methods.table import checked_method
from focus_core.text.documents import require_sequence, way_out
from focus_integrations.engines import (
    EngineSettings,
    default_model,
    longest_input,
    name_of,
    shared_engine,
)
from focus_integrations.streams import stop_if_abandoned

WholeText = Document | PreparedDocuments
Wrapper = TypeVar("Wrapper", bound="FocusSettings")

_RENAMED = {"max_new_tokens": "max_tokens", "system": "system_prompt"}  # as LangChain and LlamaIndex call them
_ONLY_ENGINE = {"report", "on_reading", "stop"}  # a call's `stop` is an argument of the frameworks
PER_CALL = tuple(_RENAMED.get(name, name) for name in Options.__annotations__ if name not in _ONLY_ENGINE)
_CONFIG = (
    *("chunk_size", "local_window", "dynamic_prompt", "parallel_chunks", "layout", "boundaries", "pack"),
    *("plain_up_to", "focus_up_to", "shortlist", "select_tokens", "select_top_p", "experts", "mixing", "kv_dtype"),
    "supported_share",
)
_STORE = ("store", "store_limit")
# An engine that is given has these already.
_OF_AN_ENGINE = ("revision", "gguf_file", "device", "dtype", *_STORE, *_CONFIG)

_LONG = 80  # characters of a value that messages show

# A folder may be a path, and one stop string need not be in a list.
PathOrName = Annotated[str, BeforeValidator(lambda name: os.fspath(name) if isinstance(name, os.PathLike) else name)]
# Named once: a program that changes its working directory means the same folder afterwards.
StoreFolder = Annotated[PathOrName, AfterValidator(chosen_store)]
Strings = Annotated[list[str], BeforeValidator(lambda given: [given] if isinstance(given, str) else given or [])]


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

    model: PathOrName = Field(default_factory=default_model, validation_alias=AliasChoices("model", "model_name"))
    """A model folder, a hub id, a GGUF file, or "embedded". By default that of `FOCUSLLM_MODEL`, else "embedded"."""
    adapter: PathOrName | None = None
    """Folder or hub id of trained candidate projections."""
    revision: str | None = None
    gguf_file: str | None = None
    """Which GGUF file of the model, where that is a hub id or a folder."""
    device: str = "auto"
    dtype: str = "auto"
    chunk_size: int | None = None
    local_window: int | None = None
    dynamic_prompt: int | None = None
    parallel_chunks: int | None = None
    layout: str | None = None
    """"chat": documents stand in the user's turn; "raw": in front of the conversation."""
    boundaries: str | None = None
    """"paragraph": chunks end at a paragraph if they can; "tokens": all are equally long."""
    pack: bool | None = None
    """Small documents share a chunk."""
    plain_up_to: int | None = None
    """Tokens of documents and question that the plain model reads; by default what fits the window."""
    focus_up_to: int | None = None
    """Chunks of a text that FocusLLM reads where there is an adapter, and "select" one of more; by default all."""
    shortlist: int | None = None
    """Chunks that methods "select" and "experts" read, those that share most words with the question: by default 32;
    0 means all."""
    select_tokens: int | None = None
    """Tokens of chunks that method "select" reads again, at most; by default 2,048, or what fits."""
    select_top_p: float | None = None
    supported_share: float | None = None
    """It reads no more chunks once they have so much of the evidence; by default 0.95; 1 means as many as fit."""
    experts: int | None = None
    """Chunks that decode together with method "experts"."""
    mixing: str | None = None
    """How they do: "pced" or "nbce"."""
    kv_dtype: str | None = None
    """"int8": what was read of documents is kept in a quarter or half of the bytes, rounded."""
    store: StoreFolder | None = None
    """A folder in which what was read is kept for the next process; by default that of `FOCUSLLM_STORE`, else none."""
    store_limit: int | None = Field(default=None, ge=0)
    """Bytes that the folder may take with everything in it; by default half of the free disk."""
    max_tokens: int | None = Field(default=None, validation_alias=AliasChoices("max_tokens", "max_new_tokens"))
    """Tokens that an answer may have; by default 256, less if the window is smaller."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: Strings = Field(default_factory=list)
    """Strings that end an answer and are no part of it; those of a call come on top."""
    system_prompt: str | None = None
    chat_template: bool = True
    """False hands a prompt to the model as it stands, to be continued."""
    method: str = "auto"
    """"focus", "plain", "select", "experts" or "auto": the plain model for texts that fit its window with the question;
    for longer ones FocusLLM if there is an adapter, else "select"."""
    sources: bool = False
    """Also tell which passages an answer rests on."""
    live_evidence: bool = False
    """Every piece of a stream also tells which chunk its tokens draw on most; without effect on whole answers."""
    given_engine: SkipJsonSchema[FocusEngine | None] = Field(default=None, exclude=True, repr=False)
    """An engine that is there already, instead of one by the name of a model: see `from_engine`."""

    _streaming_calls: ClassVar[str]  # as a user of the framework names them

    _engine: tuple[EngineSettings, FocusEngine] | None = PrivateAttr(default=None)

    @model_validator(mode="wrap")
    @classmethod
    def _with_our_errors(cls, values: Any, handler: ModelWrapValidatorHandler[Wrapper]) -> Wrapper:
        try:
            return handler(values)
        except ValidationError as error:
            if not isinstance(values, dict):  # another object: pydantic asks whether it is one of these
                raise
            raise refusal(error, cls) from error

    @model_validator(mode="after")
    def _checked(self: Wrapper) -> Wrapper:
        if self.given_engine is not None:
            self._fits(self.given_engine)
        assert self.engine_settings  # checks the sizes
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError(f"max_tokens={self.max_tokens}: must be at least 1, or None for the default.")
        checked_method(self.method)
        options = {name: getattr(self, name) for name in PER_CALL if name not in _RENAMED.values()}
        CheckedOptions.of({**options, "stop": self.stop}, called=type(self).__name__)
        return self

    def _fits(self, engine: FocusEngine) -> None:
        """Refuse settings that an engine which is there already would never see."""
        loaded = engine.shared.loaded
        known = {"model": loaded.model_id, "adapter": loaded.adapter_id}
        known |= {name: FocusSettings.model_fields[name].default for name in _OF_AN_ENGINE}
        for name, value in known.items():
            if getattr(self, name) != value:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} has no effect on an engine that is given. Make the engine with "
                    f"it: FocusEngine.from_pretrained(…, {name}=…)."
                )

    def __setattr__(self, name: str, value: Any) -> None:
        """Checked as at construction; the next question sees it.

        Raises:
            ConfigError: a name that is no setting, or an impossible value
        """
        if name in FocusSettings.model_fields:
            value = assigned(self, FocusSettings, name, value)
        elif not name.startswith("_") and not hasattr(type(self), name) and name not in type(self).model_fields:
            raise unknown_setting(name, type(self))
        super().__setattr__(name, value)

    @model_validator(mode="before")
    @classmethod
    def _none_is_the_default(cls, values: Any) -> Any:
        """Programs pass `temperature=None` to any model, to say nothing about it."""
        return _without_none(values) if isinstance(values, dict) else values

    @classmethod
    def from_engine(cls: type[Wrapper], engine: FocusEngine, **settings: Any) -> Wrapper:
        """Around an engine that is there already; `settings` are those of sampling and prompting.

        Raises:
            ConfigError: one of `settings` is the engine's, such as `chunk_size`, or has an impossible value
        """
        loaded = engine.shared.loaded
        settings = {"method": engine.method, **_without_none(settings)}
        return cls(model=loaded.model_id, adapter=loaded.adapter_id, given_engine=engine, **settings)

    def __deepcopy__(self: Wrapper, memo: dict[int, Any] | None = None) -> Wrapper:
        """The copy shares the engine: its locks and weights are not to be copied."""
        memo = {} if memo is None else memo
        for kept in (self._engine, self.given_engine):
            memo[id(kept)] = kept
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
        settings = self.engine_settings
        if self._engine is None or self._engine[0] != settings:  # a setting may have changed since
            self._engine = settings, shared_engine(settings)
        return self._engine[1]

    @property
    def engine_settings(self) -> EngineSettings:
        """Everything that an engine is made from."""
        config = FocusConfig(**{name: getattr(self, name) for name in _CONFIG})
        store = chosen_store(self.store)
        if store == "":
            raise ConfigError("store='': name a folder, or leave it out.")
        if self.store_limit is not None and store is None:
            raise ConfigError(
                f"store_limit={self.store_limit} without a store has no effect. Name its folder: store=…."
            )
        return EngineSettings(
            self.model,
            self.adapter,
            self.revision,
            self.gguf_file,
            self.device,
            self.dtype,
            config,
            store,
            self.store_limit,
        )

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
        without_effect = ("parallel_chunks", *_STORE, "given_engine")
        settings = {name: getattr(self, name) for name in FocusSettings.model_fields if name not in without_effect}
        if self.given_engine is not None:
            settings["engine"] = name_of(self.given_engine)
        return {**settings, "stop": list(self.stop)}

    def _events(self, questions: Sequence[Question], call: Call, **options: Any) -> Generator[tuple[int, Event]]:
        """`stream_batch`. Loads the model, if it is not loaded yet, when the first event is asked for."""
        yield from self.engine.stream_batch(questions, **call.arguments, **options, report=stop_if_abandoned)

    def call(self, given: dict[str, Any], stop: Sequence[str] | str | None = None, *, streamed: bool = False) -> Call:
        """The settings of this wrapper with those of one call on top.

        Args:
            given: `documents` (core documents and prepared ones), and the names in `PER_CALL`; `None` sets nothing
            stop: added to the wrapper's own
            streamed: whether the answer comes in pieces

        Raises:
            ConfigError: a name that is not known, or `live_evidence` of a whole answer
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
        if not streamed:  # a framework chooses how to ask, after the settings were made
            options["live_evidence"] = given.get("live_evidence", False)
            if options["live_evidence"] is True:
                raise ConfigError(
                    f"live_evidence=True: this call returns a whole answer. Take {self._streaming_calls}, whose pieces "
                    "have it, or sources=True, which is exact."
                )
        system_prompt = options.pop("system_prompt")
        options["max_new_tokens"] = options.pop("max_tokens")
        if stop is not None and not isinstance(stop, Iterable):
            raise ConfigError(f"stop={stop!r}: give a string, or a list of strings.")
        more = [stop] if isinstance(stop, str) else list(stop or [])
        options["stop"] = tuple(dict.fromkeys([*self.stop, *more]))
        return Call(documents or [], options, system_prompt)


def _without_none(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def documents_from(
    documents: Any, kind: type | UnionType, convert: Callable[[Any], Document | None], *, called: str
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
    give = f"Give a {called}, a string, a result of `engine.prepare`"
    if isinstance(documents, Iterator):
        raise DocumentError("documents is an iterator, but it is read more than once: pass a list.")
    if documents is None:
        raise DocumentError("documents is None. Give a list of documents, or leave it out.")
    require_sequence(documents)
    alone = isinstance(documents, kind | str | Document | PreparedDocuments)
    if not alone and (isinstance(documents, BaseModel) or not isinstance(documents, Iterable)):
        raise DocumentError(f"documents is {kind_of(documents)}. {give}, or a list of those.")
    listed = [documents] if alone else list(documents)
    found = [
        convert(document)
        if isinstance(document, kind)
        else _whole_text(document, f"Document {number} of {len(listed)}", give)
        for number, document in enumerate(listed, 1)
    ]
    skipped = [str(number) for number, document in enumerate(found, 1) if document is None]
    if skipped and len(skipped) == len(found):
        raise DocumentError(f"All documents ({len(skipped)}) are empty: there is no text to read. Give their text.")
    if skipped:
        numbers = ", ".join(skipped)
        warn(f"Skipped {len(skipped)} of {len(listed)} documents, because they hold no text: number {numbers}.")
    return [document for document in found if document is not None]


def _whole_text(document: Any, where: str, give: str) -> WholeText:
    """A document that is none of a framework's."""
    if isinstance(document, Document | PreparedDocuments):
        return document
    if isinstance(document, str):
        if not document.strip():
            raise DocumentError(f"{where} is empty. Leave it out or give its text.")
        return Document(document)
    raise DocumentError(f"{where} is {kind_of(document)}. {way_out(document) or f'{give}.'}")


def kind_of(value: Any) -> str:
    """For messages: "None", "a list", "an int"."""
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def refusal(error: ValidationError, cls: type[BaseModel]) -> ConfigError:
    """What pydantic says of the first bad argument of `cls`, in one line, with the argument and its value."""
    first = error.errors(include_url=False)[0]
    name, value = ".".join(map(str, first["loc"])) or "value", repr(first["input"])
    if first["type"] == "extra_forbidden":
        return unknown_setting(name, cls)
    if first["type"] == "missing":
        return ConfigError(f"{cls.__name__} needs {name}=….")
    return ConfigError(f"{name}={value if len(value) < _LONG else value[:_LONG] + '…'}: {first['msg']}.")


def assigned(settings: BaseModel, cls: type[BaseModel], name: str, value: Any) -> Any:
    """A value as `cls` would take it for one of its fields, beside the values that the other fields have."""
    given = {field: getattr(settings, field) for field in cls.model_fields}
    return getattr(cls.model_validate({**given, name: value}), name)


def unknown_setting(name: str, cls: type[BaseModel]) -> ConfigError:
    """A name that is none of `cls`, and the one that is probably meant."""
    near = nearest(name, cls.model_fields)
    hint = f"Did you mean {near!r}?" if near else f"It takes: {', '.join(cls.model_fields)}."
    return ConfigError(f"{cls.__name__} takes no setting {name!r}. {hint}")


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
