"""A random model to train, examples for it, and records of words; what the tests of training share."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen3Config

from focus_core.attention.candidates import CandidateProjections
from focus_core.attention.modules import decoder_parts
from focus_core.config import FocusConfig
from focus_core.methods.focus import FocusModel
from focus_core.text.documents import TokenizedDocument
from focus_core.text.layout import Layout
from focus_core.training.config import TrainingConfig
from focus_core.training.data import FileExamples
from focus_core.training.examples import SupervisedQuestion, TrainingExample
from focus_core.training.records import read_records

VOCAB, BOS = 61, 1
CONFIG = FocusConfig(chunk_size=12, local_window=16, dynamic_prompt=5)
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": BOS,
    "pad_token_id": 0,
}


def focus_model(family: str = "llama", rank: int | None = None, config: FocusConfig = CONFIG) -> FocusModel:
    """A random model with projections that differ from its own maps."""
    torch.manual_seed(0)
    configs = {
        "llama": lambda: LlamaConfig(**SIZES),
        "llama with biases": lambda: LlamaConfig(**SIZES, attention_bias=True),
        "qwen3": lambda: Qwen3Config(**SIZES),
    }
    model = AutoModelForCausalLM.from_config(configs[family](), attn_implementation="sdpa").eval()
    projections = CandidateProjections(decoder_parts(model), rank=rank)
    with torch.no_grad():
        for parameter in projections.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return FocusModel(model, projections, config=config)


def example_for(model: FocusModel, *, seed: int = 0, targets: tuple[int, ...] = ()) -> TrainingExample:
    """Two documents with short last chunks and three questions of different lengths."""
    draw = random.Random(seed)
    layout = Layout(model.config, BOS)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(2, VOCAB) for _ in range(count)]

    def question(length: int, answer: int, targets: tuple[int, ...] = ()) -> SupervisedQuestion:
        return SupervisedQuestion.of(layout, layout.prompt(tokens(length)), tokens(answer), targets=targets)

    chunks = layout.chunks_of([TokenizedDocument.of_tokens(tokens(length)) for length in (29, 17)])
    questions = [question(9, 3), question(4, 4, targets), question(3, 1)]
    return TrainingExample([chunk.row for chunk in chunks], questions)


def gradients(model: FocusModel, loss: Tensor) -> dict[str, Tensor]:
    model.projections.zero_grad(set_to_none=True)
    loss.backward()
    found = {name: p.grad for name, p in model.projections.named_parameters() if p.grad is not None}
    assert len(found) == len(list(model.projections.parameters())), "a projection got no gradient"
    return found


def config_for(folder: Path, **settings: object) -> TrainingConfig:
    quick = TrainingConfig(
        output=folder, steps=6, accumulation=2, warm_up=2, learning_rate=1e-2, mixed_precision="no", log_every=1,
        save_every=100, device="cpu",
    )  # fmt: skip
    return replace(quick, **settings)


def numbered(number: int) -> TrainingExample:
    objective = "answering" if number % 2 else "continuation"
    return replace(example_for(focus_model(), seed=number), objective=objective)


# --- records of words -------------------------------------------------------------------------------------------------

WORDS = [f"w{number}" for number in range(200)]
TEMPLATE = (
    "{% for m in messages %}{{ '<bos> user ' if m.role == 'user' else 'bot ' }}{{ m.content }}"
    "{{ ' ' if m.role == 'user' else ' <eos>' }}{% endfor %}{% if add_generation_prompt %}bot {% endif %}"
)


@cache
def tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<bos>", "<eos>", "user", "bot", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    made = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
    made.chat_template = template
    return made


def ids(text: str) -> list[int]:
    return tokenizer()(text, add_special_tokens=False)["input_ids"]


def text(count: int) -> str:
    """`count` words of which no piece occurs twice."""
    assert count <= len(WORDS)
    return " ".join(WORDS[:count])


def examples(folder: Path, *records: dict[str, Any], template: str | None = TEMPLATE, **settings: Any) -> FileExamples:
    path = folder / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    sizes: dict[str, Any] = {"chunk_sizes": (8, 16), "max_chunks": 4, "local_lengths": (6, 20), "targets_per_span": 3}
    config = TrainingConfig(output=folder, dynamic_prompts=(5,), **sizes)
    limits = FocusConfig(chunk_size=8, dynamic_prompt=5).resolve(128)
    return FileExamples(replace(config, **settings), read_records(path), tokenizer(template), limits)
