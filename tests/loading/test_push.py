"""Putting an adapter on the hub: what is sent, and what is refused before anything is."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError

from focus_core import AdapterError
from focus_core.loading import hub as hub_module
from focus_core.loading.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, push_adapter
from tests.cli.conftest import Focusllm
from tests.cli.conftest import focusllm as focusllm


class Hub:
    """Takes the place of `HfApi`; keeps what it is sent."""

    def __init__(self) -> None:
        self.made: dict[str, bool] = {}
        self.files: dict[str, set[str]] = {}
        self.error: Exception | None = None

    def __call__(self) -> Hub:
        return self

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> str:
        if self.error is not None:
            raise self.error
        assert exist_ok
        self.made[repo_id] = private
        return f"https://hub/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, allow_patterns: Sequence[str], **rest: Any) -> None:
        names = {path.name for path in folder_path.iterdir()}
        self.files[repo_id] = {name for name in names if any(fnmatch(name, pattern) for pattern in allow_patterns)}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setattr(hub_module, "HfApi", made)
    return made


def test_the_adapter_and_its_card_are_sent_and_nothing_else(adapter: Path, hub: Hub) -> None:
    (adapter / "README.md").write_text("# An adapter")
    (adapter / "checkpoint.pt").write_text("private")
    assert push_adapter(adapter, "me/otter", private=True) == "https://hub/me/otter"
    assert hub.made == {"me/otter": True}
    assert hub.files == {"me/otter": {ADAPTER_CONFIG, ADAPTER_WEIGHTS, "README.md"}}


def test_what_is_no_adapter_is_not_sent(adapter: Path, hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="there is no such folder"):
        push_adapter(tmp_path / "nowhere", "me/otter")
    with pytest.raises(AdapterError, match="is no hub id: write user/name"):
        push_adapter(adapter, "otter")
    (adapter / ADAPTER_WEIGHTS).write_bytes((adapter / ADAPTER_WEIGHTS).read_bytes()[:-10])
    with pytest.raises(AdapterError, match="damaged or cut short"):
        push_adapter(adapter, "me/otter")
    (adapter / ADAPTER_CONFIG).unlink()
    with pytest.raises(AdapterError, match="not an adapter of FocusLLM"):
        push_adapter(adapter, "me/otter")
    assert not hub.made


@pytest.mark.parametrize(
    "error",
    [
        LocalTokenNotFoundError("no token"),
        HFValidationError("bad name"),
        ConnectionError("no network"),
        type("ConnectError", (Exception,), {"__module__": "httpx._exceptions"})("nobody answers"),
    ],
)
def test_what_the_hub_refuses_is_said_with_a_way_out(adapter: Path, hub: Hub, error: Exception) -> None:
    hub.error = error
    with pytest.raises(AdapterError, match=f"as 'me/otter': {error}.*hf auth login"):
        push_adapter(adapter, "me/otter")


def test_the_command_prints_the_address(adapter: Path, hub: Hub, focusllm: Focusllm) -> None:
    result = focusllm("push", adapter, "me/otter")
    assert (result.exit_code, result.stdout.strip()) == (0, "https://hub/me/otter")
    assert hub.made == {"me/otter": False}
    refused = focusllm("push", adapter / "nowhere", "me/otter")
    assert refused.exit_code == 1
    assert "no such folder" in refused.stderr
