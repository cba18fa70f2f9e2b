"""GGUF files: which file a name means, and its config, weights and tokenizer by way of transformers' reader.

That reader passes over some of what a file says, without an error: biases, RoPE factors, head sizes, soft caps, how
text is split before it becomes tokens. Here the file's metadata is read as well, and what it says holds.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any, cast

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    modeling_gguf_pytorch_utils,
)
from transformers.integrations import GGUF_CONFIG_DEFAULTS_MAPPING, GGUF_CONFIG_MAPPING
from transformers.integrations.gguf import read_gguf_metadata
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map
from transformers.utils import logging

from focus_core.errors import UnsupportedModelError, first_line, warn
from focus_core.loading.hub import is_folder

_NAMED_AT_MOST = 5  # of what a message lists
_PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$", re.IGNORECASE)
_HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "subfolder")
_FREQUENCY_FACTORS = "rope_freqs.weight"  # what llama.cpp makes of Llama 3's RoPE scaling

# Architectures whose RoPE and attention transformers' reader and the lines below cover in full.
_ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "stablelm", "nemotron", "starcoder2")
# Keys below the architecture that hold a number of its config under another name; transformers' table lacks them.
_FURTHER_KEYS = {
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_ROPE_KEYS = (
    *("rope.freq_base", "rope.freq_base_swa", "rope.scale_linear", "rope.dimension_count"),
    *("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned"),
)
_NO_NUMBER = ("vocab_size", "attention.value_length", "attention.causal", "tensor_data_layout")
# Token types that end an answer, besides `eos`.
_ENDS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")

# How llama.cpp names ways to split text for byte-level BPE: those of GPT-2, and those that first set every digit apart.
_SPLIT_AS_GPT2 = ("default", "gpt-2", "gpt2", "phi-2", "olmo", "mpt", "jais", "trillion", "granite-docling")
_DIGITS_APART = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")

# Kinds of values in metadata, as the format numbers them: numbers with their bytes, and text.
_NUMBER_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_TEXT = 8

_reading = Lock()  # `_quick_reader` changes a module of `gguf`


def gguf_path(name: str, arguments: Mapping[str, Any]) -> Path | None:
    """The GGUF file that a model's name means; `None` if it means an ordinary model.

    A name means one if it is such a file, a folder that holds one and no `config.json`, or a folder or hub id with
    `gguf_file` among the arguments. A file of the hub is downloaded unless it is in the hub's cache.

    Args:
        arguments: those of `load_model`

    Raises:
        UnsupportedModelError: the file is missing, a part of a model, or one of several
    """
    path = _named_file(name, arguments)
    if path is None:
        return None
    parts = _PART.search(path.name)
    if parts:
        raise UnsupportedModelError(
            f"{path} is one of {int(parts[1])} parts of a model, which transformers cannot read. Join them with "
            f"`llama-gguf-split --merge`, or take a model in one file."
        )
    return path


def gguf_config(path: Path) -> PreTrainedConfig:
    """The config of a GGUF file, from its metadata; no weights are read.

    Raises:
        UnsupportedModelError: no GGUF file, or an architecture or a kind of RoPE that cannot be read from one
    """
    metadata, tensors = _metadata(path)
    architecture = str(metadata["general.architecture"])
    if architecture not in _ARCHITECTURES:
        raise UnsupportedModelError(
            f"{path} has the architecture {architecture!r}. GGUF files of {', '.join(_ARCHITECTURES)} can be read; "
            "take this model in transformers' own format."
        )
    own = {key.removeprefix(f"{architecture}."): value for key, value in metadata.items()}
    names = _config_names(architecture)
    settings = dict(GGUF_CONFIG_DEFAULTS_MAPPING.get(architecture) or {})
    settings |= {name: own[key] for key, name in names.items() if key in own and name != "rope_theta"}
    settings |= {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in _special_names().items()}
    settings.setdefault("vocab_size", metadata.get("tokenizer.ggml.tokens"))  # of a list only the length is read
    settings |= _seen_in_tensors(architecture, tensors)
    model_type = "gemma3_text" if architecture == "gemma3" else architecture
    config = AutoConfig.for_model(model_type, **settings)
    _set_rope(config, own, path)
    return config


def load_gguf(
    path: Path, config: PreTrainedConfig, dtype: torch.dtype, arguments: Mapping[str, Any]
) -> tuple[PreTrainedModel, list[str]]:
    """A model from a GGUF file, its weights dequantised, on the CPU; and the names of tensors that it lacks.

    Args:
        config: its `gguf_config`
        arguments: passed on to `AutoModelForCausalLM.from_pretrained`, but for those that say where the file lies

    Raises:
        UnsupportedModelError: the package `gguf` is missing, or the file holds tensors that the model has no part for
        OSError, ValueError, RuntimeError: a damaged file
    """
    if find_spec("gguf") is None:
        raise UnsupportedModelError(
            f"{path.name} is a GGUF file, and the package gguf is not installed: pip install 'focusllm[gguf]'"
        )
    metadata, tensors = _metadata(path)
    _warn_of_unread(path, metadata)
    given = {key: value for key, value in arguments.items() if key not in ("gguf_file", *_HUB_ARGUMENTS)}
    with _quick_reader():
        import gguf

        model, report = AutoModelForCausalLM.from_pretrained(
            str(path.parent), gguf_file=path.name, config=config, dtype=dtype, output_loading_info=True, **given
        )
        processor = TENSOR_PROCESSORS.get(metadata["general.architecture"], TensorProcessor)(config=config.to_dict())
        known = {*get_gguf_hf_weights_map(model, processor), _FREQUENCY_FACTORS}
        unknown = sorted({*tensors} - known)
        if unknown:
            raise UnsupportedModelError(
                f"{path} holds {len(unknown)} tensors that {type(model).__name__} has no part for "
                f"({', '.join(unknown[:_NAMED_AT_MOST])}). Take this model in transformers' own format."
            )
        if _FREQUENCY_FACTORS in tensors:
            factors = next(t.data for t in gguf.GGUFReader(str(path)).tensors if t.name == _FREQUENCY_FACTORS)
            model.get_decoder().rotary_emb.inv_freq /= torch.from_numpy(factors.copy())
    # The weights are ordinary ones now. The entry names the file, and a moved file is the same model.
    model.hf_quantizer.remove_quantization_config(model)
    model.config.name_or_path = str(path)
    ends = list(dict.fromkeys(metadata[key] for key in _ENDS if key in metadata))
    model.generation_config.eos_token_id = ends or None
    return cast(PreTrainedModel, model), sorted(report["missing_keys"])


def load_gguf_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer and the chat template of a GGUF file.

    Raises:
        UnsupportedModelError: the file has none, or one of a kind that cannot be read
    """
    metadata, _ = _metadata(path)
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(path.parent), gguf_file=path.name)
    except Exception as error:  # the libraries below raise many exception types on damaged files
        raise UnsupportedModelError(
            f"{path} has no tokenizer that transformers can load: {first_line(error)}"
        ) from error
    split = str(metadata.get("tokenizer.ggml.pre", "default"))
    if metadata.get("tokenizer.ggml.model") == "gpt2":
        if split in _DIGITS_APART:
            digits = pre_tokenizers.Digits(individual_digits=True)
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [digits, tokenizer.backend_tokenizer.pre_tokenizer]
            )
        elif split not in _SPLIT_AS_GPT2 and split not in GGUF_PRE_TOKENIZER_SPLITS:
            warn(
                f"{path.name}: its tokenizer splits text in the way {split!r}, which transformers does not know. "
                "Text is split as for GPT-2; answers may be worse than with llama.cpp."
            )
    return cast(PreTrainedTokenizerFast, tokenizer)


# --- names ------------------------------------------------------------------------------------------------------------


def _named_file(name: str, arguments: Mapping[str, Any]) -> Path | None:
    named = arguments.get("gguf_file")
    if named is not None and is_folder(name):
        return _existing(Path(name) / arguments.get("subfolder", "") / named)
    if named is not None:
        return _from_hub(name, str(named), arguments)
    if name.lower().endswith(".gguf"):
        return _existing(Path(name))
    folder = Path(name) / arguments.get("subfolder", "")
    if not is_folder(name) or (folder / "config.json").is_file():
        return None
    found = sorted(path.name for path in folder.glob("*.gguf"))
    if len(found) > 1:
        more = f" and {len(found) - _NAMED_AT_MOST} more" if len(found) > _NAMED_AT_MOST else ""
        raise UnsupportedModelError(
            f"{folder} holds {len(found)} GGUF files ({', '.join(found[:_NAMED_AT_MOST])}{more}). Name one of them: "
            f"model={str(folder / found[0])!r}."
        )
    return folder / found[0] if found else None


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UnsupportedModelError(
            f"There is no file {path}. Give the path of a GGUF file, or a hub id with gguf_file='….gguf' "
            "(--gguf-file ….gguf)."
        )
    return path


def _from_hub(name: str, file: str, arguments: Mapping[str, Any]) -> Path:
    access = {key: arguments[key] for key in _HUB_ARGUMENTS if arguments.get(key) is not None}
    try:
        return Path(hf_hub_download(name, file, **access))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UnsupportedModelError(
            f"The hub gave no {file} of {name!r}: {first_line(error)} Give the path of a GGUF file, or a hub id and a "
            "file in it where there is a network."
        ) from error


# --- what a file says -------------------------------------------------------------------------------------------------


def _metadata(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Keys and values, with the length in the place of a list of texts; and the names of all tensors."""
    try:
        return cast(tuple[dict[str, Any], tuple[str, ...]], read_gguf_metadata(str(path)))
    except Exception as error:  # a damaged file fails in many ways: numbers, texts, lengths
        raise UnsupportedModelError(
            f"{path} is not a GGUF file, or a damaged one: {first_line(error)} Download it again."
        ) from error


def _config_names(architecture: str) -> dict[str, str]:
    """Names in a config by the keys of a file, without its architecture."""
    return {**_FURTHER_KEYS, **{key: name for key, name in GGUF_CONFIG_MAPPING[architecture].items() if name}}


def _warn_of_unread(path: Path, metadata: Mapping[str, Any]) -> None:
    architecture = metadata["general.architecture"]
    known = {f"{architecture}.{key}" for key in (*_config_names(architecture), *_ROPE_KEYS, *_NO_NUMBER)}
    unread = sorted(key for key in metadata if key.startswith(f"{architecture}.") and key not in known)
    if unread:
        shown = ", ".join(f"{key}={metadata[key]}" for key in unread[:_NAMED_AT_MOST])
        warn(f"{path.name}: transformers does not read {shown}. Answers may be worse than with llama.cpp.")


def _special_names() -> dict[str, str]:
    return {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding", "unk_token_id": "unknown"}


def _seen_in_tensors(architecture: str, tensors: Iterable[str]) -> dict[str, bool]:
    """Settings that a file states by the tensors it has."""
    kinds = {name.split(".", 2)[-1] for name in tensors if name.startswith("blk.")}
    found = {"tie_word_embeddings": "output.weight" not in tensors}
    if architecture == "llama":
        found |= {"attention_bias": "attn_q.bias" in kinds, "mlp_bias": "ffn_up.bias" in kinds}
    if architecture == "stablelm":
        found |= {"use_qkv_bias": "attn_q.bias" in kinds, "use_parallel_residual": "ffn_norm.weight" not in kinds}
    return found


def _set_rope(config: PreTrainedConfig, own: Mapping[str, Any], path: Path) -> None:
    """The base, the scaling and the rotated part of every head, as the file says."""
    nested = "full_attention" in config.rope_parameters
    full = config.rope_parameters["full_attention"] if nested else config.rope_parameters
    if "rope.freq_base" in own:
        full["rope_theta"] = own["rope.freq_base"]
    if nested and "rope.freq_base_swa" in own:
        config.rope_parameters["sliding_attention"]["rope_theta"] = own["rope.freq_base_swa"]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if own.get("rope.dimension_count", head_dim) != head_dim:
        full["partial_rotary_factor"] = own["rope.dimension_count"] / head_dim
    kind = own.get("rope.scaling.type", "linear" if "rope.scale_linear" in own else "none")
    factor = own.get("rope.scaling.factor", own.get("rope.scale_linear", 1.0))
    if kind in ("linear", "yarn") and factor != 1.0:
        full |= {"rope_type": kind, "factor": factor}
        if kind == "yarn":
            original = own.get("rope.scaling.original_context_length", config.max_position_embeddings)
            full["original_max_position_embeddings"] = original
    elif kind not in ("none", "linear", "yarn"):
        raise UnsupportedModelError(
            f"{path} scales its RoPE in the way {kind!r}, which cannot be read from a GGUF file. Take this model in "
            "transformers' own format."
        )


def _size_of_array(content: memoryview, offset: int) -> int:
    """Bytes of a list in the metadata: its kind, its length, and numbers of one size, or texts after their lengths."""
    kind, count = struct.unpack_from("<IQ", content, offset)
    end = offset + 12
    if kind != _TEXT:
        return end + count * _NUMBER_BYTES[kind] - offset
    for _ in range(count):
        end += 8 + struct.unpack_from("<Q", content, end)[0]
    return end - offset


@contextmanager
def _quick_reader() -> Iterator[None]:
    """Take most of its time from transformers' reader, and its bar, for the length of the block.

    The reader makes the table of tensor names anew for every module of the model, 397 times for 30 layers. And the
    package `gguf` makes two arrays of every token, every score and every merge, which `gguf_config` has read or which
    only the tokenizer needs.
    Its bar ignores transformers' settings for bars; `logging.tqdm` follows them.
    """
    import gguf

    package: Any = gguf

    class Reader(package.GGUFReader):
        @property
        def data(self) -> Any:
            return self._array

        @data.setter
        def data(self, mapped: Any) -> None:
            self._array = mapped.view(np.ndarray)

        def _get_field_parts(self, offset: int, kind: int) -> Any:
            if kind != package.GGUFValueType.ARRAY:
                return super()._get_field_parts(offset, kind)
            return _size_of_array(memoryview(self._array), offset), [], [], [package.GGUFValueType.ARRAY]

    with _reading:
        reader, table, bar = package.GGUFReader, package.get_tensor_name_map, modeling_gguf_pytorch_utils.tqdm
        package.GGUFReader, package.get_tensor_name_map = lru_cache(maxsize=1)(Reader), lru_cache(maxsize=4)(table)
        modeling_gguf_pytorch_utils.tqdm = logging.tqdm
        try:
            yield
        finally:
            package.GGUFReader, package.get_tensor_name_map = reader, table
            modeling_gguf_pytorch_utils.tqdm = bar
