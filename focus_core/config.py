"""Settings of the method and of sampling: frozen, checked when made, unknown names refused by the dataclass."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from focus_core.errors import ConfigError, shown

_LARGEST = 1e30  # float32 still divides by it
DEFAULT_NEW_TOKENS = 256  # default `max_new_tokens`; less if the window is smaller
LARGEST_CHUNK = 2048  # where no setting says
CHUNK_WITHOUT_ADAPTER = 512  # the same, for methods that choose among chunks
DEFAULT_SELECTED = (
    2048  # tokens of chunks: the four likeliest, of 512 tokens, hold nearly all that one question asks for
)
DEFAULT_TOP_P = 0.95  # of the posterior of chunks: half of the tokens, and references are likelier (log)
DEFAULT_SHORTLIST = 32  # chunks: of 120 to 165 in a text, those hold the passage of 98 to 99 % of questions (log)
LAYOUTS = ("chat", "raw")
BOUNDARIES = ("tokens", "paragraph", "content")
MIXINGS = ("pced", "nbce")
KV_DTYPES = ("int8",)
_AS_GIVEN = (  # no window decides
    *("layout", "boundaries", "pack", "shortlist", "select_tokens", "select_top_p"),
    *("experts", "mixing", "kv_dtype", "focus_up_to", "supported_share"),
)
_SIZES = (
    *("chunk_size", "local_window", "dynamic_prompt", "parallel_chunks", "window"),
    *("select_tokens", "experts"),
)


@dataclass(frozen=True)
class FocusConfig:
    """How a text is read. `None` means "what suits the model": see `resolve`.

    All sizes are in tokens.
    """

    chunk_size: int | None = None  # tokens of text in a chunk (paper §2.1; `memory_stride` in the authors' code)
    local_window: int | None = None  # of one long prompt, how much is local context; the rest is chunked
    dynamic_prompt: int | None = None  # at most so much of the local context is appended to every chunk (paper eq. 1)
    parallel_chunks: int | None = None  # chunks that pass the model together; bounds memory, never changes a result
    bos_per_chunk: bool = True  # False: the authors' rule, BOS at the start of the text only
    plain_up_to: int | None = None  # the plain model reads texts up to this length; None: if they fit the window
    focus_up_to: int | None = None  # with an adapter: chunks of a text that FocusLLM reads, and select one of more;
    # None: all texts
    window: int | None = None  # positions to use, if not those the model was trained for; more is at your own risk
    layout: str | None = None  # "chat": documents stand in the user's turn; "raw": in front of the conversation
    boundaries: str | None = None  # "tokens": chunks of equal size; "paragraph": they end at a paragraph, line or
    # sentence; "content": at one that the text near it decides, so that most chunks stay the same when it is edited
    pack: bool | None = None  # small documents share a chunk
    shortlist: int | None = None  # chunks that methods without an adapter read: those that share most words with the
    # question; None: 32; 0: all
    select_tokens: int | None = None  # of chunks that method="select" puts into the window; None: 2,048, or what fits
    select_top_p: float | None = None  # it reads no more chunks once they have so much of the evidence; None: 0.95;
    # 1: as many as fit
    experts: int | None = None  # chunks that decode together with method="experts"
    mixing: str | None = None  # how they do: "pced" or "nbce"
    supported_share: float | None = None  # of what is unlikely about an answer without documents: they must explain so
    # much of it, or it does not count as supported; None: what was measured with the adapter, else 0
    kv_dtype: str | None = None  # "int8": chunks' keys and values take a quarter or half of the bytes, and are rounded

    def __post_init__(self) -> None:
        for name in _SIZES:
            _require_positive(name, getattr(self, name))
        for name, zero in (
            ("plain_up_to", "always read in chunks"),
            ("shortlist", "all chunks"),
            ("focus_up_to", "never"),
        ):
            value = getattr(self, name)
            _require_whole(name, value)
            if value is not None and value < 0:
                raise ConfigError(f"{name}={value}: must be 0 ({zero}) or more.")
        if self.select_top_p is not None:
            _require_number("select_top_p", self.select_top_p)
            _require(
                0 < self.select_top_p <= 1,
                f"select_top_p={self.select_top_p}: must be above 0 and at most 1 (all that fit).",
            )
        if self.supported_share is not None:
            _require_number("supported_share", self.supported_share)
            _require(
                0 <= self.supported_share <= 1, f"supported_share={self.supported_share}: must lie between 0 and 1."
            )
        if not isinstance(self.bos_per_chunk, bool):
            raise ConfigError(f"bos_per_chunk={self.bos_per_chunk!r}: must be True or False.")
        if not isinstance(self.pack, bool | None):
            raise ConfigError(f"pack={self.pack!r}: must be True or False.")
        _require_one_of("layout", self.layout, LAYOUTS)
        _require_one_of("boundaries", self.boundaries, BOUNDARIES)
        _require_one_of("mixing", self.mixing, MIXINGS)
        _require_one_of("kv_dtype", self.kv_dtype, KV_DTYPES)

    def resolve(
        self,
        window: int,
        trained_with: FocusConfig | None = None,
        *,
        window_is: str = "max_position_embeddings",
        largest_chunk: int = LARGEST_CHUNK,
    ) -> ResolvedConfig:
        """Every `None` replaced: first by what the adapter was trained with, then by what `window` positions allow.

        Args:
            window_is: name of the limit, for messages
            largest_chunk: tokens of a chunk at most, where no setting says
        """
        known = self if trained_with is None else self.filled_from(trained_with)
        if known.window:
            window, window_is = known.window, "set by hand" if self.window else "set with the adapter"
        # A chunk may take half of the window and the dynamic prompt a quarter: the answer keeps the rest.
        chunk_size = known.chunk_size or max(1, min(largest_chunk, window // 2))
        local_window = known.local_window or max(1, min(2048, window // 2))
        dynamic_prompt = known.dynamic_prompt or max(1, min(512, window // 4))
        return ResolvedConfig(
            chunk_size=chunk_size,
            local_window=local_window,
            dynamic_prompt=min(dynamic_prompt, chunk_size, local_window),
            parallel_chunks=known.parallel_chunks,
            bos_per_chunk=known.bos_per_chunk,
            plain_up_to=known.plain_up_to,
            window=window,
            window_is=window_is,
            **{name: getattr(known, name) for name in _AS_GIVEN},
        )

    def filled_from(self, other: FocusConfig) -> FocusConfig:
        """This config, with what is `None` here taken from `other`; the authors' BOS rule if either has it."""
        taken = {f.name: getattr(other, f.name) for f in fields(self) if getattr(self, f.name) is None}
        return replace(self, **taken, bos_per_chunk=self.bos_per_chunk and other.bos_per_chunk)

    def as_dict(self) -> dict[str, Any]:
        """The settings that are not `None`, as JSON types."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}


@dataclass(frozen=True)
class ResolvedConfig:
    """The settings in force for one model. What is still `None` depends on the text, the tokenizer or the method."""

    chunk_size: int
    local_window: int
    dynamic_prompt: int
    parallel_chunks: int | None
    bos_per_chunk: bool
    plain_up_to: int | None
    window: int
    window_is: str
    layout: str | None = None
    boundaries: str | None = None
    pack: bool | None = None
    shortlist: int | None = None
    select_tokens: int | None = None
    select_top_p: float | None = None
    experts: int | None = None
    mixing: str | None = None
    kv_dtype: str | None = None
    focus_up_to: int | None = None
    supported_share: float | None = None

    def as_settings(self) -> FocusConfig:
        """What is saved with an adapter."""
        return FocusConfig(
            chunk_size=self.chunk_size,
            local_window=self.local_window,
            dynamic_prompt=self.dynamic_prompt,
            bos_per_chunk=self.bos_per_chunk,
            layout=self.layout or "raw",
            boundaries=self.boundaries,
            pack=self.pack,
        )

    @property
    def usable_window(self) -> str:
        """For messages: "the model's usable window has 1024 positions (its sliding window)"."""
        return f"the model's usable window has {self.window} positions ({self.window_is})"


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen. The defaults are greedy decoding."""

    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 keeps every token
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            _require_number(name, getattr(self, name))
        _require_whole("seed", self.seed)
        _require(self.temperature >= 0, f"temperature={self.temperature}: must be 0 (greedy) or more.")
        _require(
            not 0 < self.temperature < 1e-3, f"temperature={self.temperature}: too small to divide by. Use 0 (greedy)."
        )
        _require(0 < self.top_p <= 1, f"top_p={self.top_p}: must be above 0 and at most 1.")
        _require(type(self.top_k) is int, f"top_k={self.top_k!r}: must be a whole number.")
        _require(self.top_k >= 0, f"top_k={self.top_k}: must be 0 (off) or more.")
        _require(0 <= self.min_p <= 1, f"min_p={self.min_p}: must lie between 0 and 1.")
        _require(self.seed is None or 0 <= self.seed < 2**63, f"seed={self.seed}: must lie between 0 and {2**63 - 1}.")
        _require(
            1e-3 <= self.repetition_penalty <= 1e3,
            f"repetition_penalty={self.repetition_penalty}: must lie between 0.001 and 1000; 1 is off.",
        )


def _require_number(name: str, value: Any) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ConfigError(f"{name}={shown(value)}: must be a number.")
    if not abs(value) <= _LARGEST:
        raise ConfigError(f"{name}={shown(value)}: must be a finite number that a computer can divide by.")


def _require_whole(name: str, value: Any) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise ConfigError(f"{name}={shown(value)}: must be a whole number.")
    if value is not None and abs(value) >= 2**63:
        raise ConfigError(f"{name}={shown(value)}: must be a whole number of at most 19 digits.")


def _require_positive(name: str, value: int | None) -> None:
    _require_whole(name, value)
    if value is not None and value < 1:
        raise ConfigError(f"{name}={value}: must be at least 1.")


def _require_one_of(name: str, value: str | None, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise ConfigError(f"{name}={value!r}: choose from {', '.join(map(repr, known))}.")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
