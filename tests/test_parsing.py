"""JSON and TOML of strangers: what is wrong with them is one kind of error, in every place that reads them."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from focus_core import AdapterError, ConfigError, FocusConfig
from focus_core.errors import FocusError
from focus_core.loading.adapters import ADAPTER_CONFIG, adapter_settings
from focus_core.loading.authors import authors_projections, authors_settings
from focus_core.loading.models import load_model
from focus_core.loading.peek import settings_on_disk
from focus_core.parsing import parse_json, parse_toml
from focus_core.training.config import TrainingConfig
from focus_core.training.records import read_records

BAD_JSON = {
    "list in lists": "[" * 100_000,
    "object in objects": '{"a":' * 100_000,
    "digits": "9" * 5000,
    "no JSON": "nonsense",
    "empty": "",
    "list": "[1]",
    "nothing": "null",
}
BAD_TOML = {
    "list in lists": "a = " + "[" * 30_000,
    "long": "a = 1 #" + " " * 100_000,
    "key in keys": "[" + "a." * 31_000 + "b]",
    "digits": "a = " + "9" * 5000,
    "no TOML": "nonsense",
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_json_that_cannot_be_read_is_named_everywhere(name: str, model_folder: Path, tmp_path: Path) -> None:
    text, where = BAD_JSON[name], tmp_path / "data.jsonl"
    where.write_text('{"text": "a b c d"}\n' + (text or "{"))
    with pytest.raises(ConfigError, match=r"data\.jsonl, line 2: (not JSON|must be a JSON object)"):
        read_records(where)
    adapter = Path(shutil.copytree(model_folder / "adapter", tmp_path / "adapter"))
    (adapter / ADAPTER_CONFIG).write_text(text)
    with pytest.raises(AdapterError, match=f"{ADAPTER_CONFIG} is (damaged|no JSON object)"):
        adapter_settings(adapter)
    model = load_model(model_folder, device="cpu").model
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(AdapterError, match=r"config\.json is (damaged|no JSON object)"):
        authors_projections(tmp_path, model)
    assert settings_on_disk(tmp_path, None, FocusConfig()) is None


@pytest.mark.parametrize("name", BAD_TOML)
def test_toml_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "train.toml"
    path.write_text('output = "o"\n' + BAD_TOML[name])
    began = time.thread_time()
    with pytest.raises(ConfigError, match=r"train\.toml(: unknown key| is not TOML)"):
        TrainingConfig.from_toml(path)
    assert time.thread_time() - began < 5


def test_what_is_right_is_read() -> None:
    assert parse_json('{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
    assert parse_toml("[a]\nb = 1") == {"a": {"b": 1}}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"learning_rate": 10**400}, r"learning_rate=10{59}…: must be a number, and finite"),
        ({"learning_rate": float("inf")}, r"learning_rate=inf: must be a number, and finite"),
        ({"learning_rate": float("nan")}, r"learning_rate=nan: must be a number, and finite"),
        ({"learning_rate": "a"}, r"learning_rate='a': must be a number"),
        ({"objectives": {"answering": float("inf")}}, r"objectives: answering=inf: must be a number, and finite"),
        ({"objectives": {"answering": 1e308, "continuation": 1e308}}, r"answering=1e\+308: must lie between 0"),
        ({"objectives": {"answering": 10**400}}, r"answering=10{59}…: must be a number, and finite"),
        ({"objectives": {"answering": True}}, r"answering=True: must be a number"),
        ({"steps": 10**400}, r"steps=10{59}…: must be a whole number below"),
        ({"chunk_sizes": (10**5000,)}, r"chunk_sizes=a number of very many digits: must be whole numbers below"),
    ],
)
def test_training_settings_are_numbers_that_can_be_computed_with(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        TrainingConfig(Path("out"), **settings)


@pytest.mark.parametrize("name", ["chunk_size", "window", "plain_up_to"])
def test_a_size_of_very_many_digits_is_refused(name: str) -> None:
    """Python does not even write it into a message."""
    with pytest.raises(ConfigError, match=f"{name}=a number of very many digits: must be a whole number of at most 19"):
        FocusConfig(**{name: 10**5000})  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["a\0b", "a" * 5000])
def test_a_name_that_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(FocusError, match=r"cannot be|is not TOML"):
        TrainingConfig.from_toml(path)
    with pytest.raises(FocusError, match="cannot be"):
        read_records(path)
    TrainingConfig.from_dict({"output": "o", "model": path})  # which is refused when it is loaded


@pytest.mark.parametrize("stride", [[], None, "a", ["a"], 0, 10**400])
def test_a_chunk_size_of_the_authors_that_cannot_be_is_refused(stride: object) -> None:
    with pytest.raises(ConfigError, match=r"memory_stride|chunk_size"):
        authors_settings({"memory_stride": stride}, 4096)


@pytest.mark.parametrize("beacons", [None, 5, [5], {}, "q"])
def test_trained_maps_of_the_authors_that_cannot_be_are_refused(
    beacons: object, model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"beacon_param": beacons}))
    with pytest.raises(AdapterError, match="beacon_param="):
        authors_projections(tmp_path, load_model(model_folder, device="cpu").model)
