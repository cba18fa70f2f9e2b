"""Where a text may be cut for tokenizing, so that the tokens of its segments are the tokens of the whole.

A tokenizer over bytes splits a text by a pattern, and merges inside its matches only. A cut changes no match if none
can go over it, and if what the pattern looks ahead for is met whether the text ends or goes on. None of the patterns in
`_BORDERS` looks behind, so that from a cut on each finds what it finds in a text that begins there. The cuts:

- Before a blank that follows a character: no match has a blank after anything but white space, and `\\s+(?!\\S)`, which
  looks ahead, holds white space only.
- Before a new line that follows a character: the same for GPT-2's pattern. In the others, punctuation takes new lines.
- After the last new line of white space, in the others: `\\s*[\\r\\n]+` ends there, or punctuation with its new lines
  does, before `\\s+(?!\\S)` is tried. No match has a character after a new line, but `/` in two of the patterns.

All else that a tokenizer does must be local too: see `segmenter`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

Segmenter = Callable[[str], list[str]]
_Part = Mapping[str, Any]  # of a tokenizer, as its file describes it

# Marks that end a sentence, with what they close. The mark stands first, where it is looked for quickly.
_ENDS_SENTENCE = r"(?<!\n)[\"'”’)\]]*(?= )"
_BEFORE_LINES = re.compile(rf"[.!?…\n](?:{_ENDS_SENTENCE}|(?<=\S\n))")
_AFTER_LINES = re.compile(rf"[.!?…\n](?:{_ENDS_SENTENCE}|(?<=\n)(?=[ \t]*[^\s/]))")

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WHITE_SPACE = r"|\s*[\r\n]+|\s+(?!\S)|\s+"


def _before_lines(text: str) -> Iterator[int]:
    for found in _BEFORE_LINES.finditer(text):
        yield found.start() if found.group() == "\n" else found.end()


def _after_lines(text: str) -> Iterator[int]:
    return (found.end() for found in _AFTER_LINES.finditer(text))


_BORDERS = {
    _GPT2: _before_lines,
    # Llama 3, Qwen 2 and 3, Qwen 3.5
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    + _WHITE_SPACE: _after_lines,
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    + _WHITE_SPACE: _after_lines,
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    + _WHITE_SPACE: _after_lines,
    # Mistral Nemo and later; gpt-oss and Llama 4
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _WHITE_SPACE: _after_lines,
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _WHITE_SPACE: _after_lines,
}


def segmenter(tokenizer: PreTrainedTokenizerBase) -> Segmenter:
    """Cuts a text into segments that may be tokenized one by one: at ends of sentences and at lines.

    The text is one segment, unless nothing in the tokenizer sees more than a segment: it splits by a known pattern,
    normalizes by nothing or NFC (which joins nothing with a blank or a new line), merges without chance, puts nothing
    in front, and has no added token that holds a border or takes characters around it.
    """
    borders = _borders(tokenizer)
    if borders is None:
        return lambda text: [text]
    return lambda text: [text[start:stop] for start, stop in pairwise((0, *borders(text), len(text)))]


def _borders(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], Iterator[int]] | None:
    # A class of its own may change texts before its backend encodes them.
    if not tokenizer.is_fast or type(tokenizer)._encode_plus is not PreTrainedTokenizerFast._encode_plus:
        return None
    backend = tokenizer.backend_tokenizer
    try:
        normalizer, splitter, processor = map(
            _parts, (backend.normalizer, backend.pre_tokenizer, backend.post_processor)
        )
    except Exception:  # parts in Python cannot be described
        return None
    local = (
        isinstance(backend.model, BPE)
        and not backend.model.dropout
        and all(part["type"] == "NFC" for part in normalizer)
        and all(map(_leaves_segments, processor))
        and not any(map(_crosses, backend.get_added_tokens_decoder().values()))
    )
    return _BORDERS.get(_pattern(splitter)) if local else None


def _parts(component: Any) -> list[_Part]:
    """A normalizer, a pre-tokenizer or a post-processor, and those of which a sequence consists."""
    return [] if component is None else _flat(json.loads(component.__getstate__()))


def _flat(part: _Part) -> list[_Part]:
    if part["type"] != "Sequence":
        return [part]
    (members,) = (value for value in part.values() if isinstance(value, list))
    return [inner for member in members for inner in _flat(member)]


def _pattern(splitter: list[_Part]) -> str:
    """By what a text is split. Digits may be split off too: white space at a border parts them anyway."""
    match [part for part in splitter if part["type"] != "Digits"]:
        case [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]:
            return _GPT2
        case [
            {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            return pattern
    return ""


def _leaves_segments(processor: _Part) -> bool:
    """Whether a post-processor that adds no special tokens does with segments what it does with the whole."""
    match processor:
        case {"type": "TemplateProcessing", "single": single}:
            return sum("Sequence" in piece for piece in single) == 1
        case {"type": "ByteLevel", "trim_offsets": trims, "add_prefix_space": prefix}:
            return not (trims and prefix)  # else the first token of a text keeps its blank
    return False


def _crosses(added: Any) -> bool:
    """Whether an added token may hold a border, which is always beside white space, or change what is around it."""
    content: str = added.content
    holds = any(map(str.isspace, content)) and not set(content) <= set(" \t")
    return holds or added.lstrip or added.rstrip or added.single_word
