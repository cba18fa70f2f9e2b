"""Files as text: encodings, PDF, folders, and what is refused."""

from __future__ import annotations

import os
import sys
import textwrap
from codecs import BOM_UTF8
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pypdf import PageObject, PdfWriter

from focus_core.errors import DocumentError
from focus_core.text.documents import Document
from focus_core.text.files import decode_text, read_file, read_folder
from tests.text.pdfs import pdf_with

FRENCH = "Le contrat a été signé à Genève ; les frais, déjà élevés, seront répartis dès la première année. "
PROSE = "The contract was signed in the harbour, and the costs were shared by the two towns behind it. "
SPANISH = "El niño comió piñas en la montaña, según su compañero José. "
GERMAN = "Der Vertrag wurde von Jürgen Groß in Köln unterschrieben, die Übergabe erfolgt später. "
POLISH = "Umowa została podpisana w Łodzi przez Łukasza Wójcika; koszty będą dzielone między wspólników. "
CZECH = "Smlouva byla podepsána v Brně a všechny náklady budou rozděleny mezi společníky. "
RUSSIAN = "Привет, мир. Договор подписал Иван Петров в Москве. "
JAPANESE = "これは日本語の文書です。契約書は東京で署名されました。"


# --- encodings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        *((text, "utf-8") for text in (FRENCH, RUSSIAN, JAPANESE)),
        *((text, "utf-8-sig") for text in (FRENCH, JAPANESE)),
        *((text, "utf-16") for text in (FRENCH, JAPANESE)),
        (FRENCH, "utf-32"),
        *((text, "latin-1") for text in (FRENCH, SPANISH, GERMAN)),
        ("吾輩は猫である。名前はまだ無い。\n" * 20, "iso2022_jp"),
        ("The contract says “no” – it’s over. He paid 30 € at the café… " * 3, "cp1252"),
        (POLISH, "cp1250"),
        (CZECH, "cp1250"),
        (RUSSIAN, "cp1251"),
        (RUSSIAN, "koi8-r"),
        (JAPANESE, "shift_jis"),
    ],
    ids=lambda value: value[:12],
)
def test_encodings(text: str, encoding: str) -> None:
    assert decode_text(text.encode(encoding), name="x") == text


@pytest.mark.parametrize(
    "text", ["Café", "naïve façade", "It costs £30.", FRENCH * 50, "A plain text. " * 200 + "José"]
)
def test_western_texts_of_any_length(text: str) -> None:
    """Left to itself, charset_normalizer reads "crème" as "crčme", and a lone "Café" as Chinese."""
    assert decode_text(text.encode("latin-1"), name="x") == text


def test_a_few_stray_bytes_do_not_spoil_utf8() -> None:
    """Logs and old archives mix encodings; neither refuse them nor turn every é into Ã©."""
    text = FRENCH * 20
    mixed = text.encode() + "café".encode("latin-1") + b" \xbd " + text.encode()
    assert decode_text(mixed, name="x") == text + "café ½ " + text


def test_line_ends_and_tabs_stay() -> None:
    assert decode_text(b"a\r\nb\tc\n", name="x") == "a\r\nb\tc\n"


@pytest.mark.parametrize(
    "raw",
    [
        bytes(range(256)) * 8,
        b"\x7fELF\x02\x01\x01\0\0\0" * 20,
        b"text with a \0 in it",
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" * 9,
        b"\x1f\x8b\x08\x01\x02\x03\x04\x05\x06\x07" * 50,
    ],
    ids=["all bytes", "program", "zero byte", "picture", "compressed"],
)
def test_binary_is_refused(raw: bytes) -> None:
    with pytest.raises(DocumentError, match=r"^x: a binary file"):
        decode_text(raw, name="x")


# --- files ------------------------------------------------------------------------------------------------------------


def test_reads_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(GERMAN.encode("latin-1"))
    assert read_file(path) == read_file(str(path)) == GERMAN


@pytest.mark.parametrize("content", [b"", b" \n\t\n", b"\xef\xbb\xbf"], ids=["empty", "blank", "only a BOM"])
def test_a_file_without_text(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(DocumentError, match=r"a\.txt: holds no text"):
        read_file(path)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="there is no such file"):
        read_file(tmp_path / "a.txt")


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="cannot be read"):
        read_file(tmp_path)


# --- PDF --------------------------------------------------------------------------------------------------------------


def test_pdf(tmp_path: Path) -> None:
    """Known by its first bytes, whatever it is called."""
    path = tmp_path / "contract"
    path.write_bytes(pdf_with("The pass key is 71402."))
    assert read_file(path).strip() == "The pass key is 71402."


def test_a_form_feed_stands_between_the_pages_of_a_pdf(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf_with("The first page.", "", "The third page.\nIts second line."))
    document = Document(read_file(path))
    assert document.text is not None
    assert [page.strip() for page in document.text.split("\f")] == [
        "The first page.",
        "",
        "The third page.\nIts second line.",
    ]
    where = {word: document.page_at(document.text.index(word)) for word in ("first", "third", "second")}
    assert where == {"first": 1, "third": 3, "second": 3}
    assert Document("No pages.").page_at(0) is None


def test_lines_of_prose_in_a_pdf_are_put_together(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    prose = (PROSE * 3).strip()
    path.write_bytes(pdf_with("\n".join(["A HEADING", *textwrap.wrap(prose, 60), "Item 1", "Item 2"])))
    assert read_file(path).strip() == f"A HEADING\n{prose}\nItem 1\nItem 2"


def test_pdf_of_pictures(tmp_path: Path) -> None:
    writer = PdfWriter()
    writer.add_blank_page(612, 792)
    writer.write(path := tmp_path / "scan.pdf")
    with pytest.raises(DocumentError, match="OCR"):
        read_file(path)


def test_a_pdf_with_half_a_character(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine would refuse the text without a word on which file it came from; pairs of halves are one character."""
    monkeypatch.setattr(PageObject, "extract_text", lambda page: "half \ud83d, whole \ud83d\ude00")
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf_with("text"))
    assert read_file(path) == "half \ufffd, whole \U0001f600"


def test_damaged_pdf(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf_with("text")[:200])
    with pytest.raises(DocumentError, match=r"a\.pdf: the PDF is damaged or locked"):
        read_file(path)


def test_locked_pdf(tmp_path: Path) -> None:
    writer = PdfWriter(clone_from=BytesIO(pdf_with("secret")))
    writer.encrypt("password", algorithm="RC4-128")
    writer.write(path := tmp_path / "a.pdf")
    with pytest.raises(DocumentError, match="damaged or locked"):
        read_file(path)


def test_pdf_without_pypdf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pypdf", None)
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf_with("text"))
    with pytest.raises(DocumentError, match=r"pip install 'focusllm\[pdf\]'"):
        read_file(path)


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.txt", "a.md", "sub/c.py", "Z.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"This is {name}.")
    for name in (".hidden", ".git/config", "sub/.secret"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("not for reading")
    (tmp_path / "picture.png").write_text("binary by its name")
    (tmp_path / "sub" / "data").write_bytes(b"\0\1\2" * 9)
    (tmp_path / "sub" / "nothing.txt").write_text(" ")
    return tmp_path


def names(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path, _ in read_folder(folder)]


def test_folder_in_the_order_of_paths(folder: Path) -> None:
    """The same order on every machine, or the same question would be another one."""
    assert names(folder) == ["Z.txt", "a.md", "b.txt", "sub/c.py"]
    assert dict(read_folder(folder))[folder / "sub" / "c.py"] == "This is sub/c.py."


def test_a_hidden_folder_may_be_named(folder: Path) -> None:
    """Only what is hidden below the folder is passed over."""
    (folder / ".notes").mkdir()
    (folder / ".notes" / "a.txt").write_text("for reading")
    assert names(folder / ".notes") == ["a.txt"]


def test_folder_tells_what_it_could_not_read(folder: Path) -> None:
    passed_over: list[DocumentError] = []
    assert len(list(read_folder(str(folder), passed_over=passed_over.append))) == 4
    assert [str(error).split(":")[0] for error in passed_over] == [
        str(folder / "sub" / name) for name in ("data", "nothing.txt")
    ]


def test_a_folder_that_cannot_be_read_is_told_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in it would be missing from the answer without a word."""
    scandir = os.scandir

    def locked(path: str) -> Any:
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    told: list[str] = []
    assert len(list(read_folder(folder, passed_over=lambda error: told.append(str(error))))) == 3
    assert told == [f"{folder / 'sub'}: a folder that cannot be read (Permission denied)."]


def test_pipes_and_broken_links_do_not_stop_a_folder(folder: Path) -> None:
    """Reading a pipe would wait for ever."""
    os.mkfifo(folder / "pipe.txt")
    (folder / "gone.txt").symlink_to("nowhere")
    told: list[str] = []
    assert len(list(read_folder(folder, passed_over=lambda error: told.append(str(error))))) == 4
    assert told[0] == f"{folder / 'gone.txt'}: there is no such file."


def test_folder_without_text(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="no text files below this folder"):
        list(read_folder(tmp_path))


def test_no_folder(tmp_path: Path) -> None:
    """A slip of the pen would look like a folder without text."""
    (tmp_path / "a.txt").write_text("text")
    for name in ("missing", "a.txt"):
        with pytest.raises(DocumentError, match="there is no such folder"):
            list(read_folder(tmp_path / name))


def test_office_documents_and_linked_folders_are_told_of(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "texts", tmp_path / "elsewhere"
    for made in (folder, elsewhere):
        made.mkdir()
        (made / "a.txt").write_text("text")
    (folder / "contract.docx").write_bytes(b"PK\x03\x04 and so on")
    (folder / "old.doc").write_bytes(b"\xd0\xcf\x11\xe0 and so on")
    (folder / "plain.doc").write_text("a text, whatever its name")
    (folder / "link").symlink_to(elsewhere)
    told: list[str] = []
    found = [path.name for path, _ in read_folder(folder, passed_over=lambda error: told.append(str(error)))]
    assert found == ["a.txt", "plain.doc"]
    assert [Path(message.split(":")[0]).name for message in told] == ["contract.docx", "link", "old.doc"]
    with pytest.raises(DocumentError, match=r"contract\.docx: office documents, .* Save it as PDF"):
        read_file(folder / "contract.docx")


def test_a_mark_of_utf8_is_no_text_among_stray_bytes() -> None:
    raw = BOM_UTF8 + "äöü äöü ".encode() + b"\xe4"
    assert decode_text(raw, name="file") == "äöü äöü ä"


def test_zero_bytes_anywhere_are_binary() -> None:
    with pytest.raises(DocumentError, match="zero bytes"):
        decode_text("äöü".encode() * 20000 + b"\xe4\0", name="file")
