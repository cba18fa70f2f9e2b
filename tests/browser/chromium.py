"""A page in Chromium, without a screen: Qt's WebEngine, which comes as a wheel."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ["QTWEBENGINE_CHROMIUM_FLAGS"] = (
    # Of each element, what a screen reader is told.
    "--no-sandbox --disable-gpu --enable-blink-features=ComputedAccessibilityInfo"
)

from PySide6.QtCore import QEventLoop, Qt, QTimer, QUrl
from PySide6.QtTest import QTest
from PySide6.QtWebEngineCore import QWebEnginePage, QWebEngineProfile, QWebEngineUrlRequestInterceptor
from PySide6.QtWebEngineWidgets import QWebEngineView
from PySide6.QtWidgets import QApplication

_SECONDS = 30


class _Asked(QWebEngineUrlRequestInterceptor):
    """Notes every address that is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def interceptRequest(self, info: Any) -> None:  # noqa: N802  # Qt's name
        self.addresses.append(info.requestUrl().toString())


class _Page(QWebEnginePage):
    """Notes what Chromium complains of."""

    def __init__(self, profile: QWebEngineProfile) -> None:
        super().__init__(profile)
        self.complaints: list[str] = []

    def javaScriptConsoleMessage(self, level: Any, message: str, line: int, source: str) -> None:  # noqa: N802
        self.complaints.append(message)


class Chromium:
    """One page at a time."""

    def __init__(self) -> None:
        self._app = QApplication.instance() or QApplication([])
        self._profile, self._asked = QWebEngineProfile(), _Asked()  # keeps nothing
        self._profile.setUrlRequestInterceptor(self._asked)
        self._page, self._view = _Page(self._profile), QWebEngineView()
        self._view.setPage(self._page)

    @property
    def complaints(self) -> list[str]:
        return self._page.complaints

    @property
    def asked(self) -> list[str]:
        """Addresses."""
        return self._asked.addresses

    def open(self, path: Path, *, width: int = 1000, dark: bool = False) -> None:
        """Without a screen there is no dark desktop: the rules for one are told to hold always."""
        self._view.resize(width, 800)
        self._view.show()
        assert self._wait(self._page.loadFinished, lambda: self._page.load(QUrl.fromLocalFile(str(path))))
        self._view.setFocus()
        if dark:
            assert self.run(
                "return [...document.styleSheets].flatMap(sheet => [...sheet.cssRules])"
                ".filter(rule => rule.conditionText == '(prefers-color-scheme: dark)')"
                ".map(rule => rule.media.mediaText = 'all')"
            ) == ["all"]

    def run(self, script: str) -> Any:
        """The value of a function's body."""
        as_text = f"JSON.stringify((() => {{ {script} }})())"  # Qt hands no lists over
        return json.loads(self._result(lambda done: self._page.runJavaScript(as_text, 0, done)) or "null")

    def press(self, key: Qt.Key) -> None:
        QTest.keyClick(self._view.focusProxy(), key)
        QTest.qWait(100)

    def printed(self) -> bytes:
        """As PDF."""
        return bytes(self._result(lambda done: self._page.printToPdf(done)).data())

    def close(self) -> None:
        self._view.close()
        self._view.deleteLater()
        self._page.deleteLater()
        QTest.qWait(50)  # the page has to go before its profile

    def _result(self, start: Callable[[Callable[[Any], None]], None]) -> Any:
        found: list[Any] = []
        loop = QEventLoop()

        def done(value: Any) -> None:
            found.append(value)
            loop.quit()

        start(done)
        self._run(loop, lambda: bool(found))
        return found[0]

    def _wait(self, signal: Any, start: Callable[[], None]) -> Any:
        return self._result(lambda done: (signal.connect(done), start()))

    def _run(self, loop: QEventLoop, is_done: Callable[[], bool]) -> None:
        QTimer.singleShot(_SECONDS * 1000, loop.quit)
        if not is_done():
            loop.exec()
        assert is_done(), f"Chromium did not answer within {_SECONDS} seconds"
