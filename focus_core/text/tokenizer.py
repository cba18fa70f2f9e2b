"""Strings to tokens: documents with the characters of their tokens, questions with the chat template."""

from __future__ import annotations

import re
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from threading import Lock
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from focus_core.errors import ConfigError, UnsupportedModelError, first_line
from focus_core.text.chat import RAW_INSTEAD, SEPARATOR, Message, Turn, split_turn, unused_words
from focus_core.text.control import ControlTokens
from focus_core.text.documents import Document, TokenIds, TokenizedDocument, require_whole_characters
from focus_core.text.encoded import Encoded, EncodedSegments
from focus_core.text.layout import Prompt
from focus_core.text.segments import segmenter
from focus_core.text.template import render
from focus_core.text.tokenizer_checks import naming_trouble, require_known, require_numbers, require_usable

_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "subfolder")
_REMEMBERED_TOKENS = 4_000_000  # of documents, so that a second question does not tokenize them again
# In front of a text that is the middle of another, so that no tokenizer takes it for a beginning. Neither joins with
# what it is put before: a letter before white space, and a new line before all else.
_ANCHOR, _LINE = "a", "\n"
_BLANK = " "  # that ends what a template writes, and joins with the text behind it
_SAMPLE = ("Apples are red", "Which colour?")  # a document and a question, to try a template with


def load_tokenizer(name: str, arguments: Mapping[str, Any] | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub id; of the model's `arguments`, those that say where it lies.

    Raises:
        UnsupportedModelError: there is none
    """
    chosen = {key: value for key, value in (arguments or {}).items() if key in _ARGUMENTS}
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **chosen)
    except Exception as error:  # the libraries below raise many exception types on damaged files
        reason = first_line(error)
        raise UnsupportedModelError(f"{name} has no tokenizer that transformers can load: {reason}") from error
    if not len(tokenizer):
        raise UnsupportedModelError(f"{name} has an empty tokenizer. Add its tokenizer files to the model folder.")
    return tokenizer


class TextTokenizer:
    """A model's tokenizer as the engine uses it: no special tokens but the BOS, documents remembered by content.

    Control tokens that stand in documents or in messages are text. Safe under threads.

    Args:
        vocabulary: tokens that the model knows; `None` without a model

    Attributes:
        bos: the BOS that the tokenizer writes, by itself or in its chat template; tokenizers like GPT-2's name one
            (`<|endoftext|>`) and do not write it in front of a text: those have none
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, vocabulary: int | None = None) -> None:
        require_usable(tokenizer)
        self.tokenizer, self._vocabulary = tokenizer, vocabulary
        self._template_writes_bos = _template_writes_bos(tokenizer)
        named: int | None = tokenizer.bos_token_id
        with naming_trouble():
            writes_bos = named is not None and tokenizer("a")["input_ids"][:1] == [named]
        self.bos = named if writes_bos or self._template_writes_bos else None
        self._remembered: OrderedDict[tuple[bytes, str], TokenizedDocument] = OrderedDict()
        self._remembered_tokens = 0
        self._lock = Lock()
        self._segments, self._segments_encoded = segmenter(tokenizer), EncodedSegments()
        self._numbers: dict[int, int] = {}  # the same object for the same token: a quarter of the memory

    def tokenize(self, text: str, *, in_turn: bool = False) -> TokenIds:
        """Tokens of `text`, without special tokens; control tokens in it are text.

        Args:
            in_turn: of a document in the user's turn, in layout "chat"

        Raises:
            DocumentError: the text holds half of a character
        """
        require_whole_characters(text)
        return self._as_text(text, self._front if in_turn else "")[0]

    def parse(self, text: str) -> TokenIds:
        """Tokens of `text`, without a BOS of the tokenizer's; control tokens in it count.

        Raises:
            DocumentError: the text holds half of a character
        """
        require_whole_characters(text)
        return self._encode(text)[0]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special tokens."""
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def document(self, document: Document, *, in_turn: bool = False) -> TokenizedDocument:
        """A document's tokens; of equal documents the tokens are made once.

        Args:
            in_turn: the document stands in the user's turn, as in layout "chat"
        """
        if document.text is None:
            require_numbers(document.token_ids or (), self._vocabulary)
            return TokenizedDocument(document, document.token_ids or ())
        front = self._front if in_turn else ""
        known = self._recall((document.key, front))
        if known is None:
            known = self._with_characters(document, front)
            self._remember((document.key, front), known)
        # Equal documents may differ in name and metadata.
        return known if known.document is document else TokenizedDocument(document, known.token_ids, known.starts)

    # --- prompts ------------------------------------------------------------------------------------------------------

    def prompt(self, messages: Iterable[Message], *, chat_template: bool, turn: bool = False) -> Prompt:
        """Messages as the model continues them: through the chat template, or joined as they stand.

        Without the template on a model that has one, the caller writes it: control tokens in the messages count then.

        Args:
            turn: also as documents join them, for layout "chat"

        Raises:
            ConfigError: the chat template refuses these messages, or documents cannot join them
            DocumentError: the text holds half of a character
        """
        listed = list(messages)
        for message in listed:
            require_whole_characters(message["content"])
        if not (self.tokenizer.chat_template and chat_template):
            joined = Document("\n\n".join(message["content"] for message in listed))
            encode = self._encode if self.tokenizer.chat_template else self._as_text
            return Prompt(self._bos, TokenizedDocument(joined, *encode(joined.text or "")))
        marked, literals = self._with_marked_control(listed)
        rendered = self._rendered(marked)
        tokens, starts = self._encode(rendered, literals)
        if self._template_writes_bos and tokens[:1] == [self.bos]:
            tokens, starts = tokens[1:], None if starts is None else starts[1:]
        document = TokenizedDocument(Document(_unmarked(rendered, literals)), tokens, starts)
        question = len(tokens) - tokens[::-1].index(self.bos) if self.bos in tokens else None
        return Prompt(self._bos, document, self._turn(marked, literals) if turn else None, question)

    @property
    def _bos(self) -> tuple[int, ...]:
        return () if self.bos is None else (self.bos,)

    @cached_property
    def turn_opening(self) -> tuple[int, ...]:
        """What the chat template writes before the words of a user, BOS included.

        Raises:
            ConfigError: the parts of a conversation, joined again, are not what the template writes, token for token
        """
        document, question = _SAMPLE
        turn = self._turn([{"role": "user", "content": question}], {})
        whole, _ = self._encode(self._rendered([{"role": "user", "content": f"{document}{SEPARATOR}{question}"}]))
        parts = [*turn.opening, *self._sample_document, *turn.suffix]
        if parts[len(parts) - len(whole) :] != whole:
            raise ConfigError(
                "The tokenizer joins what the chat template writes with the text of documents, so that documents "
                f"cannot be read by themselves and put into the user's turn. {RAW_INSTEAD}"
            )
        return turn.opening

    @cached_property
    def _front(self) -> str:
        """What a document in the user's turn is encoded behind, so that it has the tokens that it has in the template.

        Nothing, as every other text; a new line, where the tokenizer marks the beginning of a text (with the blank of
        SentencePiece) and the template's own text runs on into the document (`<|user|>\\n`); or the blank that ends the
        template's text (`User: `) and becomes a part of the document's first token.
        """
        document, question = _SAMPLE
        before = split_turn([{"role": "user", "content": question}], self._rendered).before
        whole = self._encode(before + document)[0]
        for front in ("", _LINE, *([_BLANK] if before.endswith(_BLANK) else [])):
            tokens = self._as_text(document, front)[0]
            if whole[-len(tokens) :] == tokens:
                return front
        return ""

    @cached_property
    def _sample_document(self) -> TokenIds:
        return self.tokenize(_SAMPLE[0], in_turn=True)

    @cached_property
    def separator(self) -> tuple[int, ...]:
        """Between two texts that follow each other."""
        return tuple(self._middle(SEPARATOR, {})[0])

    def _turn(self, messages: Sequence[Message], literals: Mapping[str, str]) -> Turn:
        split = split_turn(messages, self._rendered)
        parts = (split.between, split.words, split.after)
        suffix, starts = self._middle("".join(parts), literals)
        if starts is None:  # the tokenizer does not tell characters, so that parts are encoded one by one
            between, words, after = (self._encode(part, literals)[0] for part in parts)
            first, last = len(between), len(between) + len(words)
            return Turn(tuple(self._before(split.before, literals)), (*between, *words, *after), (first, last))
        end = starts[-1] - len(_unmarked(split.after, literals))
        first = next(token for token, start in enumerate(starts) if start >= len(split.between))
        last = next(token for token, start in enumerate(starts) if start >= end)
        return Turn(tuple(self._before(split.before, literals)), tuple(suffix), (first, last))

    def _before(self, text: str, literals: Mapping[str, str]) -> TokenIds:
        """Tokens in front of documents, without what a tokenizer makes part of a document's first token."""
        whole, alone = self._encode(text + _SAMPLE[0], literals)[0], self._sample_document
        tokens = whole[: -len(alone)] if whole[-len(alone) :] == alone else self._encode(text, literals)[0]
        return tokens if tokens[:1] == [self.bos] else [*self._bos, *tokens]

    def _middle(self, text: str, literals: Mapping[str, str]) -> tuple[TokenIds, Sequence[int] | None]:
        """Tokens of a text that follows another."""
        tokens, starts = self._encode(_ANCHOR + text, literals)
        if starts is None or len(_ANCHOR) not in starts:
            return self._encode(text, literals)
        first = list(starts).index(len(_ANCHOR))
        return tokens[first:], [start - len(_ANCHOR) for start in starts[first:]]

    def _rendered(self, messages: Sequence[Message]) -> str:
        return render(self.tokenizer, messages, add_generation_prompt=True)

    # --- control tokens -----------------------------------------------------------------------------------------------

    @cached_property
    def _control(self) -> ControlTokens:
        written = self._written_by_template() if self.tokenizer.chat_template else ()
        return ControlTokens(self.tokenizer, written)

    def _written_by_template(self) -> tuple[str, ...]:
        """What the chat template writes around words, of every role that it takes; nothing where it refuses them."""
        words = unused_words([], 3)
        roles = zip(("system", "user", "assistant"), words, strict=True)
        system, user, assistant = ({"role": role, "content": content} for role, content in roles)
        for messages in ([system, user, assistant], [user, assistant], [user]):
            with suppress(ConfigError):
                return tuple(re.split("|".join(words), self._rendered(messages)))
        return ()

    def _with_marked_control(self, messages: Sequence[Message]) -> tuple[list[Message], dict[str, str]]:
        """Messages with unused words for control tokens, and what these words stand for."""
        spans = [self._control.spans(message["content"]) for message in messages]
        names, literals = iter(unused_words(messages, sum(map(len, spans)))), dict[str, str]()
        marked: list[Message] = []
        for message, found in zip(messages, spans, strict=True):
            content = message["content"]
            for start, stop in reversed(found):
                name = next(names)
                literals[name] = content[start:stop]
                content = content[:start] + name + content[stop:]
            marked.append({**message, "content": content} if found else message)
        return marked, literals

    # --- encoding -----------------------------------------------------------------------------------------------------

    def _encode(self, text: str, literals: Mapping[str, str] | None = None) -> tuple[TokenIds, Sequence[int] | None]:
        """Tokens, and the first character of each with the end; control tokens count, except in `literals`."""
        if not literals:
            return self._joined([text])
        names = re.compile(f"({'|'.join(map(re.escape, literals))})")
        pieces = [
            piece
            for part in names.split(text)
            for piece in (self._control.pieces(literals[part]) if part in literals else [part])
        ]
        return self._joined(pieces)

    def _as_text(self, text: str, front: str = "") -> tuple[TokenIds, Sequence[int] | None]:
        """Tokens, and the first character of each with the end; control tokens are text."""
        tokens, starts = self._joined(self._control.pieces(text), front)
        if not self._control.ids.isdisjoint(tokens):  # the tokenizer reads its control tokens in other spellings too
            tokens, starts = self._joined(list(text), front)
        return tokens, starts

    def _joined(self, pieces: Sequence[str], front: str = "") -> tuple[TokenIds, Sequence[int] | None]:
        """Pieces of one text; the first is encoded behind `front` (see `_front`), all others go on from it."""
        with naming_trouble():
            tokens, starts = self._joined_without_checks(pieces, front)
        require_known(tokens, self._vocabulary, self.tokenizer)
        return tokens, starts

    def _joined_without_checks(self, pieces: Sequence[str], front: str) -> tuple[TokenIds, Sequence[int] | None]:
        if not self.tokenizer.is_fast:
            encoded = [self.tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"] for piece in pieces]
            return [token for tokens in encoded for token in tokens], None
        token_ids: TokenIds = []
        starts, offset = array("L"), 0
        for piece in filter(None, pieces):
            first, *others = self._segments(piece)
            encoded = [self._behind(front, first), *self._segments_encoded.encoded(others, self._each)]
            for segment, (found, places) in zip((first, *others), encoded, strict=True):
                token_ids += found
                starts.extend([offset + place for place in places])
                offset += len(segment)
            front = _LINE if self._marks_beginnings else ""
        starts.append(offset)
        return token_ids, starts

    def _behind(self, front: str, text: str) -> Encoded:
        """Tokens of a text, and the first character of each, behind nothing, a blank that joins, or another text."""
        anchor = _ANCHOR if front == _LINE and text[0].isspace() else front
        found = self._called(anchor + text)
        tokens = [self._numbers.setdefault(token, token) for token in found["input_ids"]]
        places = [start - len(anchor) for start, _ in found["offset_mapping"]]
        if front != _LINE:
            return Encoded(tokens, [max(place, 0) for place in places])
        if 0 not in places:  # the two have joined
            return self._behind("", text)
        return Encoded(tokens[places.index(0) :], places[places.index(0) :])

    def _each(self, texts: list[str]) -> Iterator[Encoded]:
        """The texts, encoded together and each by itself."""
        found, number = self._called(texts), self._numbers.setdefault
        for tokens, places in zip(found["input_ids"], found["offset_mapping"], strict=True):
            yield Encoded(tuple(map(number, tokens, tokens)), array("L", [start for start, _ in places]))

    def _called(self, texts: str | list[str]) -> Mapping[str, Any]:
        given = {"add_special_tokens": False, "return_attention_mask": False, "return_offsets_mapping": True}
        return self.tokenizer(texts, **given, verbose=False)

    @cached_property
    def _marks_beginnings(self) -> bool:
        """Whether the tokenizer writes something in front of a text, such as the blank of SentencePiece."""
        fast, (text, _) = self.tokenizer.is_fast, _SAMPLE
        return bool(fast and self._behind("", text).token_ids != self._behind(_LINE, text).token_ids)

    def _with_characters(self, document: Document, front: str) -> TokenizedDocument:
        return TokenizedDocument(document, *self._as_text(document.text or "", front))

    # --- remembered documents -----------------------------------------------------------------------------------------

    def _recall(self, key: tuple[bytes, str]) -> TokenizedDocument | None:
        with self._lock:
            known = self._remembered.get(key)
            if known is not None:
                self._remembered.move_to_end(key)
            return known

    def _remember(self, key: tuple[bytes, str], tokens: TokenizedDocument) -> None:
        with self._lock:
            replaced = self._remembered.pop(key, ())
            self._remembered[key] = tokens
            self._remembered_tokens += len(tokens) - len(replaced)
            while self._remembered_tokens > _REMEMBERED_TOKENS:
                self._remembered_tokens -= len(self._remembered.popitem(last=False)[1])


def _template_writes_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    if not tokenizer.chat_template or tokenizer.bos_token is None:
        return False
    try:
        rendered = render(tokenizer, [{"role": "user", "content": "a"}], add_generation_prompt=True)
    except ConfigError:
        return False
    # ChatML models name the mark of every turn as their BOS (SmolLM2): it begins no text.
    return rendered.startswith(str(tokenizer.bos_token)) and rendered.count(str(tokenizer.bos_token)) == 1


def _unmarked(text: str, literals: Mapping[str, str]) -> str:
    for name, literal in literals.items():
        text = text.replace(name, literal)
    return text
