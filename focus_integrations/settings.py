"""What can be set on every wrapper, and per call: one list of names for LangChain and LlamaIndex."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any, TypeVar

from pydantic import AliasChoices, BaseModel, Field, PrivateAttr

from focus_core import FocusConfig, FocusEngine, PreparedDocuments
from focus_core.config import DEFAULT_NEW_TOKENS
from focus_core.text.files import require_sequence
from focus_core.errors import ConfigError, DocumentError
from focus_integrations.engines import EngineSettings, default_model, longest_input, name_engine, shared_engine

Text = str | PreparedDocuments
Wrapper = TypeVar("Wrapper", bound="FocusSettings")

PER_CALL = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "chat_template")
_SYNONYMS = {"max_new_tokens": "max_tokens"}


@dataclass(frozen=True)
class Call:
    """One request to the engine: what is asked of it besides the question."""

    documents: list[Text] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    system_prompt: str | None = None

    @cached_property
    def texts(self) -> list[Text]:
        """The documents, equal ones once."""
        return without_duplicates(self.documents)

    @property
    def arguments(self) -> dict[str, Any]:
        """For `FocusEngine.stream_batch`, without questions and system prompt."""
        return {"documents": self.texts or None, **self.options}

    @property
    def group(self) -> str:
        """Calls with the same value can be answered together."""
        return fingerprint([self.texts, self.options])


class FocusSettings(BaseModel):
    """Fields of a wrapper. Building one loads nothing; the engine comes with the first question."""

    model: str = Field(default_factory=default_model, validation_alias=AliasChoices("model", "model_name"))
    """A model folder, a hub id, or "embedded". By default what the variable `FOCUSLLM_MODEL` names, else "embedded"."""
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
    """Tokens that an answer may have; by default 256, or what the window leaves."""
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

    _engine: FocusEngine | None = PrivateAttr(default=None)

    @classmethod
    def from_engine(cls: type[Wrapper], engine: FocusEngine, **settings: Any) -> Wrapper:
        """Around an engine that is there already; `settings` are those of sampling and prompting."""
        wrapper = cls(model=name_engine(engine), **settings)
        wrapper._engine = engine
        return wrapper

    def __deepcopy__(self: Wrapper, memo: dict[int, Any] | None = None) -> Wrapper:
        """The copy shares the engine: its locks and weights are not to be copied."""
        memo = {} if memo is None else memo
        if self._engine is not None:
            memo[id(self._engine)] = self._engine
        return super().__deepcopy__(memo)

    @property
    def engine(self) -> FocusEngine:
        """The engine; loads the model if nobody has done so before.

        Raises:
            FocusError: the model cannot be loaded, or cannot work
        """
        if self._engine is None:
            self._engine = shared_engine(self.engine_settings)
        return self._engine

    @property
    def engine_settings(self) -> EngineSettings:
        """What decides which engine this is."""
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
        return longest_input(self.engine_settings, self.longest_answer)

    @property
    def identifying(self) -> dict[str, Any]:
        """Every setting that can change an answer, for response caches and traces."""
        settings = {name: getattr(self, name) for name in FocusSettings.model_fields if name != "parallel_chunks"}
        return {**settings, "stop": list(self.stop)}

    def call(self, given: dict[str, Any], stop: Sequence[str] | str | None = None) -> Call:
        """The settings of this wrapper with those of one call on top.

        Args:
            given: `documents` (a list of texts and prepared documents), `system_prompt`, and the names in `PER_CALL`
            stop: comes on top of the wrapper's own

        Raises:
            ConfigError: a name that is not known
        """
        given = {_SYNONYMS.get(name, name): value for name, value in given.items()}
        documents = given.pop("documents", None)
        system_prompt = given.pop("system_prompt", self.system_prompt)
        unknown = [name for name in given if name not in PER_CALL]
        if unknown:
            raise ConfigError(
                f"{type(self).__name__} takes no argument {', '.join(map(repr, unknown))}. A call can set: "
                f"{', '.join(('documents', 'stop', 'system_prompt', *PER_CALL))}."
            )
        options = {name: getattr(self, name) for name in PER_CALL} | given
        options["max_new_tokens"] = options.pop("max_tokens")
        more = [stop] if isinstance(stop, str) else list(stop or [])
        options["stop"] = tuple(dict.fromkeys([*self.stop, *more]))
        return Call(documents or [], options, system_prompt)


def read_each(documents: Any, kind: type, read: Callable[[Any], str], *, called: str) -> list[Text]:
    """What the model reads of each document.

    Args:
        documents: one or a list of: the framework's documents, texts, prepared documents
        kind: the framework's class of documents
        read: gives the text of one of them
        called: what an error calls them

    Raises:
        DocumentError: something that is neither a document nor text, or a generator
    """
    if isinstance(documents, Iterator):
        raise DocumentError("documents can be read only once, and would be gone at the second look. Give a list.")
    if documents is None:
        raise DocumentError("documents is None. Give a list of documents, or leave it out.")
    require_sequence(documents)
    listed = [documents] if isinstance(documents, kind | str | PreparedDocuments) else list(documents)
    texts: list[Text] = []
    for number, document in enumerate(listed, 1):
        if isinstance(document, kind):
            texts.append(read(document))
        elif isinstance(document, str | PreparedDocuments):
            texts.append(document)
        else:
            raise DocumentError(
                f"Document {number} of {len(listed)} is a {type(document).__name__}. "
                f"Give a {called}, a string, or what `engine.prepare` returned."
            )
    return texts


def without_duplicates(texts: Iterable[Text]) -> list[Text]:
    """The texts in their order, each once: the first of those with the same content stays."""
    return list({fingerprint(text): text for text in texts}.values())


def fingerprint(value: Any) -> str:
    """A digest of everything that a request can hold; equal content has an equal digest."""
    digest = sha256()
    _feed(digest, value)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, PreparedDocuments):
        _feed(digest, ["prepared", value.model, *map(str, value.texts)])
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
