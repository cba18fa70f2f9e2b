"""`focusllm ask --sources` and `--html`: what is printed, and a page that needs nothing else."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from focus_core.engine.source_page import source_page
from focus_core.engine.sources import ChunkLoss, Explanation, Source
from focus_core.text.documents import Document
from tests.cli.conftest import Focusllm

QUESTION = "What is the key?"
TEXT = "The key is 48213. " * 20
_VOID = {"meta", "rect"}


class _Page(HTMLParser):
    """What a parser finds: tags in order, attributes, text; a tag that is not closed is an error."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        closes_itself = tag in _VOID and (self.get_starttag_text() or "").endswith("/>")
        if tag != "meta" and not closes_itself:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


DOCUMENTS = [Document("The key is 7. " + "x" * 86, name='<a> & "b"'), Document("y" * 50)]
FOUND = Explanation(
    sources=(Source(0, '<a> & "b"', 0, 13, "The key is 7.", 9.5, "sole", 0, page=4),),
    supported=True,
    support=9.5,
    chunks=(ChunkLoss((0,), 0, 60, 9.5, (0.5, 9.0)), ChunkLoss((0,), 60, 100, -0.001, (0.0, -0.001)),
            ChunkLoss((1,), 0, 50, 0.0, (0.0, 0.0))),
    pieces=("It is", " 7<"),
    log_probs=(-0.1, -0.1),
)  # fmt: skip


@pytest.fixture
def page() -> _Page:
    return _Page(source_page("What <is> it?", "It is 7.", DOCUMENTS, FOUND))


def test_the_page_needs_nothing_else(page: _Page) -> None:
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.found}
    assert all((attributes["href"] or "").startswith("#") for attributes in page.all("a"))
    targets = {attributes.get("id") for _, attributes in page.found}
    assert {(attributes["href"] or "")[1:] for attributes in page.all("a")} <= targets
    assert any("default-src 'none'" in (attributes.get("content") or "") for attributes in page.all("meta"))


def test_the_page_is_read_aloud_and_by_keyboard(page: _Page) -> None:
    assert page.all("html") == [{"lang": "en"}]
    assert all(attributes.get("role") == "img" and attributes.get("aria-label") for attributes in page.all("svg"))
    assert all(attributes.get("scope") in ("row", "col") for attributes in page.all("th"))
    (region,) = (attributes for attributes in page.all("div") if attributes.get("role") == "region")
    assert region["tabindex"] == "0"
    assert region["aria-label"]
    assert page.all("caption")


def test_no_colour_stands_without_its_number(page: _Page) -> None:
    assert len(page.all("td")) == 3 * 3
    assert "9.50" in page.text
    assert "-0.00" not in page.text
    assert len(page.all("title")) == 1 + 3
    widths = [float(attributes["width"] or 0) for attributes in page.all("rect") if attributes["class"] == "loss"]
    assert widths == [600.0, 400.0, 1000.0]
    opacities = [attributes["fill-opacity"] for attributes in page.all("rect") if attributes["class"] == "loss"]
    assert opacities == ["1.00", "0.00", "0.00"]


def test_what_texts_say_is_text(page: _Page) -> None:
    assert "What <is> it?" in page.text
    assert '<a> & "b", page 4, characters 0 to 13: 9.5 nats' in page.text
    assert " 7<" in page.text


def test_only_the_highest_rows_of_a_long_document_are_shown() -> None:
    chunks = tuple(ChunkLoss((0,), 2 * n, 2 * n + 2, float(n), (float(n),)) for n in range(30))
    page = _Page(
        source_page("?", "!", [Document("z" * 60)], Explanation(chunks=chunks, pieces=("!",), supported=False))
    )
    assert len(page.all("td")) == 20 * 2
    assert "Of 30 parts the 20" in page.text
    assert "No passage was found" in page.text


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text(TEXT)
    return path


def test_sources_are_printed_after_the_answer(ask: Focusllm, document: Path) -> None:
    plain, with_sources = ask("-d", document, QUESTION), ask("-d", document, "--sources", QUESTION)
    assert with_sources.exit_code == 0, with_sources.output
    assert with_sources.stdout.startswith(plain.stdout)
    *_, last = with_sources.stdout.strip().splitlines()
    assert re.match(r"(Supported|Not supported) by the text: \d+\.\d\d nats .* explain \d+% of the answer\.", last)


def test_json_has_sources_with_characters(ask: Focusllm, document: Path) -> None:
    found = json.loads(ask("-d", document, "--sources", "--json", QUESTION).stdout)
    assert isinstance(found["supported"], bool)
    assert 0 <= found["explained"] <= 1
    for source in found["sources"]:
        assert source["name"] == str(document)
        assert TEXT[source["start"] : source["end"]] == source["excerpt"]


def test_html_writes_a_page(ask: Focusllm, document: Path, tmp_path: Path) -> None:
    result = ask("-d", document, "--html", tmp_path / "report.html", QUESTION)
    assert result.exit_code == 0, result.output
    assert result.stdout == ask("-d", document, QUESTION).stdout
    page = _Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert QUESTION in page.text
    assert str(document) in page.text


def test_without_documents_there_are_no_sources(ask: Focusllm) -> None:
    result = ask("--sources", QUESTION)
    assert "no documents" in result.stdout


@pytest.mark.parametrize(("name", "reason"), [("no/report.html", "there is no folder"), (".", "it is a folder")])
def test_a_page_that_cannot_be_written_is_refused_before_the_answer(
    ask: Focusllm, document: Path, tmp_path: Path, name: str, reason: str
) -> None:
    result = ask("-d", document, "--html", tmp_path / name, QUESTION)
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"cannot be written ({reason}" in result.stderr
