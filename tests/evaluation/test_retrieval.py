"""The rivals' rankings: BM25 by its formula, embeddings as a plain mean over the encoder's states."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, BertConfig, BertModel, PreTrainedTokenizerFast, set_seed

from focus_core import ConfigError
from focus_core.evaluation.embedding import Embedder
from focus_core.evaluation.retrieval import BM25
from tests.models import needs_model, real_model

PASSAGES = ["The fox ran home.", "A dog slept.", "The fox and the dog"]


def test_bm25_is_the_formula() -> None:
    """Lucene's: idf · tf / (tf + k1 · (1 - b + b · length / mean length))."""
    pytest.importorskip("bm25s")
    lengths = [3, 2, 2]  # without stop words: fox ran home, dog slept, fox dog

    def expected(tf: int, length: int, documents_with_word: int) -> float:
        idf = math.log(1 + (3 - documents_with_word + 0.5) / (documents_with_word + 0.5))
        return idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * length / (sum(lengths) / 3)))

    scores = BM25().index(PASSAGES).scores("Where is the FOX?")
    assert scores == pytest.approx([expected(1, 3, 2), 0.0, expected(1, 2, 2)])


def test_bm25_without_words_ranks_nothing() -> None:
    pytest.importorskip("bm25s")
    assert BM25().index(PASSAGES).scores("the of").tolist() == [0.0, 0.0, 0.0]
    assert BM25().index(["the", "of a"]).scores("fox").tolist() == [0.0, 0.0]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT over words, with 12 positions."""
    set_seed(0)
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "fox", "dog", "home", "ran", "slept"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertModel(
        BertConfig(vocab_size=len(words), max_position_embeddings=12, initializer_range=0.5, **sizes)  # type: ignore[arg-type]
    )
    folder = tmp_path_factory.mktemp("encoder")
    model.save_pretrained(folder)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]")
    wrapped.save_pretrained(folder)
    return folder


def test_an_embedding_is_the_mean_of_the_states_whatever_the_batch(encoder: Path) -> None:
    texts = ["fox ran home", "dog", "dog slept fox ran home dog"]
    model = AutoModel.from_pretrained(encoder)
    embedder = Embedder(encoder)
    found = embedder.embed(texts)
    for text, embedding in zip(texts, found, strict=True):
        ids = torch.tensor([[1, *({"fox": 4, "dog": 5, "home": 6, "ran": 7, "slept": 8}[w] for w in text.split()), 2]])
        with torch.no_grad():
            mean = model(ids).last_hidden_state[0].mean(0).numpy()
        assert embedding == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)
    scores = embedder.index(texts).scores("dog")
    assert scores[1] == pytest.approx(1.0, abs=1e-5)
    assert scores.argmax() == 1


@needs_model("minilm")
@pytest.mark.slow
def test_minilm_finds_the_passage_in_other_words() -> None:
    """From the files of its wheel. A question and its passage share no word but small ones."""
    passages = {
        "What cargo did the vessel have?": "The ship carried oranges and lemons from Valencia.",
        "When must a tenant pay?": "Rent is due on the first of every month.",
        "Who makes music?": "A man is playing the guitar.",
        "Which film is great?": "The new movie is awesome.",
    }
    index = Embedder(real_model("minilm")).index(list(passages.values()))
    for number, question in enumerate(passages):
        scores = index.scores(question)
        assert scores.argmax() == number
        assert scores[number] > 0.25 > 0.15 > np.delete(scores, number).max()


def test_what_the_encoder_cannot_read_is_refused(encoder: Path, tmp_path: Path) -> None:
    """A passage cut in silence would be compared by its beginning."""
    with pytest.raises(ConfigError, match="13 tokens for the sentence encoder, which has 12 positions"):
        Embedder(encoder).embed(["fox " * 11])
    with pytest.raises(ConfigError, match="holds no sentence encoder"):
        Embedder(tmp_path)
