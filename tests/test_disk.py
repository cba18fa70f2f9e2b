"""A file is replaced whole or not at all."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from focus_core.disk import replace_file


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    """A full disk would leave half an adapter where a whole one was."""
    path = tmp_path / "file"
    path.write_text("old")

    def fail(to: Path) -> None:
        to.write_text("ne")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        replace_file(path, fail)
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("file", "old")]
    replace_file(path, lambda to: to.write_text("new"))
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("file", "new")]


def test_two_writers_do_not_mix_their_contents(tmp_path: Path) -> None:
    """With one temporary name the second would write into the file that the first is about to rename."""
    path, both = tmp_path / "file", threading.Barrier(2)

    def write(text: str) -> None:
        def halves(to: Path) -> None:
            with to.open("w") as file:
                file.write(text)
                file.flush()
                both.wait(5)
                file.write(text)

        replace_file(path, halves)

    threads = [threading.Thread(target=write, args=(text,)) for text in ("aa", "bb")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in ("aaaa", "bbbb")
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_a_file_may_be_read_by_those_who_may_read_any_new_file(tmp_path: Path) -> None:
    """Some libraries write for the owner alone: an adapter in a shared folder was of no use to others."""

    def private(to: Path) -> None:
        to.unlink()
        to.touch(mode=0o600)

    before = os.umask(0o022)
    try:
        replace_file(tmp_path / "file", private)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644
    (tmp_path / "file").chmod(0o600)
    replace_file(tmp_path / "file", lambda to: to.write_text("secret"))
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
