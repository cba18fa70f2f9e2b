"""Telling models apart: by a sample of the weights for adapters, by a key of the whole content for prefilled chunks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from hashlib import sha256
from operator import mul
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers import __version__ as transformers_version

from focus_core.attention.modules import DecoderParts, decoder_parts
from focus_core.errors import ConfigError
from focus_core.loading.file_hashes import file_hashes
from focus_core.loading.gguf import gguf_path
from focus_core.loading.hub import is_folder, local_folder, snapshot_commit

SOFTWARE = f"transformers {transformers_version}"  # what computes keys and values
KEY_FORMAT = 1  # part of every model key: raise it when prefill computes something else from the same model

_SAMPLED_WEIGHTS = 4  # of every matrix, to tell base models apart
_ROUNDING = 0.02  # bfloat16 rounds by 0.004 at most
_RELATED = 0.5  # cosine of all samples
_SMALLEST = 1e-6  # float16 rounds weights of this size to zero

_LATER = ("head_dim", "intermediate_size")  # of a shape; adapters from before do not have them

_WEIGHT_FILES = ("*.safetensors", "*.bin", "*.index.json")
_NO_NUMBER = (  # fields of a config that change no key and no value; the dtype is taken from the model
    *("_name_or_path", "transformers_version", "architectures", "dtype", "use_cache", "return_dict"),
    *("output_attentions", "output_hidden_states", "problem_type", "id2label", "label2id"),
)
_IMPLEMENTATIONS = ("_attn_implementation", "_experts_implementation")
_STATE_OF_A_CALL = ("truncation", "padding")  # a fast tokenizer keeps the last call's settings in these


# --- does an adapter belong to this model? ----------------------------------------------------------------------------


def weights_fingerprint(model: PreTrainedModel, parts: DecoderParts) -> dict[str, Any]:
    """The shape of a base model, and some weights of every layer.

    Weights instead of a hash, so that the same model in another dtype is still the same model.
    """
    config = model.config.get_text_config()
    shape = {name: getattr(config, name) for name in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")}
    shape |= {"num_attention_heads": config.num_attention_heads, "kv_heads": parts.kv_heads, "head_dim": parts.head_dim}
    shape |= {"intermediate_size": getattr(config, "intermediate_size", None)}
    sampled = {"embedding": [model.get_input_embeddings().weight]}
    for index, layer in enumerate(model.get_decoder().layers):
        named = layer.named_parameters()  # scales of quantised weights are matrices too, by another name
        sampled[f"layer {index}"] = [matrix for name, matrix in named if matrix.ndim == 2 and name.endswith("weight")]
    return {"shape": shape, "weights": {name: _sample(matrices) for name, matrices in sampled.items()}}


def other_shapes(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """How the shape of an adapter's model (`theirs`) differs from that of the loaded one (`ours`), each by name.

    Both are a `weights_fingerprint`; one of an older adapter does not have all of these numbers.
    """
    return [
        f"{name}: adapter {theirs['shape'].get(name)}, model {value}"
        for name, value in ours["shape"].items()
        if theirs["shape"].get(name, value if name in _LATER else None) != value
    ]


def other_weights(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Parts of two models of one shape whose weights differ by more than another dtype rounds."""
    pairs = ((name, theirs["weights"].get(name, ""), sample) for name, sample in ours["weights"].items())
    return [name for name, mine, sample in pairs if not _alike(mine, sample)]


def are_related(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Whether one of two models of one shape was made from the other: fine-tuned, or quantised in another way.

    Weights of models that were trained apart have nothing to do with each other: the cosine of the samples is near 0.
    """
    a, b = [], list[float]()
    for name, sample in ours["weights"].items():
        mine, other = _numbers(theirs["weights"].get(name, "")), _numbers(sample)
        if mine is not None and other is not None and len(mine) == len(other):
            a += mine
            b += other
    norm = math.hypot(*a) * math.hypot(*b)
    return norm > 0 and sum(map(mul, a, b)) / norm > _RELATED


def is_sample(value: object) -> bool:
    """Whether a value of a fingerprint can be compared with another."""
    return isinstance(value, str) and _numbers(value) is not None


def _sample(matrices: Sequence[Tensor]) -> str:
    """Evenly spaced weights of each matrix; quantised matrices and those without values are left out."""
    found: list[float] = []
    for matrix in matrices:
        plain = type(matrix.data) is Tensor  # torchao's quantised weights call themselves floating point
        if plain and matrix.is_floating_point() and matrix.device.type != "meta":
            flat = matrix.detach().flatten()
            positions = torch.linspace(0, len(flat) - 1, _SAMPLED_WEIGHTS, dtype=torch.float64).long()
            found += flat[positions.to(flat.device)].tolist()
    return " ".join(f"{value:.4g}" for value in found)


def _alike(theirs: str, ours: str) -> bool:
    """Whether two samples are of the same weights, up to rounding to another dtype."""
    a, b = _numbers(theirs), _numbers(ours)
    if a is None or b is None or len(a) != len(b):
        return False
    starts = range(0, len(a), _SAMPLED_WEIGHTS)
    pairs = ((a[start : start + _SAMPLED_WEIGHTS], b[start : start + _SAMPLED_WEIGHTS]) for start in starts)
    return all(math.dist(x, y) <= _ROUNDING * math.hypot(*x) + _SMALLEST for x, y in pairs)


def _numbers(sample: str) -> list[float] | None:
    """A sample's weights, unless the file that it is from was spoiled."""
    try:
        return [float(value) for value in sample.split()]
    except ValueError:
        return None


# --- may prefilled chunks be used with this model? --------------------------------------------------------------------


def model_key(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, weights: Mapping[str, str]) -> str:
    """Everything that the keys and values of a text depend on, as 64 hex digits; no paths and no times of files.

    That is: the content of the weight files, a sample of the weights as they are in memory, the tokenizer, the dtype,
    every setting of the text model (RoPE among them), and the implementation of attention.

    Args:
        model: as loaded, with its weights unchanged since
        weights: the result of `weights_content` for its name; if empty, equal keys prove nothing

    Raises:
        UnsupportedModelError: `model` cannot have candidate tokens
    """
    config = model.config.get_text_config()
    parts = {
        "format": KEY_FORMAT,
        "weights": dict(weights),
        # The same files give other weights if an argument (`variant`, `gguf_file`, …) chooses among them.
        "sample": weights_fingerprint(model, decoder_parts(model)),
        "tokenizer": _tokenizer_content(tokenizer),
        "dtype": str(model.dtype),
        **_settings_of(config),
    }
    return sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()


def key_in_memory(model: PreTrainedModel, computed_in: str) -> str:
    """Like `model_key`, of a model whose files are not known: the content of all its weights as they are in memory.

    Args:
        computed_in: the precision of passes, if it is not that of the weights

    Raises:
        ConfigError: weights whose bytes cannot be read
    """
    config, digest = model.config.get_text_config(), sha256()
    parts = {
        "format": KEY_FORMAT,
        "computed in": computed_in,
        **_settings_of(config),
    }
    digest.update(json.dumps(parts, sort_keys=True, default=repr).encode())
    try:
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"Nothing can be kept of this model: its weights have no bytes to read ({error}).") from error
    return digest.hexdigest()


def _settings_of(config: PreTrainedConfig) -> dict[str, Any]:
    """What keys and values depend on in a text model's config."""
    return {
        "config": {name: value for name, value in config.to_dict().items() if name not in _NO_NUMBER},
        "implementations": [getattr(config, name, None) for name in _IMPLEMENTATIONS],
    }


def weights_content(name: str, arguments: Mapping[str, Any]) -> dict[str, str]:
    """The SHA-256 of each weight file of a loaded model, by file name; empty if its files cannot be found.

    If a hub id's snapshot holds no weights (transformers took them from elsewhere), its commit stands for them.

    All files that transformers could choose from count: an unused one can make two equal models differ, which costs
    another prefill, but a file missing here could make two different models equal.

    Args:
        name: the folder, hub id or GGUF file that the model was loaded from
        arguments: those of `load_model` (`revision`, `subfolder`, `cache_dir`, `gguf_file`)

    Raises:
        OSError: a file that cannot be read
    """
    gguf = gguf_path(name, arguments)
    if gguf is not None:
        return {"gguf": file_hashes([gguf])[gguf]}
    config = (Path(arguments.get("subfolder", "")) / "config.json").as_posix()
    access = {key: arguments.get(key) for key in ("revision", "cache_dir")}
    folder = local_folder(name, config, **access)
    if folder is None:
        return {}
    paths = sorted({path for pattern in _WEIGHT_FILES for path in folder.glob(pattern) if path.is_file()})
    if paths:
        return {path.name: digest for path, digest in file_hashes(paths).items()}
    return {} if is_folder(name) else {name: snapshot_commit(folder)}


def _tokenizer_content(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    content = {"class": type(tokenizer).__name__, "template": tokenizer.chat_template}
    content["special"] = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    if tokenizer.is_fast:
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        return content | {name: value for name, value in backend.items() if name not in _STATE_OF_A_CALL}
    # A slow tokenizer keeps what `get_vocab` does not tell (merges, scores) in its files.
    names = {name: getattr(tokenizer, name, None) for name in tokenizer.vocab_files_names}
    files = {name: Path(path) for name, path in names.items() if path and Path(path).is_file()}
    hashes = file_hashes([*files.values()])
    return content | {"vocab": tokenizer.get_vocab(), "files": {name: hashes[path] for name, path in files.items()}}
