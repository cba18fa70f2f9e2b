"""Rows of a dataset, as they come."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from focus_core import ConfigError
from focus_core.errors import FocusWarning
from focus_core.training.config import TrainingConfig
from focus_core.training.trainer import rehearse, train
from tests.training.cases import config_for


class Rows:
    """A streamed dataset: begins anew with each iteration, and has no length."""

    def __init__(self, *rows: Any) -> None:
        self.rows, self.read = rows, 0

    def __iter__(self) -> Iterator[Any]:
        for row in self.rows:
            self.read += 1
            yield row


def row(number: int) -> dict[str, Any]:
    documents = [f"the dog {number} sat on the mat " * 3, f"a cat {number} and an owl " * 3]
    return {"documents": documents, "question": f"who sat {number}", "answer": f"dog {number}", "id": number}


def config(folder: Path, model: Path, **settings: Any) -> TrainingConfig:
    sizes: dict[str, Any] = {"chunk_sizes": (32,), "max_chunks": 20, "local_lengths": (6, 40), "dynamic_prompts": (8,)}
    return config_for(folder, model=str(model), **{**sizes, "steps": 4, "accumulation": 2, "save_every": 1, **settings})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "focusllm_adapter.safetensors")


def test_each_row_is_an_example_and_a_stopped_run_goes_on(tmp_path: Path, model_folder: Path) -> None:
    rows = [row(number) for number in range(8)]
    straight = train(config(tmp_path / "straight", model_folder), records=Rows(*rows)).parent
    broken, stopped = Rows(*rows[:5]), config(tmp_path / "stopped", model_folder)
    with pytest.raises(ConfigError, match="The examples end before number 5"):
        train(stopped, records=broken)
    train(stopped, records=Rows(*rows))
    assert all(torch.equal(weights(straight)[name], tensor) for name, tensor in weights(stopped.output).items())
    other = train(config(tmp_path / "other", model_folder), records=Rows(*reversed(rows))).parent
    assert any(not torch.equal(weights(straight)[name], tensor) for name, tensor in weights(other).items())


def test_no_more_is_read_than_is_learned(tmp_path: Path, model_folder: Path) -> None:
    """A stream may be endless, and come over a network."""
    rows = Rows(*(row(number) for number in range(100)))
    train(config(tmp_path, model_folder, steps=2), records=rows)
    assert rows.read == 4


def test_rows_whose_objectives_are_off_are_passed_over(tmp_path: Path, model_folder: Path) -> None:
    text = {"text": "a dog and a cat sat on the mat " * 20}
    rows = Rows(text, row(0), text, row(1))
    made = config(tmp_path, model_folder, steps=1, objectives={"answering": 1})
    train(made, records=rows)
    assert rows.read == 4
    assert {line.split(",")[1] for line in (tmp_path / "losses.csv").read_text().splitlines()[1:]} == {"answering"}


def test_examples_and_records_are_two_ways(tmp_path: Path, model_folder: Path) -> None:
    with pytest.raises(ConfigError, match="examples and records are both given"):
        train(config(tmp_path, model_folder), records=[row(0)], examples=[])


def test_a_stream_is_rehearsed(tmp_path: Path, model_folder: Path) -> None:
    rows = Rows(*(row(number) for number in range(100)))
    found = rehearse(config(tmp_path, model_folder, steps=2), records=rows)
    assert (found.steps, rows.read) == (2, 4)
    assert found.seconds_per_step > 0


@pytest.mark.parametrize("name", ["data", "records"])
def test_files_beside_other_examples_would_be_ignored(tmp_path: Path, model_folder: Path, name: str) -> None:
    """And the model card would say that they were trained."""
    made = config(tmp_path, model_folder, data=(tmp_path / "data.jsonl",))
    given: dict[str, Any] = {"records": [row(0)]} if name == "records" else {"examples": [], "model": None}
    with pytest.raises(ConfigError, match=r"data and (records|examples) are both given"):
        train(made, **given)


def test_a_row_that_does_not_fit_is_passed_over(tmp_path: Path, model_folder: Path) -> None:
    """A run would meet it again however often it went on."""
    long = row(0) | {"documents": ["the dog sat on the mat " * 500]}
    made = config(tmp_path / "with", model_folder, steps=2)
    with pytest.warns(FocusWarning) as told:
        train(made, records=Rows(row(1), long, row(2), long, long, row(3), row(4)))
    assert [str(one.message).split(":")[0] for one in told] == ["record 1", "record 3"]
    passed_over = "Raise max_chunks or chunk_sizes, or shorten the documents. The row is passed over, number 2 so far."
    assert passed_over in str(told[1].message)
    assert len((made.output / "losses.csv").read_text().splitlines()) == 3


def test_a_stream_in_which_nothing_fits_ends(tmp_path: Path, model_folder: Path) -> None:
    """It may be endless, and Ctrl-C wait for its next example."""
    long = row(0) | {"documents": ["the dog sat on the mat " * 500]}
    with pytest.warns(FocusWarning), pytest.raises(ConfigError, match=r"record 63: .* max_chunks=20"):
        train(config(tmp_path, model_folder), records=itertools.repeat(long))


def test_a_row_that_is_no_record_is_named(tmp_path: Path, model_folder: Path) -> None:
    made = config(tmp_path, model_folder)
    with pytest.raises(ConfigError, match="record 1: needs the field 'text' or the field 'documents'"):
        train(made, records=[row(0), {"title": "none"}])
    with pytest.raises(ConfigError, match="record 0: must be a JSON object, not str"):
        train(replace(made, output=tmp_path / "other"), records=["text"])  # type: ignore[list-item]
