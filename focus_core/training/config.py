"""Settings of a training run: a frozen dataclass, read from TOML."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from focus_core.config import LAYOUTS, FocusConfig
from focus_core.errors import ConfigError, shown
from focus_core.loading.hub import is_folder
from focus_core.parsing import parse_toml

OBJECTIVES = ("continuation", "reconstruction", "answering")
RANK = 128  # of projections that start from the model's own maps, if none is set (docs/results/smollm2.md)
_LOW_RANK_RATE, _FULL_RATE = 1e-3, 5e-5
_PRECISIONS = ("no", "bf16", "fp16")
_OPTIMIZERS = ("adamw", "muon")
# These may differ between a run and its continuation. The content of model and data is compared apart.
_FREE_TO_CHANGE = (
    *("model", "output", "data", "used_with", "recompute", "device", "store", "store_limit", "adapter"),
    *("save_every", "log_every", "evaluate_every", "validation", "validation_examples", "patience"),
    *("trackers", "license", "data_notes"),
)


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that a training run depends on. Sizes are in tokens, intervals in optimizer steps."""

    output: Path  # a folder: adapter/, checkpoint.pt, losses.csv; the same config goes on where it stopped
    model: str = ""  # folder, hub id or known name ("smollm2") of the base model
    data: tuple[Path, ...] = ()  # JSONL files; see `data.read_records`
    distillation: float = 0.0  # share of the loss that follows the plain model over the gold chunk, not the answer
    temperature: float = 1.0  # of both distributions in that share
    rank: int | None = None  # of the projections; 0: full copies; by default 128, or that of `adapter`
    adapter: str | None = None  # start from these projections instead of the model's own maps

    steps: int = 10_000
    learning_rate: float | None = None  # by default 1e-3 for low rank, 5e-5 for full copies
    warm_up: int = 100
    final_share: float = 0.0  # of the learning rate, at the end of the cosine
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    optimizer: str = "adamw"  # "muon": Muon for matrices, AdamW for biases; several times as fast on small models
    max_gradient_norm: float = 1.0
    accumulation: int = 8  # examples per step and process
    mixed_precision: str = "bf16"
    seed: int = 0
    recompute: bool = False  # less memory, more time: activations are computed again for the backward pass
    device: str = "auto"
    dtype: str = "auto"  # of the frozen model

    objectives: Mapping[str, float] = field(default_factory=dict)  # shares; by default all that the data has, equally
    mixture: Mapping[str, float] = field(default_factory=dict)  # shares of the data's files; by default of records
    chunk_sizes: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)  # one is drawn per sample (paper §3)
    max_chunks: int = 16  # of a text, at most; the number is drawn per sample
    local_lengths: tuple[int, int] = (30, 2048)  # of a continued or repeated span, smallest and largest
    dynamic_prompts: tuple[int, ...] = (64, 128, 256, 512)  # one is drawn per sample; never longer than the chunk
    max_documents: int = 0  # of a record that marks its gold documents, drawn for an example; 0: all
    questions_per_example: int = 0  # drawn from a record; 0: all
    targets_per_answer: int = 0  # an answer's first token and so many less one of the others, drawn; 0: all
    targets_per_span: int = 16  # the last of a continued or repeated span; each takes a row of local context of its own
    bos_per_chunk: bool = True
    layout: str = "raw"  # where documents stand: in front of the conversation, or "chat": in the user's turn
    used_with: FocusConfig | None = None  # settings saved with the adapter; by default the largest ones trained

    validation: tuple[Path, ...] = ()  # JSONL files of questions that are held out; the best adapter is kept
    held_out: float = 0.0  # instead of files: this share of the data's records with questions
    validation_examples: int = 16  # records, each with the questions and targets of an example
    patience: int = 0  # evaluations without a better loss after which the run ends; 0: never

    store: Path | None = None  # a folder for keys and values of chunks: those that come again are loaded, not read
    store_limit: int | None = None  # bytes of that folder; by default half of the disk that is free without it
    save_every: int = 500
    log_every: int = 10
    license: str = ""  # of the adapter, for its model card
    data_notes: str = ""  # where the data come from and under which licence, for the model card
    trackers: tuple[str, ...] = ()  # of accelerate: "tensorboard", "wandb", "mlflow", …
    evaluate_every: int = 0  # 0: only at the end

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", Path(self.output))
        if self.store is not None:
            object.__setattr__(self, "store", Path(self.store))
        for name in _NUMBERS:
            value = getattr(self, name)
            if value is None and name == "learning_rate":
                continue
            _require(_is_finite(value), f"{name}={shown(value)}: must be a number, and finite.")
            object.__setattr__(self, name, float(value))
        for name in _COUNTS:
            value = getattr(self, name)
            _require(
                value is None or _is_count(value), f"{name}={shown(value)}: must be a whole number below {_MOST:,}."
            )
        for name in ("chunk_sizes", "dynamic_prompts", "local_lengths"):
            sizes = getattr(self, name)
            _require(all(map(_is_count, sizes)), f"{name}={shown(sizes)}: must be whole numbers below {_MOST:,}.")
        for name in (
            "steps",
            "accumulation",
            "max_chunks",
            "targets_per_span",
            "save_every",
            "log_every",
            "validation_examples",
        ):
            _require(getattr(self, name) >= 1, f"{name}={getattr(self, name)}: must be at least 1.")
        for name in ("warm_up", "weight_decay", "evaluate_every", "final_share", "patience", *_DRAWN):
            _require(getattr(self, name) >= 0, f"{name}={getattr(self, name)}: must be 0 or more.")
        _require(0 <= self.seed < 2**63, f"seed={self.seed}: must lie between 0 and {2**63 - 1}.")
        _require(self.rank is None or self.rank >= 0, f"rank={self.rank}: must be at least 1, or 0 for full copies.")
        _require(0 <= self.distillation <= 1, f"distillation={self.distillation}: must lie between 0 and 1.")
        for name in ("learning_rate", "max_gradient_norm", "temperature"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"{name}={value}: must be above 0.")
        _require(all(0 <= beta < 1 for beta in self.betas), f"betas={list(self.betas)}: each must be 0 to below 1.")
        for name in ("chunk_sizes", "dynamic_prompts"):
            sizes = getattr(self, name)
            _require(bool(sizes) and min(sizes) >= 1, f"{name}={list(sizes)}: needs at least one size above 0.")
        low, high = self.local_lengths
        _require(2 <= low <= high, f"local_lengths={[low, high]}: needs a smallest (2 or more) and a largest length.")
        _require(
            self.mixed_precision in _PRECISIONS,
            f"mixed_precision={self.mixed_precision!r}: use one of {', '.join(map(repr, _PRECISIONS))}.",
        )
        _require(
            self.optimizer in _OPTIMIZERS,
            f"optimizer={self.optimizer!r}: use one of {', '.join(map(repr, _OPTIMIZERS))}.",
        )
        # Muon leaves biases to a second optimizer, and accelerate's gradient scaler would count each step twice.
        _require(
            (self.optimizer, self.mixed_precision) != ("muon", "fp16"),
            "optimizer='muon' with mixed_precision='fp16': use mixed_precision='bf16' or optimizer='adamw'.",
        )
        _require(self.layout in LAYOUTS, f"layout={self.layout!r}: use one of {', '.join(map(repr, LAYOUTS))}.")
        _require(self.store_limit is None or self.store_limit >= 0, f"store_limit={self.store_limit}: 0 or more bytes.")
        self._check_what_is_held_out()
        self._check_shares()

    @property
    def holds_out(self) -> bool:
        """Whether there are questions that are not trained."""
        return bool(self.validation) or self.held_out > 0

    def _check_what_is_held_out(self) -> None:
        _require(0 <= self.held_out < 1, f"held_out={self.held_out}: must lie between 0 and below 1.")
        _require(
            not (self.held_out and self.validation),
            f"held_out={self.held_out} and validation are both given. Leave one of them out.",
        )
        _require(
            not self.held_out or bool(self.data),
            f"held_out={self.held_out}: needs data, of which it is a share. Name files in validation.",
        )
        _require(
            not self.patience or (self.holds_out and self.evaluate_every > 0),
            f"patience={self.patience}: needs validation or held_out, and evaluate_every above 0. Set these, or leave "
            "it out.",
        )

    def _check_shares(self) -> None:
        files = [Path(path).name for path in self.data]
        for table, known in (("objectives", OBJECTIVES), ("mixture", files)):
            shares: Mapping[str, float] = getattr(self, table)
            for name, weight in shares.items():
                _require(name in known, f"{table}: unknown {name!r}. Known: {', '.join(known)}.")
                _require(_is_finite(weight), f"{table}: {name}={shown(weight)}: must be a number, and finite.")
                _require(0 <= weight <= _MOST, f"{table}: {name}={weight}: must lie between 0 (off) and {_MOST:,}.")
            if shares and not any(shares.values()):
                raise ConfigError(f"{table}: all are off, so there is nothing to learn.")
        missing = [name for name in files if self.mixture and name not in self.mixture]
        _require(not missing, f"mixture: {', '.join(missing)} has no share. Give every file of data one, 0 for none.")
        twice = [name for name in files if self.mixture and files.count(name) > 1]
        _require(not twice, f"mixture: two files of data are called {next(iter(twice), '')!r}. Rename one.")

    @classmethod
    def from_toml(cls, path: str | Path) -> TrainingConfig:
        """Read a file; paths in it are relative to it.

        Raises:
            ConfigError: names the file and the key, and for an unknown key the known ones
        """
        path = Path(path)
        try:
            settings = parse_toml(path.read_text(encoding="utf-8-sig"))
        except FileNotFoundError as error:
            raise ConfigError(f"{path}: there is no such file.") from error
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
        except ValueError as error:
            raise ConfigError(f"{path} is not TOML: {error}.") from error
        try:
            return cls.from_dict(settings, folder=path.parent)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], *, folder: Path = Path()) -> TrainingConfig:
        """From plain values, as TOML and JSON have them; paths are relative to `folder`."""
        known = {f.name for f in fields(cls)}
        values = dict(settings)
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ConfigError(f"unknown key {name!r}.{hint} Known: {', '.join(sorted(known))}.")
        if "output" not in values:
            raise ConfigError("the key 'output' is missing: a folder for the adapter, the resume state and the log.")
        for name in ("output", "data", "validation", "store"):
            if name in values:
                values[name] = _under(folder, values[name], name)
        for name in ("model", "adapter"):
            if isinstance(values.get(name), str) and is_folder(folder / values[name]):
                values[name] = str(folder / values[name])
        values = {name: _typed(name, value) for name, value in values.items()}
        return cls(**values)

    def for_use(self) -> FocusConfig:
        """The settings saved with the adapter: the defaults of every engine that loads it."""
        layout = None if self.layout == "raw" else self.layout  # that of adapters that say nothing
        if self.used_with is not None:
            return replace(self.used_with, layout=self.used_with.layout or layout)
        return FocusConfig(
            chunk_size=max(self.chunk_sizes),
            local_window=self.local_lengths[1],
            dynamic_prompt=max(self.dynamic_prompts),
            bos_per_chunk=self.bos_per_chunk,
            layout=layout,
        )

    def with_rank(self, rank: int | None) -> TrainingConfig:
        """With the rank that the projections have, `None` for full copies, and the learning rate that follows."""
        rate = self.learning_rate or (_FULL_RATE if rank is None else _LOW_RANK_RATE)
        return replace(self, rank=rank or 0, learning_rate=rate)

    def settings_digest(self) -> dict[str, Any]:
        """The settings that must be equal for a run to go on as if it had never stopped."""
        return {name: str(value) for name, value in self.plain().items() if name not in _FREE_TO_CHANGE}

    def plain(self) -> dict[str, Any]:
        """All settings, tables as dicts."""
        return asdict(self)


_TUPLES: dict[str, tuple[tuple[type, ...], int | None]] = {  # type of the elements, and how many there are
    "data": ((str, Path), None),
    "validation": ((str, Path), None),
    "trackers": ((str,), None),
    "betas": ((int, float), 2),
    "chunk_sizes": ((int,), None),
    "local_lengths": ((int,), 2),
    "dynamic_prompts": ((int,), None),
}
_NUMBERS = (
    *("learning_rate", "final_share", "weight_decay", "max_gradient_norm", "distillation", "temperature"),
    "held_out",
)
_DRAWN = ("max_documents", "questions_per_example", "targets_per_answer")
_COUNTS = (
    *("rank", "steps", "warm_up", "accumulation", "max_chunks", "targets_per_span", "save_every", "log_every"),
    *("validation_examples", "patience", "store_limit", *_DRAWN),
)
_MOST = 10**12
_PLAIN: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(
        ("model", "adapter", "mixed_precision", "optimizer", "device", "dtype", "layout", "license", "data_notes"),
        (str,),
    ),
    **dict.fromkeys(
        ("rank", "steps", "warm_up", "accumulation", "seed", "max_chunks", "targets_per_span", "save_every"), (int,)
    ),
    **dict.fromkeys(("log_every", "evaluate_every", "validation_examples", "patience", *_DRAWN), (int,)),
    **dict.fromkeys(_NUMBERS, (int, float)),
    **dict.fromkeys(("recompute", "bos_per_chunk"), (bool,)),
    "objectives": (dict,),
    "mixture": (dict,),
}


def _typed(name: str, value: Any) -> Any:
    """A value in the type of its field, or an error that names the key."""
    if name == "used_with" and not isinstance(value, FocusConfig):
        if not isinstance(value, dict):
            raise ConfigError(f"used_with={value!r}: must be a table.")
        try:
            return FocusConfig(**value)
        except TypeError as error:
            known = ", ".join(f.name for f in fields(FocusConfig))
            raise ConfigError(f"used_with={value}: has an unknown key. Known: {known}.") from error
    if name in _TUPLES:
        return _typed_list(name, value)
    expected = _PLAIN.get(name)
    if expected is not None and (not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected)):
        raise ConfigError(f"{name}={shown(value)}: must be of type {' or '.join(kind.__name__ for kind in expected)}.")
    return value


def _typed_list(name: str, value: Any) -> tuple[Any, ...]:
    kinds, count = _TUPLES[name]
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{name}={value!r}: must be a list.")
    wrong = [one for one in value if not isinstance(one, kinds) or isinstance(one, bool)]
    if wrong or (count is not None and len(value) != count):
        wanted = "" if count is None else f"{count} of "
        raise ConfigError(
            f"{name}={shown(value)}: must be a list of {wanted}{' or '.join(kind.__name__ for kind in kinds)}."
        )
    return tuple(value)


def _under(folder: Path, value: Any, name: str) -> Any:
    if name in ("output", "store"):
        if not isinstance(value, str | Path) or not str(value).strip():
            raise ConfigError(f"{name}={value!r}: must be the name of a folder.")
        return folder / value
    listed = [value] if isinstance(value, str) else value
    return [folder / path if isinstance(path, str) else path for path in listed] if isinstance(listed, list) else listed


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MOST


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
