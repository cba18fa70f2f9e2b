"""Tokenizers of strangers: what they make of a text must be tokens that the model knows, and their errors are ours."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import cast

from transformers import PreTrainedTokenizerBase

from focus_core.errors import DocumentError, FocusError, UnsupportedModelError, first_line, shown

_WAY_OUT = "Use the tokenizer that the model was trained with."


def require_usable(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse settings that break every call.

    Raises:
        UnsupportedModelError: a greatest length that is no number
    """
    length = tokenizer.model_max_length
    if not isinstance(length, int | float) or isinstance(length, bool):
        raise UnsupportedModelError(f"The tokenizer has model_max_length={shown(length)}: it must be a number.")


def require_known(tokens: Collection[int], vocabulary: int | None, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse tokens of the tokenizer that the model has no embedding for.

    Args:
        vocabulary: number of embeddings; `None` where there is no model

    Raises:
        UnsupportedModelError: naming the token
    """
    largest = max(tokens, default=0)
    if vocabulary is not None and largest >= vocabulary:
        token = tokenizer.convert_ids_to_tokens(largest)
        raise UnsupportedModelError(
            f"The tokenizer makes the token {token!r} with the number {largest}, and the model knows 0 to "
            f"{vocabulary - 1}: they do not belong together. {_WAY_OUT}"
        )


def require_numbers(tokens: Collection[int], vocabulary: int | None) -> None:
    """Refuse a document that is given as tokens, and not as such of the model.

    Raises:
        DocumentError: with the range
    """
    if not all(type(token) is int for token in tokens):
        raise DocumentError("token_ids of a document must be whole numbers.")
    if tokens and vocabulary is not None and not 0 <= min(tokens) <= max(tokens) < vocabulary:
        raise DocumentError(
            f"A document has tokens from {shown(min(tokens))} to {shown(max(tokens))}; the model knows 0 to "
            f"{vocabulary - 1}."
        )


@contextmanager
def naming_trouble() -> Iterator[None]:
    """What a tokenizer raises, as an error of ours."""
    try:
        yield
    except FocusError:
        raise
    except BaseException as error:
        # A panic in the tokenizers' own language is no `Exception`, and has no name to import.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = first_line(cast(Exception, error)).rstrip(".")
        raise UnsupportedModelError(f"The model's tokenizer cannot read a text: {reason}. {_WAY_OUT}") from error
