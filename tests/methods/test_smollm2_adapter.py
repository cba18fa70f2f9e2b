"""The adapter for SmolLM2 that comes with the package reads: thirty questions about texts that nobody trained on.

Each question is asked of its own text and, as controls, of the other text and of an empty page. Answers in the style of
the training have a low loss without any reading; what lies between the losses is reading.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from focus_core import FocusModel
from focus_core.loading.named import SMOLLM2
from focus_core.training.config import TrainingConfig
from focus_core.training.validation import Validation
from tests.models import needs_model

FLOOR = 2.2  # nats a token, with the right text; it was 1.70 when the adapter was made
READING = 2.0  # nats a token less than without it; it was 2.9

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

STORY = Path(__file__).parents[2] / "cookbook" / "texts" / "the_lamp_keeper.txt"
ABOUT_THE_STORY = [
    ("Who was the keeper of the lighthouse?", "Osric Vane"),
    ("What was the inn called?", "the Three Herrings"),
    ("How many children were in the school?", "nineteen"),
    ("When were the children allowed to walk out to the rock?", "on Saturdays"),
    ("What did Osric give to the children?", "barley sugar"),
    ("What colour was the tin?", "blue"),
    ("What was the name of the ship?", "the Marguerite"),
    ("What did the ship carry?", "oranges"),
    ("Who was the captain of the ship?", "Ines Calderon"),
    ("What had grown up south of the rock?", "a sandbank"),
    ("What had been mixed into the oil?", "water"),
    ("What did Osric carry up to the gallery?", "his bed, chairs, table and boards"),
    ("How far could the fire be seen?", "nine miles"),
    ("Who was the helmsman?", "Tobias Reed"),
    ("What did the fire burn?", "the floor of the gallery and his left hand"),
    ("What did Osric sit on?", "an upturned bucket"),
    ("What did Osric say that he would like?", "some books"),
    ("How many books were in the chest?", "two hundred and six"),
    ("What was the atlas bound in?", "red"),
    ("Who mixed water into the oil?", "Harald Pym"),
    ("What did the harbour board send to Osric?", "a girl from the school"),
    ("How old was Minna?", "fourteen"),
    ("Where did Osric wear the key?", "around his neck"),
    ("To whom did Osric leave the red atlas?", "Minna"),
]
FERRY = [
    "The ferry of Lower Ash was a flat wooden boat that hung on a rope of hemp. It belonged to two sisters. Berta "
    "pulled the rope and Lene took the money, which was a copper coin for a person and a silver one for a horse.",
    "One morning a man with a white goat stood on the bank. He had neither copper nor silver, and he offered them a "
    "song. Lene laughed, but Berta let him on board. He sang about a mill that ground salt until the goat fell asleep.",
    "In the middle of the river the rope broke. The boat drifted down to the weir, and the sisters cried for help. "
    "The goat woke up, jumped into the water with the end of the rope between its teeth, and swam to a willow on the "
    "bank.",
]
ABOUT_THE_FERRY = [
    ("What did the ferry hang on?", "a rope of hemp"),
    ("Who took the money?", "Lene"),
    ("What did the man offer to the sisters?", "a song"),
    ("What colour was the goat?", "white"),
    ("What broke in the middle of the river?", "the rope"),
    ("Where did the goat swim to?", "a willow on the bank"),
]


def _sections() -> list[str]:
    """Of the story, without its title and the numbers of its sections."""
    paragraphs = [part for part in STORY.read_text(encoding="utf-8").split("\n\n")[1:] if len(part) > 5]
    return [" ".join(paragraphs[start : start + 3]) for start in range(0, len(paragraphs), 3)]


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, float]]:
    """Nats a token, with the right text and without, once something has been done to the adapter."""
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    records = ((_sections(), ABOUT_THE_STORY), (FERRY, ABOUT_THE_FERRY))
    path.write_text("".join(f"{json.dumps(_record(documents, asked))}\n" for documents, asked in records))

    @cache
    def measured(change: str) -> dict[str, float]:
        focus = FocusModel.from_pretrained(SMOLLM2, device="cpu", dtype="float32")
        CHANGES[change](focus)
        config = TrainingConfig(
            path.parent,
            model=SMOLLM2,
            validation=(path,),
            validation_examples=len(records),
            targets_per_answer=2,
            layout="chat",
            chunk_sizes=(focus.config.chunk_size,),
            dynamic_prompts=(focus.config.dynamic_prompt,),
        )
        return Validation(config, focus, SMOLLM2)(focus)

    return measured


def _record(documents: list[str], asked: list[tuple[str, str]]) -> dict[str, Any]:
    return {"documents": documents, "questions": [{"question": one, "answer": answer} for one, answer in asked]}


def _nothing(focus: FocusModel) -> None: ...


@torch.no_grad()
def _untrained(focus: FocusModel) -> None:
    for name, tensor in focus.projections.state_dict().items():
        if ".up." in name:
            tensor.zero_()


@torch.no_grad()
def _without_values(focus: FocusModel) -> None:
    """Of the value maps nothing is left that was trained."""
    for name, tensor in focus.projections.state_dict().items():
        if "v_proj.up." in name:
            tensor.zero_()


def _zeroed_values(focus: FocusModel) -> None:
    """Slots that are found as before, and say nothing."""
    for layer in focus.projections.layers:
        values = torch.nn.Linear(layer["v_proj"].down.in_features, layer["v_proj"].up.out_features, bias=False)
        layer["v_proj"] = values.requires_grad_(False)
        torch.nn.init.zeros_(values.weight)


@torch.no_grad()
def _shuffled(focus: FocusModel) -> None:
    """Each layer gets the projections of the next."""
    layers = list(focus.projections.layers)[:-1]  # the last one has fewer
    states = [{name: tensor.clone() for name, tensor in layer.state_dict().items()} for layer in layers]
    for layer, state in zip(layers, states[1:] + states[:1], strict=True):
        layer.load_state_dict(state)


CHANGES: dict[str, Callable[[FocusModel], None]] = {
    "as it is": _nothing,
    "untrained": _untrained,
    "shuffled": _shuffled,
    "zeroed values": _zeroed_values,
    "without values": _without_values,
}


@needs_model(SMOLLM2)
def test_it_reads(losses: Callable[[str], dict[str, float]]) -> None:
    found = losses("as it is")
    assert found["loss"] < FLOOR
    assert found["loss"] + READING < min(found["other documents"], found["no documents"])


@needs_model(SMOLLM2)
@pytest.mark.parametrize("change", ["untrained", "shuffled", "zeroed values"])
def test_a_broken_one_does_not(losses: Callable[[str], dict[str, float]], change: str) -> None:
    whole, broken = losses("as it is"), losses(change)
    assert broken["loss"] > FLOOR
    assert broken["other documents"] - broken["loss"] < (whole["other documents"] - whole["loss"]) / 2


@needs_model(SMOLLM2)
def test_one_without_its_value_maps_finds_and_tells_worse(losses: Callable[[str], dict[str, float]]) -> None:
    """Queries and keys find the chunk, and the base model's values tell of it: 2.39, and 5.78 with the other text."""
    whole, broken = losses("as it is"), losses("without values")
    assert broken["loss"] > max(FLOOR, whole["loss"] + 0.5)
    assert broken["loss"] + READING < broken["other documents"]
