"""Loading and saving: base models, adapters (saved candidate projections), and the authors' checkpoints."""

from __future__ import annotations

import json
import math
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from focus_core.attention.candidates import CandidateProjections, names_per_layer
from focus_core.attention.modules import DecoderParts, decoder_parts, window_of
from focus_core.config import FocusConfig
from focus_core.device import choose_device, choose_dtype, naming_lack_of_memory
from focus_core.disk import replace_file
from focus_core.errors import AdapterError, ConfigError, UnsupportedModelError, first_line

ADAPTER_CONFIG = "focusllm_adapter.json"
ADAPTER_WEIGHTS = "focusllm_adapter.safetensors"
FORMAT_VERSION = 2
_FORMAT = "focusllm-adapter"
_SAMPLED_WEIGHTS = 4  # of every matrix, to tell base models apart
_ROUNDING = 0.02  # bfloat16 rounds by 0.004 at most
_SMALLEST = 1e-6  # what float16 makes of weights next to zero

# The authors read texts below this length with the plain model, whatever the checkpoint's config says.
_AUTHORS_WINDOW = 4096
_AUTHORS_DYNAMIC_PROMPT = 512
_BEACON = "self_attn.beacon_"
_AUTHORS_SETTINGS = ("local_window", "memory_stride", "retrieval_method", "retrieval_topk", "query_related_condensing")

_AUTHORS_FILES = ["config.json", "model*.safetensors", "pytorch_model*.bin"]
_HUB_ACCESS = ("cache_dir", "token", "local_files_only")  # hold for a model and its adapter alike

_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json"),
)
_LOAD_LESS = "Use dtype='bfloat16', a smaller model, or device='cpu'."
_LOADS_IN_A_BLINK = 500 * 2**20
_speaking = threading.RLock()  # held while transformers is told what to say


@dataclass(frozen=True)
class LoadedModel:
    """What a folder or hub id gives.

    Attributes:
        projections: `None` where nothing was trained
        trained_with: chunk and window settings that came with the projections
        adapter_id: where the projections came from
    """

    model: PreTrainedModel
    model_id: str
    projections: CandidateProjections | None = None
    trained_with: FocusConfig | None = None
    adapter_id: str | None = None


def load_model(
    model: str | Path, *, adapter: str | Path | None = None, device: str = "auto", dtype: str = "auto", **arguments: Any
) -> LoadedModel:
    """A model folder or hub id, with an adapter or as a checkpoint of the authors (found by its `beacon_*` tensors).

    Args:
        arguments: passed on to `AutoModelForCausalLM.from_pretrained` (`revision`, `attn_implementation`, …)

    Raises:
        UnsupportedModelError: there is no causal language model under this name
        AdapterError: the adapter is missing, damaged, or belongs to another model
        ConfigError: an unknown device or dtype, or a `device_map`
        OutOfMemoryError: the device does not hold the weights
    """
    if arguments.get("device_map") is not None:
        raise ConfigError(
            f"device_map={arguments['device_map']!r}: the model must be on one device. Leave it out, and choose with "
            "device='cuda:0' or the like."
        )
    place = choose_device(device)
    base = _load_base(str(model), choose_dtype(dtype, place), arguments)
    with naming_lack_of_memory(_LOAD_LESS):
        base = base.to(place)
    loaded = LoadedModel(base, str(model))
    access = {key: arguments[key] for key in _HUB_ACCESS if key in arguments}
    if adapter is not None:
        projections, trained_with = load_adapter(adapter, base, **access)
        return LoadedModel(base, str(model), projections, trained_with, str(adapter))
    authors = _authors_folder(str(model), base, revision=arguments.get("revision"), **access)
    if authors is not None:
        projections, trained_with = _authors_projections(authors, base)
        return LoadedModel(base, str(model), projections, trained_with, str(model))
    return loaded


def _load_base(name: str, dtype: torch.dtype, arguments: dict[str, Any]) -> PreTrainedModel:
    if is_folder(name) and not (Path(name) / arguments.get("subfolder", "") / "config.json").is_file():
        raise UnsupportedModelError(f"{name} is a folder without a config.json: not a model saved by transformers.")
    if Path(name).is_absolute() and not is_folder(name):  # a hub id it cannot be either
        raise UnsupportedModelError(f"There is no folder {name}. Give a model's folder, or a hub id.")
    try:
        with _quiet(name):
            model, report = AutoModelForCausalLM.from_pretrained(
                name, dtype=dtype, output_loading_info=True, **arguments
            )
    except (OSError, ValueError, ImportError, RuntimeError, HfHubHTTPError, SafetensorError) as error:
        reason = first_line(error)
        raise UnsupportedModelError(
            f"No causal language model could be loaded from {name!r}: {reason} "
            "Give a folder that `save_pretrained` wrote, or a hub id where there is a network."
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:  # transformers would fill them with random numbers
        raise UnsupportedModelError(
            f"{name} lacks {len(missing)} of the model's tensors ({', '.join(missing[:3])}). Save or download it again."
        )
    return cast(PreTrainedModel, model.eval())


def saved_window(folder: str | Path) -> int | None:
    """The usable window of a saved model, told from its `config.json` alone; `None` where that does not say."""
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        return window_of(config.get_text_config(), str(folder)).size
    except (OSError, ValueError, KeyError, TypeError, UnsupportedModelError):
        return None


def is_folder(name: str | Path) -> bool:
    """Whether there is such a folder; what cannot even be a path is none."""
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):
        return False


# --- adapters ---------------------------------------------------------------------------------------------------------


def save_adapter(
    folder: str | Path,
    projections: CandidateProjections,
    model: PreTrainedModel,
    *,
    trained_with: FocusConfig,
    base_id: str,
    dtype: torch.dtype | None = None,
) -> None:
    """Write candidate projections as safetensors with a JSON beside them; an adapter there before is replaced whole.

    Args:
        trained_with: chunk and window settings, which become the defaults of whoever loads the adapter
        base_id: hub id or name of the base model, for people; `model`'s fingerprint is what is checked
        dtype: store in this dtype instead of the projections' own
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts = decoder_parts(model)
    description = {
        "format": _FORMAT,
        "format_version": FORMAT_VERSION,
        "base_model": base_id,
        "fingerprint": fingerprint(model, parts),
        "rank": projections.rank,
        "projections": list(parts.projections),
        "config": trained_with.as_dict(),
    }
    tensors = {
        name: tensor.detach().cpu().to(dtype or tensor.dtype).contiguous()
        for name, tensor in projections.state_dict().items()
    }
    replace_file(folder / ADAPTER_WEIGHTS, lambda path: save_file(tensors, path))
    replace_file(folder / ADAPTER_CONFIG, lambda path: path.write_text(json.dumps(description, indent=2) + "\n"))


def load_adapter(
    adapter: str | Path, model: PreTrainedModel, **hub_arguments: Any
) -> tuple[CandidateProjections, FocusConfig]:
    """Candidate projections for `model`, and the settings they were trained with.

    Args:
        hub_arguments: passed on to the download from the hub (`token`, `cache_dir`, …)

    Raises:
        AdapterError: names what is missing, damaged or different
    """
    folder = _adapter_folder(str(adapter), hub_arguments)
    description = _read_description(folder)
    parts = decoder_parts(model)
    _check_base(description, fingerprint(model, parts), folder)
    if description["projections"] != list(parts.projections):
        raise AdapterError(
            f"The adapter in {folder} projects {description['projections']}, this model has {list(parts.projections)}."
        )
    known = {f.name for f in fields(FocusConfig)}
    foreign = sorted(set(description["config"]) - known)
    if foreign:
        raise AdapterError(f"{folder / ADAPTER_CONFIG}: unknown settings {foreign}; a newer version wrote it. Upgrade.")
    try:
        trained_with = FocusConfig(**description["config"])
        projections = fresh_projections(model, rank=description["rank"])
    except ConfigError as error:
        raise AdapterError(f"{folder / ADAPTER_CONFIG}: {error}") from error
    _fill(projections, _read_weights(folder), folder)
    return projections, trained_with


def fresh_projections(model: PreTrainedModel, *, rank: int | None = None) -> CandidateProjections:
    """Untrained ones for `model`, on its device.

    Raises:
        OutOfMemoryError: the device does not hold them beside the model
    """
    with naming_lack_of_memory(_LOAD_LESS):
        return CandidateProjections(decoder_parts(model), rank=rank)


def fingerprint(model: PreTrainedModel, parts: DecoderParts) -> dict[str, Any]:
    """What tells one base model from another: its shape, and some weights of every layer.

    Weights instead of a hash, so that the same model in another dtype is still the same model.
    """
    config = model.config.get_text_config()
    shape = {name: getattr(config, name) for name in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")}
    shape |= {"num_attention_heads": config.num_attention_heads, "kv_heads": parts.kv_heads}
    sampled = {"embedding": [model.get_input_embeddings().weight]}
    for index, layer in enumerate(model.get_decoder().layers):
        sampled[f"layer {index}"] = [parameter for parameter in layer.parameters() if parameter.ndim == 2]
    return {"shape": shape, "weights": {name: _sample(matrices) for name, matrices in sampled.items()}}


def _sample(matrices: Sequence[Tensor]) -> str:
    """A few weights from all over each matrix; none of those that cannot be compared."""
    found: list[float] = []
    for matrix in matrices:
        if matrix.is_floating_point() and matrix.device.type != "meta":
            flat = matrix.detach().flatten()
            places = torch.linspace(0, len(flat) - 1, _SAMPLED_WEIGHTS, dtype=torch.float64).long()
            found += flat[places.to(flat.device)].tolist()
    return " ".join(f"{value:.4g}" for value in found)


def _alike(there: str, here: str) -> bool:
    """Whether two samples are of the same weights, but for rounding to another dtype."""
    try:
        theirs, ours = ([float(value) for value in sample.split()] for sample in (there, here))
    except ValueError:
        return False
    if len(theirs) != len(ours):
        return False
    per_matrix = range(0, len(theirs), _SAMPLED_WEIGHTS)
    pieces = ((theirs[at : at + _SAMPLED_WEIGHTS], ours[at : at + _SAMPLED_WEIGHTS]) for at in per_matrix)
    return all(math.dist(a, b) <= _ROUNDING * math.hypot(*a) + _SMALLEST for a, b in pieces)


def _check_base(description: Mapping[str, Any], ours: Mapping[str, Any], folder: Path) -> None:
    theirs = description["fingerprint"]
    differing = [
        f"{name}: adapter {theirs['shape'].get(name)}, model {value}"
        for name, value in ours["shape"].items()
        if theirs["shape"].get(name) != value
    ]
    if not differing:
        differing = [
            f"weights of {name}: adapter {theirs['weights'].get(name, '')[:20]}…, model {here[:20]}…"
            for name, here in ours["weights"].items()
            if not _alike(theirs["weights"].get(name, ""), here)
        ]
    if differing:
        raise AdapterError(
            f"The adapter in {folder} belongs to base model {description['base_model']!r}, not to this one "
            f"({'; '.join(differing[:3])}). Load it with its own base model."
        )


def _adapter_folder(name: str, hub_arguments: Mapping[str, Any]) -> Path:
    if is_folder(name):
        return Path(name)
    if Path(name).is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise AdapterError(f"No adapter at {name!r}: there is no such folder.")
    return _from_hub(
        name, [ADAPTER_CONFIG, ADAPTER_WEIGHTS], f"No adapter at {name!r}: there is no such folder", hub_arguments
    )


def _from_hub(name: str, files: Sequence[str], trouble: str, hub_arguments: Mapping[str, Any]) -> Path:
    """The folder with these files of a hub id; `trouble` is what to say where the hub does not give them."""
    try:
        return Path(snapshot_download(name, allow_patterns=list(files), **hub_arguments))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = first_line(error)
        raise AdapterError(f"{trouble}, and the hub gave none ({reason})") from error


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        hint = (
            " It holds a PEFT adapter, which is something else." if (folder / "adapter_config.json").is_file() else ""
        )
        raise AdapterError(f"{folder} is not an adapter of FocusLLM: it has no {ADAPTER_CONFIG}.{hint}")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error.strerror}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AdapterError(f"{path} is damaged: {error}. Save or download the adapter again.") from error
    expected = {"format", "format_version", "base_model", "fingerprint", "rank", "projections", "config"}
    if not isinstance(description, dict) or expected - set(description):
        raise AdapterError(f"{path} lacks {sorted(expected - set(description))}: not an adapter of FocusLLM.")
    if description["format"] != _FORMAT:
        raise AdapterError(
            f"{path} has the format {description['format']!r}, not {_FORMAT!r}: not an adapter of FocusLLM."
        )
    if description["format_version"] != FORMAT_VERSION:
        raise AdapterError(
            f"{path} has format version {description['format_version']}, this release reads {FORMAT_VERSION}. "
            "Upgrade focusllm, or save the adapter again with it."
        )
    _check_types(description, path)
    return cast(dict[str, Any], description)


def _check_types(description: Mapping[str, Any], path: Path) -> None:
    """Everything is where `save_adapter` puts it, so that what follows need not ask."""
    fingerprint, rank = description["fingerprint"], description["rank"]
    whole = isinstance(fingerprint, dict) and all(isinstance(fingerprint.get(n), dict) for n in ("shape", "weights"))
    checks = {
        "fingerprint": whole and all(isinstance(sample, str) for sample in fingerprint["weights"].values()),
        "rank": rank is None or (isinstance(rank, int) and not isinstance(rank, bool)),
        "config": isinstance(description["config"], dict),
        "projections": isinstance(description["projections"], list),
    }
    wrong = [name for name, fine in checks.items() if not fine]
    if wrong:
        raise AdapterError(
            f"{path} is damaged: {wrong[0]}={str(description[wrong[0]])[:60]}. Save or download the adapter again."
        )


def _read_weights(folder: Path) -> dict[str, Tensor]:
    path = folder / ADAPTER_WEIGHTS
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise AdapterError(f"{folder} has no {ADAPTER_WEIGHTS}. Save or download the adapter again.") from error
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} is damaged or cut short: {error}. Save or download the adapter again.") from error


def _fill(projections: CandidateProjections, tensors: Mapping[str, Tensor], folder: Path) -> None:
    own = projections.state_dict()
    missing, foreign = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    wrong = [
        f"{name} {list(tensors[name].shape)} instead of {list(own[name].shape)}"
        for name in own.keys() & tensors.keys()
        if tensors[name].shape != own[name].shape
    ]
    if missing or foreign or wrong:
        raise AdapterError(
            f"The adapter in {folder} does not fit: missing {missing[:3]}, unknown {foreign[:3]}, "
            f"wrong shape {wrong[:3]} (of {len(missing)}, {len(foreign)}, {len(wrong)})."
        )
    spoiled = next((n for n, t in tensors.items() if not (t.is_floating_point() and t.isfinite().all())), None)
    if spoiled is not None:
        raise AdapterError(
            f"The adapter in {folder}: {spoiled} holds something else than finite floating point numbers."
        )
    projections.load_state_dict(dict(tensors))


# --- the authors' checkpoints -----------------------------------------------------------------------------------------


def is_authors_checkpoint(folder: str | Path) -> bool:
    """Whether a folder holds tensors named as in the authors' implementation.

    Raises:
        AdapterError: a file of weights that cannot be read
    """
    return is_folder(folder) and any(_BEACON in name for name in _tensor_files(Path(folder)))


def split_authors_checkpoint(folder: str | Path, *, base: str | Path, adapter: str | Path) -> None:
    """Save the authors' checkpoint as an ordinary model in `base` and an adapter in `adapter`.

    Raises:
        AdapterError: the folder holds no tensors of the authors' naming
    """
    if not is_authors_checkpoint(folder):
        raise AdapterError(f"{folder} is not a checkpoint of the authors: it has no tensors named beacon_*.")
    settings = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    dtype = settings.get("dtype") or settings.get("torch_dtype") or "float32"
    loaded = load_model(folder, device="cpu", dtype=dtype)
    assert loaded.projections is not None
    assert loaded.trained_with is not None
    for name in [n for n in vars(loaded.model.config) if n.startswith("beacon_") or n in _AUTHORS_SETTINGS]:
        delattr(loaded.model.config, name)
    with _quiet(folder):
        loaded.model.save_pretrained(base)
    for path in Path(folder).iterdir():
        if path.name in _TOKENIZER_FILES:
            shutil.copy(path, Path(base) / path.name)
    save_adapter(adapter, loaded.projections, loaded.model, trained_with=loaded.trained_with, base_id=Path(base).name)


def _authors_folder(name: str, base: PreTrainedModel, **hub_arguments: Any) -> Path | None:
    """Where the files of an authors' checkpoint lie; on the hub, its config tells."""
    if is_folder(name):
        return Path(name) if is_authors_checkpoint(name) else None
    if not hasattr(base.config, "beacon_param"):
        return None
    trouble = f"The config of {name} names candidate projections, but their files are not here"
    return _from_hub(name, _AUTHORS_FILES, trouble, hub_arguments)


def _authors_projections(folder: Path, model: PreTrainedModel) -> tuple[CandidateProjections, FocusConfig]:
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "mlp" in settings.get("beacon_param", []):
        raise UnsupportedModelError(f"{folder}: beacon_param has 'mlp'; only q, k, v and o are candidate projections.")
    parts = decoder_parts(model)
    projections = fresh_projections(model)
    trained = {f"{letter}_proj" for letter in settings.get("beacon_param", [])}
    files = _tensor_files(folder)
    load_bin = lru_cache(maxsize=1)(_load_bin)  # neighbours lie in the same file
    for index, names in enumerate(names_per_layer(parts)):
        for name in names:
            prefix = f"model.layers.{index}.{_BEACON}{name}"
            own = dict(projections.layer(index)[name].named_parameters())
            there = {kind for kind in ("weight", "bias") if f"{prefix}.{kind}" in files}
            if (name in trained and there != set(own)) or there - set(own):
                raise AdapterError(f"{folder}: of {prefix} there is {sorted(there)}, and the model has {sorted(own)}.")
            for kind in there:  # what was not trained keeps the copy of the base map, as in the authors' code
                _assign(own[kind], _read_tensor(files[f"{prefix}.{kind}"], f"{prefix}.{kind}", load_bin), prefix)
    strides = settings.get("memory_stride", [1024])
    return projections, FocusConfig(
        chunk_size=strides[0] if isinstance(strides, list) else strides,
        local_window=settings.get("local_window", 1024),
        dynamic_prompt=_AUTHORS_DYNAMIC_PROMPT,
        bos_per_chunk=False,
        plain_up_to=_AUTHORS_WINDOW - 1,
        window=max(_AUTHORS_WINDOW, parts.window.size),
    )


def _assign(own: nn.Parameter, tensor: Tensor, name: str) -> None:
    if own.shape != tensor.shape:
        raise AdapterError(f"{name} has the shape {list(tensor.shape)}, and the model needs {list(own.shape)}.")
    with torch.no_grad():
        own.copy_(tensor)


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Which file holds which tensor, for safetensors and `.bin` shards."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        try:
            with safe_open(path, framework="pt") as tensors:
                found |= dict.fromkeys(tensors.keys(), path)
        except (SafetensorError, OSError) as error:
            raise AdapterError(f"{path} is damaged or cut short: {error}. Save or download it again.") from error
    if not found:
        for path in sorted(folder.glob("pytorch_model*.bin")):
            found |= dict.fromkeys(_load_bin(path), path)
    return found


def _read_tensor(path: Path, name: str, load_bin: Callable[[Path], dict[str, Tensor]]) -> Tensor:
    if path.suffix == ".bin":
        return load_bin(path)[name]
    with safe_open(path, framework="pt") as tensors:
        return cast(Tensor, tensors.get_tensor(name))


def _load_bin(path: Path) -> dict[str, Tensor]:
    try:
        mapped = zipfile.is_zipfile(path)  # torch wrote another format before 1.6
        return cast(dict[str, Tensor], torch.load(path, map_location="cpu", weights_only=True, mmap=mapped))
    except Exception as error:  # over bytes of another kind unpickling stumbles in any way
        raise AdapterError(
            f"{path} is damaged or cut short: {first_line(error)}. Save or download it again."
        ) from error


@contextmanager
def _quiet(name: str | Path) -> Iterator[None]:
    """No report on tensors that we read ourselves, and no progress bar over what loads in a blink."""
    weights = [path.stat().st_size for path in Path(name).glob("*.safetensors")] if is_folder(name) else []
    with _speaking:  # the settings are the whole process's
        verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        if weights and sum(weights) < _LOADS_IN_A_BLINK:
            logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bar:
                logging.enable_progress_bar()
