"""Small tokenizers of the kinds that models have: bytes, two ways to write the blank of SentencePiece, merges."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.tiny import byte_tokenizer

_SPECIAL = ["<pad>", "<bos>", "<eos>"]
_CORPUS = [
    "Anna signed it in May.\n\nBob did not. Who signed? Apples are red. Which colour? Hello. Good day. Be brief.\n\n",
    "user assistant system You are a helpful assistant.\n\nWho is it? It is Bob.\n\n",
    "Who\n\nAnna\n\nBob\n\n",
] * 4
# As Llama 3 and Qwen split: punctuation takes the new lines behind it.
_SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def tokenizer_of(kind: str, control: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer with these control tokens.

    Args:
        kind: `"bytes"`; `"prepend"` as files of Llama 2, TinyLlama and Phi-3 have it: a blank in front of every text;
            `"metaspace"`: in front of the first text; `"merges"`: bytes that merge, also at the end of a sentence
    """
    if kind == "bytes":
        wrapped = byte_tokenizer()
    else:
        trained = Tokenizer.from_str(_trained(kind))
        wrapped = PreTrainedTokenizerFast(
            tokenizer_object=trained, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
        )
    wrapped.add_special_tokens({"additional_special_tokens": list(control)})
    return wrapped


@cache
def _trained(kind: str) -> str:
    merges = kind == "merges"
    tokenizer = Tokenizer(models.BPE(byte_fallback=not merges, unk_token="<pad>"))
    if merges:
        split = pre_tokenizers.Split(Regex(_SPLIT), "isolated")
        by_byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, by_byte])
        tokenizer.decoder = decoders.ByteLevel()
    else:
        # Trained on words, so that a blank only ever begins a token.
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        blank = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        tokenizer.decoder = decoders.Sequence(blank)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if merges else [],
        show_progress=False,
        max_token_length=8,
    )
    # In SentencePiece's vocabularies a new line is a byte that joins with nothing.
    corpus = _CORPUS if merges else [line for text in _CORPUS for line in text.split("\n")]
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    if kind == "prepend":
        tokenizer.pre_tokenizer = None
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    if kind == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return str(tokenizer.to_str()) if merges else _with_bytes(tokenizer)


def _with_bytes(tokenizer: Tokenizer) -> str:
    """The same with a token for each byte, for characters that no token has."""
    described = json.loads(tokenizer.to_str())
    vocabulary = described["model"]["vocab"]
    vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    return json.dumps(described)
