"""Records that the recipe of SmolLM2 makes: what is asked stands where it is marked, and only there."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from focus_core import FocusConfig, FocusModel
from focus_core.evaluation.tasks.records import Record
from focus_core.evaluation.tasks.records import read_records as read_stories
from focus_core.loading.adapters import ADAPTER_CONFIG, load_adapter, save_adapter
from focus_core.loading.named import SMOLLM2_ADAPTER
from focus_core.training.config import TrainingConfig
from focus_core.training.records import read_records
from recipes.smollm2 import adapter, arms, data, export, make, stages
from tests.tiny import save_tiny_model

LINE = {
    "id": "fox",
    "sections": [
        "A clever fox lived near the river with her four children. Every morning she crossed the wooden bridge.",
        "The miller had a donkey called Bartholomew, who carried the flour to the market on Thursday mornings.",
        "In winter nobody came. The fox and the miller shared a candle and talked about the summer.",
    ],
    "questions": [
        {"question": "Who lived near the river?", "answers": ["a fox", "the fox"], "sections": [0]},
        {"question": "Who shared a candle?", "answers": ["the fox and the miller"], "sections": [2, 1, 2]},
        {"question": "Why?", "answers": ["nobody knows"], "sections": []},
    ],
}


@pytest.fixture
def story(tmp_path: Path) -> Record:
    path = tmp_path / "stories.jsonl"
    path.write_text(json.dumps(LINE) + "\n")
    return read_stories(path)[0]


def test_questions_mark_their_sections(story: Record) -> None:
    (record,) = data.questions([story, replace(story, questions=())])
    assert record["documents"] == story.sections
    assert record["questions"] == [
        {"question": "Who lived near the river?", "answer": "a fox", "gold": [0]},
        {"question": "Who shared a candle?", "answer": "the fox and the miller", "gold": [1, 2]},
    ]


def test_planted_numbers_stand_in_their_sections_and_nowhere_else(story: Record) -> None:
    for record in data.planted([story] * 20, random.Random(0)):
        assert len(record["questions"]) == 4
        for asked in record["questions"]:
            (place,) = asked["gold"]
            having = [number for number, text in enumerate(record["documents"]) if asked["answer"] in text]
            assert having == [place]
        words = {word for text in story.sections for word in text.split()}
        assert words <= {word for text in record["documents"] for word in text.split()}


def test_the_word_left_out_stands_in_its_section_and_nowhere_else(story: Record) -> None:
    seen = set()
    for seed in range(20):
        for record in data.cloze([story], random.Random(seed)):
            for asked in record["questions"]:
                (place,) = asked["gold"]
                word = asked["answer"]
                assert [word.lower() in text.lower() for text in record["documents"]].count(True) == 1
                assert word in record["documents"][place]
                assert word not in asked["question"]
                assert (
                    asked["question"].removeprefix("Which word is left out: ").replace("_____", word)
                    in (record["documents"][place])
                )
                seen.add(word)
    assert "Bartholomew" in seen
    assert len(seen) > 5


def test_the_words_that_follow_stand_where_their_first_words_do(story: Record) -> None:
    seen = set()
    for seed in range(20):
        for record in data.quoted([story], random.Random(seed)):
            for asked in record["questions"]:
                (place,) = asked["gold"]
                words = record["documents"][place].split()
                answer = asked["answer"].split()
                found = [at for at in range(len(words)) if words[at : at + len(answer)] == answer]
                assert any(" ".join(words[at - 7 : at]) in asked["question"] for at in found)
                seen.add(asked["answer"])
    assert len(seen) > 5


def test_a_text_is_cut_into_parts_and_nothing_of_them_is_lost(tmp_path: Path) -> None:
    path, draw = tmp_path / "text.txt", random.Random(0)
    lines = [" ".join(f"w{draw.randrange(99)}." for _ in range(draw.choice((3, 80, 900)))) for _ in range(60)]
    path.write_bytes("\n\n".join(lines).encode() + b"\nThe end\xbd")
    parts = data.parts_of(path)
    assert len({part.name for part in parts}) == len(parts) > 3
    assert {len(part.sections) for part in parts} == {12}
    assert {len(section.split()) // 150 for part in parts for section in part.sections} == {1}
    words = [word for part in parts for section in part.sections for word in section.split()]
    assert words == " ".join(lines).split()[: len(words)]


def test_a_phrase_is_asked_for_by_the_words_around_it() -> None:
    text = (
        "The treaty between the two countries was signed in 1947 by the envoys of both kings. "
        "The committee asked for $25 million and built what the law of the land had promised. "
        "More than 340,000 men came home to their families in the spring of that year. "
        "A letter was sent from the islands to the Bank of England about the missing gold."
    )
    told, seen = Record("treaty", ("Nobody counts here, and no names are told of any of them.", text), ()), {}
    for seed in range(40):
        for record in data.phrases([told], random.Random(seed)):
            for asked in record["questions"]:
                assert asked["gold"] == [1]
                assert asked["answer"] in text
                assert asked["answer"] not in asked["question"]
                seen[asked["answer"]] = asked["question"]
    assert seen.keys() == {"1947", "$25 million", "340,000", "Bank of England"}
    assert "year" in seen["1947"]
    assert data.phrases([Record("none", told.sections[:1], ())], random.Random(0)) == []


def test_documents_of_others_stand_between_and_marks_follow(story: Record) -> None:
    other = replace(story, sections=["A stranger came.", "He sang."], questions=story.questions[:1])
    records = data.questions([story, other])
    for seed in range(10):
        for before, after in zip(records, data.among_others(records, random.Random(seed), others=2), strict=True):
            assert sorted(before["documents"]) == sorted(set(after["documents"]) & set(before["documents"]))
            assert len(after["documents"]) == len(before["documents"]) + 2
            for one, two in zip(before["questions"], after["questions"], strict=True):
                gold = [
                    {record["documents"][number] for number in asked["gold"]}
                    for record, asked in ((before, one), (after, two))
                ]
                assert gold[0] == gold[1]


def test_a_run_has_three_files_and_held_out_stories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train", "val"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(LINE) + "\n")
    files, held_out = adapter.write_data(tmp_path, tmp_path / "run")
    assert [len(read_records(path)) for path in (*files, held_out)] == [1, 1, 1, 1]
    config = adapter.config_for(tmp_path / "run", files, held_out, steps=10, rank=8)
    assert config.output == tmp_path / "run" / "rank8"
    assert (config.layout, config.rank, config.model) == ("chat", 8, "smollm2")
    end = adapter.cooled(config, 5)
    assert end.adapter == str(config.output / "adapter")
    assert (end.output.name, end.steps, end.rank, end.seed) == ("rank8_cooled", 5, None, config.seed + 1)
    more = adapter.write_wider_data(tmp_path, tmp_path / "run")
    assert [len(read_records(path)) for path in more] == [1, 1, 1, 1]
    wider = adapter.wider(config, more, steps=7, adapter=tmp_path / "before")
    assert (wider.adapter, wider.rank, wider.steps, wider.output.name) == (str(tmp_path / "before"), None, 7, "wider")
    assert wider.max_chunks == 64
    assert wider.validation == config.validation
    (tmp_path / "speech.txt").write_text("\n".join(["In 1947 the house had a budget of 25 billion dollars."] * 300))
    shares = adapter.write_mixed_data(tmp_path, [tmp_path / "speech.txt"], tmp_path / "run")
    mixed = adapter.mixed(config, shares, texts=[tmp_path / "speech.txt"], steps=9, adapter=tmp_path / "before")
    assert mixed.data_notes == f"{config.data_notes}{adapter._MORE_TEXTS.format(names='speech.txt')}"
    assert (mixed.steps, mixed.output.name, mixed.learning_rate) == (9, "mixed", config.learning_rate)
    assert set(mixed.mixture) == {path.name for path in mixed.data}
    assert len(read_records(tmp_path / "run" / "mixed_quoted.jsonl")) == 1  # the speech says the same all the time
    monkeypatch.setattr(adapter, "smollm2_file", lambda: tmp_path)
    with pytest.raises(SystemExit):
        adapter.main(["--data", str(tmp_path), "--output", str(tmp_path / "run"), "--mixed", "9"])
    assert "--texts" in capsys.readouterr().err
    monkeypatch.setattr(adapter, "smollm2_file", lambda: None)
    with pytest.raises(SystemExit, match="make models"):
        adapter.main(["--data", str(tmp_path), "--output", str(tmp_path / "run")])
    before = [path.read_bytes() for path in files]
    assert [path.read_bytes() for path in adapter.write_data(tmp_path, tmp_path / "run")[0]] == before


def test_arms_differ_in_one_thing_and_have_the_data_for_it(tmp_path: Path) -> None:
    for name in ("train", "val"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(LINE) + "\n")
    base = adapter.config_for(tmp_path, *adapter.write_data(tmp_path, tmp_path / "run"), steps=10, rank=32)
    configs = {arm: arms.config_of(arm, base) for arm in arms.ARMS}
    assert len({config.output for config in configs.values()}) == len(arms.ARMS)
    assert replace(configs["rank 32"], output=base.output) == base
    assert (configs["full copies"].rank, configs["rank 8"].rank) == (0, 8)
    assert [path.name for path in configs["continuation"].data] == ["stories.jsonl"]
    everything = configs["continuation, reconstruction, answering"]
    assert sum(everything.mixture.values()) == 20
    assert len(everything.data) == 4


def _tiny(folder: Path, output: Path, **settings: Any) -> TrainingConfig:
    """A run of a tiny model."""
    asked = [{"prompt": "Who?", "answer": "a b", "gold": [0]}]
    records = [{"documents": ["a b", other], "questions": asked} for other in ("c d e", "e d c", "d")]
    data.write(folder / "questions.jsonl", records)
    return TrainingConfig(
        output=output,
        model=str(save_tiny_model(folder / "model")),
        data=(folder / "questions.jsonl",),
        chunk_sizes=(8,),
        dynamic_prompts=(8,),
        local_lengths=(2, 16),
        accumulation=1,
        mixed_precision="no",
        dtype="float32",
        log_every=1,
        **settings,
    )


def test_an_arm_says_what_it_reached_and_is_not_trained_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = _tiny(
        tmp_path, tmp_path / "runs" / "base", validation=(tmp_path / "questions.jsonl",), validation_examples=2
    )
    monkeypatch.setattr(arms, "rehearse", lambda config: SimpleNamespace(seconds_per_step=20.0))
    found = arms.run("rank 8", base, minutes=1)
    assert (found["arm"], found["steps"]) == ("rank 8", 3)
    assert {"loss", "loss, first token", "other documents", "no documents"} <= found.keys()
    (base.output.with_name("rank_8") / "arm.json").unlink()  # stopped before it was judged, and then less busy
    monkeypatch.setattr(arms, "rehearse", lambda config: SimpleNamespace(seconds_per_step=5.0))
    assert arms.run("rank 8", base, minutes=1) == found
    monkeypatch.setattr(arms, "train", None)
    assert arms.run("rank 8", base, minutes=1) == found


def test_an_answer_is_followed_from_its_chunk_to_the_end(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    asked = [{"prompt": "Who?", "answer": "a b c", "gold": [0]}, {"prompt": "What?", "answer": "e d", "gold": [0, 1]}]
    other = {"documents": ["g"], "questions": [{"prompt": "Who?", "answer": "g", "gold": [0]}]}
    data.write(tmp_path / "held_out.jsonl", [{"documents": ["a b", "c d e", "f"], "questions": asked}, other])
    config = TrainingConfig(
        output=tmp_path,
        model=str(folder),
        validation=(tmp_path / "held_out.jsonl",),
        chunk_sizes=(8,),
        dynamic_prompts=(8,),
        local_lengths=(2, 16),
    )
    focus = FocusModel.from_pretrained(folder, device="cpu", dtype="float32")
    untrained = stages.measure(focus, config)
    assert tuple(untrained) == stages.STAGES
    assert untrained["candidate itself"] == pytest.approx(untrained["plain row"], abs=1e-5)
    assert untrained["right chunks"] != pytest.approx(untrained["all chunks"], abs=1e-5)
    with torch.no_grad():
        for parameter in focus.projections.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    trained = stages.measure(focus, config)
    assert trained["plain row"] == pytest.approx(untrained["plain row"], abs=1e-5)  # no hook is left
    assert trained["candidate itself"] != pytest.approx(trained["plain row"], abs=1e-3)
    record = {"documents": ["a b", "c d e", "f"], "questions": [{**asked[0], "gold": [0, 1, 2]}]}
    data.write(tmp_path / "held_out.jsonl", [record, other])
    everywhere = stages.measure(focus, config)
    assert everywhere["right chunks"] == pytest.approx(everywhere["all chunks"], abs=1e-5)


def test_the_runs_of_the_package_follow_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("train", "val"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(LINE) + "\n")
    (tmp_path / "speech.txt").write_text("\n".join(["In 1947 the house had a budget of 25 billion dollars."] * 300))
    runs, exported = list[TrainingConfig](), list[Any]()

    def train(config: TrainingConfig, until: int | None = None) -> Path:
        runs.append(config)
        assert until == (401 if len(runs) == 1 else None)
        return config.output / "best"

    monkeypatch.setattr(make, "train", train)
    monkeypatch.setattr(make, "export", lambda *given: exported.append(given))
    output = tmp_path / "runs"
    assert make.make(tmp_path, [tmp_path / "speech.txt"], output) == output / "mean"
    assert [(run.output.name, run.steps) for run in runs] == [
        ("rank32", 800),
        ("rank32_cooled", 60),
        ("wider", 220),
        ("mixed", 200),
    ]
    assert [run.adapter for run in runs] == [
        None,
        str(output / "rank32" / "adapter"),
        *[str(output / "rank32_cooled" / "best")] * 2,
    ]
    assert exported == [([output / name for name in ("rank32_cooled", "wider", "mixed")], output / "mean")]


def test_the_adapter_of_the_package_is_small_enough_to_carry() -> None:
    files = {path.name: path.stat().st_size for path in SMOLLM2_ADAPTER.iterdir()}
    assert set(files) == {"README.md", "focusllm_adapter.json", "focusllm_adapter.safetensors"}
    assert sum(files.values()) <= export.LIMIT


def test_the_best_adapter_goes_into_the_package_in_half_of_the_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny_model(tmp_path / "model")
    focus = FocusModel.from_pretrained(folder, device="cpu", dtype="float32")
    trained_with = FocusConfig(chunk_size=512, dynamic_prompt=64, layout="chat")
    save_adapter(tmp_path / "run" / "best", focus.projections, focus.model, trained_with=trained_with, base_id="x")
    monkeypatch.setattr(export, "named_model", lambda name: (str(folder), None))
    size = export.export([tmp_path / "run"], tmp_path / "out")
    assert size == sum(file.stat().st_size for file in (tmp_path / "out").iterdir())
    projections, settings = load_adapter(tmp_path / "out", focus.model)
    assert settings == replace(trained_with, chunk_size=256, boundaries="paragraph", plain_up_to=2048, focus_up_to=64)
    assert json.loads((tmp_path / "out" / ADAPTER_CONFIG).read_text())["base_model"] == "smollm2"
    for one, other in zip(projections.parameters(), focus.projections.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=2**-8)
    with torch.no_grad():
        for parameter in focus.projections.parameters():
            parameter.mul_(3)
    save_adapter(tmp_path / "later" / "best", focus.projections, focus.model, trained_with=trained_with, base_id="x")
    export.export([tmp_path / "run", tmp_path / "later"], tmp_path / "mean")
    mean, _ = load_adapter(tmp_path / "mean", focus.model)
    for one, three_times in zip(mean.parameters(), focus.projections.parameters(), strict=True):
        assert torch.allclose(one, three_times * 2 / 3, rtol=2**-7)
