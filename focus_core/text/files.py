"""Files and folders read as text: encodings, PDF, binary files refused."""

from __future__ import annotations

import os
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from stat import S_ISREG

from charset_normalizer import from_bytes

from focus_core.errors import DocumentError
from focus_core.text.documents import PAGE_BREAK
from focus_core.text.sentences import joined_lines

_BINARY_SUFFIXES = frozenset(
    ".bin .bz2 .class .dll .exe .gif .gz .ico .jar .jpeg .jpg .mp3 .mp4 .npy .npz .png .pt .pyc "
    ".safetensors .so .sqlite .tar .tgz .wav .webp .whl .xz .zip".split()
)
_LONGEST_NAME = 200  # characters of a path that a message shows
_OFFICE = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0", b"{\\rtf")  # how files of office programs and e-books begin
# Their texts look alike in many encodings; Windows-1252, which contains Latin-1, is the one they are found in.
_WESTERN = frozenset("Danish Dutch English Finnish French German Italian Norwegian Portuguese Spanish Swedish".split())
_JAPANESE = b"\x1b$"  # how ISO-2022-JP shifts to another character set
_STRAY = re.compile("[\udc80-\udcff]")  # how `surrogateescape` shows a byte that is not UTF-8
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")


def read_file(path: str | Path) -> str:
    """The text of a file in whatever encoding it has; PDF with the extra `pdf`.

    Of a PDF the lines of its prose are put together, and a form feed stands between its pages.

    Raises:
        DocumentError: no such file, not readable, binary, or without text
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise DocumentError(f"{path}: there is no such file.") from error
    except (OSError, ValueError) as error:  # too long for a name, say: a text where its file is meant
        reason = error.strerror if isinstance(error, OSError) else error
        raise DocumentError(f"{_shortened(path)}: cannot be read ({reason}).") from error
    return document_text(raw, name=str(path))


def _shortened(path: Path) -> str:
    name = str(path)
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def document_text(raw: bytes, *, name: str) -> str:
    """The text of a document's bytes, as `read_file` reads it; `name` is for messages.

    Raises:
        DocumentError: binary, or without text
    """
    if raw.startswith(_OFFICE):
        raise DocumentError(f"{name}: office documents, e-books and archives are not read. Save it as PDF or as text.")
    is_pdf = raw.startswith(b"%PDF-")
    text = _pdf_text(raw, name) if is_pdf else decode_text(raw, name=name)
    if not text.strip():
        hint = " A scanned PDF holds pictures of text only; run OCR on it first." if is_pdf else ""
        raise DocumentError(f"{name}: holds no text.{hint}")
    return text


def read_folder(
    folder: str | Path, *, passed_over: Callable[[DocumentError], None] | None = None
) -> Iterator[tuple[Path, str]]:
    """Every readable text file below a folder, in the order of their paths; hidden and binary files are passed over.

    Args:
        passed_over: told about a file that could have been text and could not be read, and about links to folders

    Raises:
        DocumentError: there is no such folder, or nothing to read below it
    """
    if not Path(folder).is_dir():
        raise DocumentError(f"{folder}: there is no such folder.")
    found = False
    tell = passed_over or (lambda error: None)
    for path in _below(Path(folder), tell):
        try:
            if path.is_dir():
                raise DocumentError(f"{path}: a link to another folder is not followed. Name that folder.")
            text = read_file(path)
        except DocumentError as error:
            tell(error)
            continue
        found = True
        yield path, text
    if not found:
        raise DocumentError(f"{folder}: no text files below this folder.")


def _below(folder: Path, tell: Callable[[DocumentError], None]) -> list[Path]:
    """Files that may be text and links to folders, in the order of their paths; nothing hidden."""

    def unreadable(error: OSError) -> None:
        tell(DocumentError(f"{error.filename}: a folder that cannot be read ({error.strerror})."))

    found: list[Path] = []
    for name, below, files in os.walk(folder, onerror=unreadable):
        below[:] = [part for part in below if not part.startswith(".")]
        found += (path for path in (Path(name, part) for part in below) if path.is_symlink())
        paths = (Path(name, part) for part in files if not part.startswith("."))
        found += (path for path in paths if path.suffix.lower() not in _BINARY_SUFFIXES and _holds_bytes(path))
    return sorted(found)


def _holds_bytes(path: Path) -> bool:
    """No pipe, socket or device. A file that cannot be examined counts, and reading it gives the error."""
    try:
        return S_ISREG(path.stat().st_mode)
    except OSError:
        return True


def decode_text(raw: bytes, *, name: str) -> str:
    """Bytes as text: UTF-8 if they are, else the most likely encoding.

    Raises:
        DocumentError: binary content, or no encoding fits
    """
    if _JAPANESE in raw:  # all ASCII, so that UTF-8 would take it as it is
        with suppress(UnicodeDecodeError):
            return raw.decode("iso2022_jp_2")
    try:
        return _refuse_binary(raw.decode("utf-8-sig"), name)
    except UnicodeDecodeError:
        text = None if _looks_binary(raw) else _mostly_utf8(raw.removeprefix(BOM_UTF8)) or _most_likely_text(raw)
        if text is None:
            raise DocumentError(f"{name}: a binary file, not text in an encoding that could be recognised.") from None
        return _refuse_binary(text, name)


def _mostly_utf8(raw: bytes) -> str | None:
    """UTF-8 with a few stray bytes among it, each read as Windows-1252; `None` where the stray ones are the rule."""
    text = raw.decode("utf-8", errors="surrogateescape")
    stray = len(_STRAY.findall(text))
    valid = len(_NOT_ASCII.findall(text)) - stray
    if stray >= valid:
        return None
    return _STRAY.sub(lambda byte: byte[0].encode(errors="surrogateescape").decode("cp1252", errors="replace"), text)


def _most_likely_text(raw: bytes) -> str | None:
    matches = from_bytes(raw)
    best = matches.best()
    if best is None:
        return None
    western = next((match for match in matches if "cp1252" in match.could_be_from_charset), None)
    unsure = not best.coherence or best.language in _WESTERN
    return str(western if western is not None and unsure and western.coherence >= best.coherence else best)


def _refuse_binary(text: str, name: str) -> str:
    if "\0" in text:
        raise DocumentError(f"{name}: a binary file (it holds zero bytes).")
    return text


def _looks_binary(raw: bytes) -> bool:
    """Zero bytes outside of UTF-16 and UTF-32, or many control characters."""
    sample = raw[:65536]
    if sample[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return False
    control = sum(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in sample)
    return b"\0" in sample or control > len(sample) // 50


def _pdf_text(raw: bytes, name: str) -> str:
    try:
        from pypdf import PdfReader
    except ImportError as error:
        raise DocumentError(f"{name}: reading PDF needs an extra. Install it: pip install 'focusllm[pdf]'") from error
    try:
        pages = (joined_lines(page.extract_text().replace(PAGE_BREAK, "\n")) for page in PdfReader(BytesIO(raw)).pages)
        text = f"\n{PAGE_BREAK}\n".join(pages)  # also the end of a paragraph
    except Exception as error:  # a broken PDF breaks pypdf in many ways
        raise DocumentError(f"{name}: the PDF is damaged or locked ({error}).") from error
    # pypdf lets halves of characters through, of which no tokenizer can make anything
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
