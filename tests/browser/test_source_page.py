"""The page of `focusllm ask --html` in Chromium: dark and light, by keyboard, read aloud, narrow, in print."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from focus_core.engine.source_page import source_page
from focus_core.engine.sources import ChunkLoss, Explanation, Source
from focus_core.text.documents import Document

pytestmark = pytest.mark.browser
if TYPE_CHECKING:
    from tests.browser.chromium import Chromium

TEXT = "The key is 48213. " + "Nothing else is of any importance here. " * 60
DOCUMENTS = [Document(TEXT, name="a letter.txt"), Document("Another text. " * 40, name="notes.txt")]
LOSSES = (9.5, 4.0, 1.0, 0.25)
FOUND = Explanation(
    sources=(
        Source(0, "a letter.txt", 0, 17, "The key is 48213.", 9.5, "sole", 0),
        Source(1, "notes.txt", 0, 13, "Another text.", 1.5, "needed", 3),
    ),
    supported=True,
    support=9.5,
    chunks=(
        ChunkLoss((0,), 0, 800, sum(LOSSES), LOSSES),
        ChunkLoss((0,), 800, 1600, 0.0, (0.0,) * 4),
        ChunkLoss((0,), 1600, len(TEXT), -0.001, (0.0, -0.001, 0.0, 0.0)),
        ChunkLoss((1,), 0, 560, 1.5, (0.0, 1.5, 0.0, 0.0)),
    ),
    pieces=("The", " key", " is", " 48213"),
    log_probs=(-0.1,) * 4,
)

# Colours as they are seen: over what lies behind them. A colour is [r, g, b, alpha].
COLOURS = """
const of = text => {
  const n = text.match(/[\\d.e-]+/g).map(Number), unit = text.startsWith('color(') ? 255 : 1;
  return [n[0] * unit, n[1] * unit, n[2] * unit, n.length > 3 ? n[3] : 1];
};
const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
const behind = element => {
  if (!element) return [255, 255, 255, 1];
  return over(of(getComputedStyle(element).backgroundColor), behind(element.parentElement));
};
const light = colour => {
  const linear = colour.slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * linear[0] + .7152 * linear[1] + .0722 * linear[2];
};
const contrast = (one, other) => {
  const [high, low] = [light(one), light(other)].sort((a, b) => b - a);
  return (high + .05) / (low + .05);
};
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    pytest.importorskip("PySide6.QtWebEngineWidgets", reason="`make test-browser` installs Chromium")
    from tests.browser.chromium import Chromium

    chromium = Chromium()
    yield chromium
    chromium.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(source_page("What is the key?", "The key is 48213.", DOCUMENTS, FOUND), encoding="utf-8")
    return path


def test_it_asks_for_nothing_and_has_no_faults(browser: Chromium, page: Path) -> None:
    browser.open(page)
    assert browser.run("return document.querySelector('h1').textContent") == "What is the key?"
    assert browser.complaints == []
    assert {address.split("#")[0] for address in browser.asked} == {page.as_uri()}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_stands_out_from_what_is_behind_it(browser: Chromium, page: Path, dark: bool) -> None:
    """WCAG 2.2, 1.4.3: a contrast of at least 4.5."""
    browser.open(page, dark=dark)
    assert browser.run(COLOURS + "return light(behind(document.body)) < .5") == dark
    lowest = browser.run(
        COLOURS
        + """
        const texts = [...document.querySelectorAll('main *')].filter(
          e => !e.closest('svg') && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()));
        const seen = e => over(of(getComputedStyle(e).color), behind(e));
        const found = texts.map(e => [contrast(seen(e), behind(e)), e.outerHTML]);
        return found.sort((one, other) => one[0] - other[0])[0];
        """
    )
    assert lowest[0] >= 4.5, lowest
    label = browser.run(
        COLOURS + "const text = document.querySelector('svg text');"
        "return contrast(of(getComputedStyle(text).fill), behind(document.body))"
    )
    assert label >= 4.5


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_shades_differ_in_lightness_and_not_in_hue_alone(browser: Chromium, page: Path, dark: bool) -> None:
    """Who sees no hue still sees which loss is larger."""
    browser.open(page, dark=dark)
    lights = browser.run(
        COLOURS + "return [...document.querySelector('tbody tr').querySelectorAll('td')].slice(1).map("
        "cell => light(behind(cell)))"
    )
    assert lights == sorted(lights, reverse=dark)
    assert len(set(lights)) == len(LOSSES)


def test_it_is_used_by_keyboard(browser: Chromium, page: Path) -> None:
    from PySide6.QtCore import Qt

    browser.open(page)
    visited = []
    for _ in range(3):
        browser.press(Qt.Key.Key_Tab)
        visited.append(
            browser.run(
                "const e = document.activeElement; const style = getComputedStyle(e);"
                "return [e.textContent.slice(0, 3), e.getAttribute('role'), style.outlineStyle]"
            )
        )
    assert [(text, role) for text, role, _ in visited[:2]] == [("[1]", None), ("[2]", None)]
    assert visited[2][1] == "region"
    assert all(outline == "solid" for _, _, outline in visited)
    browser.open(page)
    browser.press(Qt.Key.Key_Tab)
    browser.press(Qt.Key.Key_Return)
    assert browser.run("return location.hash") == "#source-1"


def test_what_a_screen_reader_is_told(browser: Chromium, page: Path) -> None:
    browser.open(page)
    told = browser.run("return [...document.querySelectorAll('main *')].map(e => [e.computedRole, e.computedName])")
    names = {role: [name for one, name in told if one == role] for role, _ in told}
    assert names["heading"][0] == "What is the key?"
    assert names["link"] == ["[1]", "[2]"]
    pictures = names.get("image", []) + names.get("img", [])
    assert pictures == ["a letter.txt: source 1 at 0 %", "notes.txt: source 2 at 0 %"]
    assert names["region"] == ["Losses of tokens by parts of the text"]
    assert names["table"] == ["Loss in log-probability (nats)."]
    assert len(names["columnheader"]) == 2 + len(LOSSES)
    assert names["rowheader"][0].startswith("1: a letter.txt")
    assert len(names["cell"]) == 4 * (1 + len(LOSSES))


def test_a_narrow_window_scrolls_only_its_table(browser: Chromium, page: Path) -> None:
    browser.open(page, width=360)
    assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.run("return document.querySelector('.scroll').clientWidth <= 360")


def test_it_is_printed(browser: Chromium, page: Path) -> None:
    pypdf = pytest.importorskip("pypdf")
    browser.open(page)
    printed = pypdf.PdfReader(io.BytesIO(browser.printed()))
    text = " ".join(" ".join(one.extract_text() for one in printed.pages).split())
    for part in ("What is the key?", "The key is 48213.", "a letter.txt, characters 0 to 17: 9.5 nats", "14.75"):
        assert part in text
