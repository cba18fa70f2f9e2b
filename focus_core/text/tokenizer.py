"""Strings to tokens: documents with the characters of their tokens, questions with the chat template."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from threading import Lock
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from focus_core.errors import ConfigError, UnsupportedModelError, first_line
from focus_core.text.chunking import Prompt
from focus_core.text.documents import Document, TokenIds, TokenizedDocument, require_whole_characters

Message = Mapping[str, str]

_ARGUMENTS = ("revision", "token", "trust_remote_code", "cache_dir", "local_files_only", "subfolder")
_REMEMBERED_TOKENS = 4_000_000  # of documents, so that a second question does not tokenize them again


def load_tokenizer(name: str, arguments: Mapping[str, Any] | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub id; of the model's `arguments`, those that say where it lies.

    Raises:
        UnsupportedModelError: there is none
    """
    chosen = {key: value for key, value in (arguments or {}).items() if key in _ARGUMENTS}
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, **chosen)
    except Exception as error:  # the libraries below raise many exception types on damaged files
        reason = first_line(error)
        raise UnsupportedModelError(f"{name} has no tokenizer that transformers can load: {reason}") from error
    if not len(tokenizer):
        raise UnsupportedModelError(f"{name} has an empty tokenizer. Add its tokenizer files to the model folder.")
    return tokenizer


class TextTokenizer:
    """A model's tokenizer as the engine uses it: no special tokens but the BOS, documents remembered by content.

    Safe under threads.

    Attributes:
        bos: the BOS that the tokenizer writes, by itself or in its chat template; tokenizers like GPT-2's name one
            (`<|endoftext|>`) and do not write it in front of a text: those have none
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._template_writes_bos = _template_writes_bos(tokenizer)
        named: int | None = tokenizer.bos_token_id
        writes_bos = named is not None and tokenizer("a")["input_ids"][:1] == [named]
        self.bos = named if writes_bos or self._template_writes_bos else None
        self._remembered: OrderedDict[bytes, TokenizedDocument] = OrderedDict()
        self._remembered_tokens = 0
        self._lock = Lock()

    def tokenize(self, text: str) -> TokenIds:
        """Tokens of `text`, without special tokens.

        Raises:
            DocumentError: the text holds half of a character
        """
        require_whole_characters(text)
        tokens: TokenIds = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return tokens

    def document(self, document: Document) -> TokenizedDocument:
        """A document's tokens; of equal documents the tokens are made once."""
        if document.text is None:
            return TokenizedDocument(document, document.token_ids or ())
        known = self._recall(document)
        if known is None:
            known = self._with_characters(document)
            self._remember(known)
        # Equal documents may differ in name and metadata.
        return known if known.document is document else TokenizedDocument(document, known.token_ids, known.starts)

    def prompt(self, messages: Iterable[Message], *, chat_template: bool) -> Prompt:
        """Messages as the model continues them: through the chat template, or joined as they stand.

        Raises:
            ConfigError: the chat template refuses these messages
            DocumentError: the text holds half of a character
        """
        if chat_template and self.tokenizer.chat_template:
            return self.encode(self._rendered(list(messages)), templated=True)
        return self.encode("\n\n".join(message["content"] for message in messages), templated=False)

    def encode(self, rendered: str, *, templated: bool) -> Prompt:
        """A prompt from what the chat template made, or from text that is continued as it stands."""
        tokens = self._with_characters(Document(rendered))
        if templated and self._template_writes_bos and tokens.token_ids[:1] == [self.bos]:
            starts = None if tokens.starts is None else tokens.starts[1:]
            tokens = TokenizedDocument(tokens.document, tokens.token_ids[1:], starts)
        return Prompt(() if self.bos is None else (self.bos,), tokens)

    def _rendered(self, messages: list[Message]) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        except TemplateError as error:
            raise ConfigError(f"The model's chat template refuses these messages: {error}") from error

    def _with_characters(self, document: Document) -> TokenizedDocument:
        text = document.text or ""
        if not self.tokenizer.is_fast:
            return TokenizedDocument(document, self.tokenize(text))
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        numbers: dict[int, int] = {}  # the same object for the same token: a quarter of the memory
        token_ids = [numbers.setdefault(token, token) for token in encoded["input_ids"]]
        starts = array("L", [start for start, _ in encoded["offset_mapping"]])
        starts.append(len(text))
        return TokenizedDocument(document, token_ids, starts)

    # --- remembered documents -----------------------------------------------------------------------------------------

    def _recall(self, document: Document) -> TokenizedDocument | None:
        with self._lock:
            known = self._remembered.get(document.key)
            if known is not None:
                self._remembered.move_to_end(document.key)
            return known

    def _remember(self, tokens: TokenizedDocument) -> None:
        with self._lock:
            replaced = self._remembered.pop(tokens.document.key, ())
            self._remembered[tokens.document.key] = tokens
            self._remembered_tokens += len(tokens) - len(replaced)
            while self._remembered_tokens > _REMEMBERED_TOKENS:
                self._remembered_tokens -= len(self._remembered.popitem(last=False)[1])


def _template_writes_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    if not tokenizer.chat_template or tokenizer.bos_token is None:
        return False
    try:
        rendered = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    except TemplateError:
        return False
    return str(rendered).startswith(str(tokenizer.bos_token))
