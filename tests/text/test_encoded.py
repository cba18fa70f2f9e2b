"""Segments are encoded once, and forgotten before they take too much memory."""

from __future__ import annotations

import pytest

from focus_core.text import encoded as encoded_module
from focus_core.text.encoded import Encoded, EncodedSegments


class _Encoder:
    """Notes what it is called with."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, segments: list[str]) -> list[Encoded]:
        self.calls.append(segments)
        return [Encoded((len(segment),), (0,)) for segment in segments]


def test_segments_are_encoded_together_and_each_once() -> None:
    segments, encode = EncodedSegments(), _Encoder()
    found = segments.encoded(["a", "bb", "a"], encode)
    assert [encoded.token_ids for encoded in found] == [(1,), (2,), (1,)]
    assert [encoded.token_ids for encoded in segments.encoded(["ccc", "bb"], encode)] == [(3,), (2,)]
    assert segments.encoded(["a"], encode) == found[:1]
    assert segments.encoded([], encode) == []
    assert encode.calls == [["a", "bb"], ["ccc"]]


def test_segments_are_remembered_up_to_a_number_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory would grow with every text that was ever asked about; what is used stays."""
    monkeypatch.setattr(encoded_module, "_REMEMBERED_BYTES", 20_000)
    segments, encode = EncodedSegments(), _Encoder()
    for number in range(200):
        segments.encoded(["used again and again", f"segment {number}"], encode)
    assert sum(call.count("used again and again") for call in encode.calls) == 1
    assert 10 < len(segments._known) < 20_000 / encoded_module._BYTES_OF_AN_ENTRY
    assert segments._bytes == sum(encoded_module._bytes_of(*known) for known in segments._known.items()) <= 20_000


def test_a_text_of_more_bytes_is_encoded_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded_module, "_REMEMBERED_BYTES", 1000)
    segments = EncodedSegments()
    found = segments.encoded([f"{number}" for number in range(100)], _Encoder())
    assert [encoded.token_ids for encoded in found] == [(len(f"{number}"),) for number in range(100)]
    assert len(segments._known) < 4
