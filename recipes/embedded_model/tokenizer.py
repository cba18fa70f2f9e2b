"""Step 1: the tokenizer. Byte-level BPE in which every digit is a token of its own, with a chat template."""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from focus_core.evaluation import facts, words
from recipes.embedded_model.texts import read_texts

WORD_COUNT = 400
SPECIAL_TOKENS = ["<pad>", "<bos>", "<eos>"]
# In training a document stands before a question, with a BOS between them. So does a text that comes in the question's
# message: all before its last blank line.
CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ bos_token + m.content + '\\n' }}"
    "{% elif m.role == 'user' %}{% set before, _, question = m.content.rpartition('\\n\\n') %}"
    "{{ '' if loop.index0 and messages[loop.index0 - 1].role == 'system' else bos_token }}"
    "{{ before + bos_token if before.strip() else '' }}{{ 'Question: ' + question + '\\n' }}"
    "{% else %}{{ 'Answer: ' + m.content + eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Answer:{% endif %}"
)


def training_text(texts: list[str], seed: int = 0) -> Iterator[str]:
    """The corpora, and half as much generated material, so that the facts' words are short in tokens."""
    yield from texts
    rng = random.Random(seed)
    for _ in range(12_000):
        fact = facts.make_fact(rng)
        yield f"{fact.statement(rng)} Question: {fact.question(rng)}\nAnswer: {fact.value} {facts.filler_sentence(rng)}"
    # A word that falls into pieces is several times as hard to look up for a model of this size.
    listed = [value for values in words.WORD_ATTRIBUTES.values() for value in values]
    names = {part for value in [*listed, *words.WORD_ATTRIBUTES, *words.NUMERIC_ATTRIBUTES] for part in value.split()}
    names |= {*words.ADJECTIVES, *words.NOUNS, *words.FIRST_NAMES, *words.LAST_NAMES, *words.PLACE_PARTS[0]}
    for name in sorted(names | set(words.PLACE_PARTS[1])):
        yield f" {name}" * WORD_COUNT


def train(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains the BPE and wraps it for transformers; one `<bos>` is put before every text."""
    tokenizer = Tokenizer(models.BPE())
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_text(texts), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", 1)]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True, help="folder of public-domain .txt files")
    parser.add_argument("--out", type=Path, default=Path("runs/embedded/tokenizer"))
    parser.add_argument("--vocab-size", type=int, default=4096)
    args = parser.parse_args()
    tokenizer = train(read_texts(args.text).train, args.vocab_size)
    tokenizer.save_pretrained(args.out)
    print(f"{len(tokenizer)} tokens saved in {args.out}")


if __name__ == "__main__":
    main()
