# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Quickstart
#
# Ask questions about a text that is much longer than the model's window, and see what happens inside. Everything here
# runs on the small model that comes with the package: no GPU, no network. It is not always right; its card,
# `focus_core/embedded/README.md`, says how often. What the numbers show holds for every model.

# %%
import random
import time

import matplotlib.pyplot as plt

from focus_core import ContextOverflowError, FocusEngine
from focus_core.evaluation.facts import Fact, filler_sentences, hide

engine = FocusEngine.from_pretrained()
print(engine.config)

# %% [markdown]
# ## A long text
#
# Made-up sentences, with four facts somewhere among them. The model sees `window` tokens at a time; the text is many
# times as long.

# %%
facts = [
    Fact("pass key", "", "71402", "passkey"),
    Fact("access code", "the amber falcon", "48213"),
    Fact("home city", "Clara Fenwick", "Lisbon"),
    Fact("population", "Lake Marden", "90576"),
]
questions = [
    "What is the pass key?",
    "What is the access code of the amber falcon?",
    "What is the home city of Clara Fenwick?",
    "What is the population of Lake Marden?",
]
rng = random.Random(1)
text = hide(facts, filler_sentences(rng, 1000), rng, depths=[0.1, 0.35, 0.6, 0.85]).text
print(text[:200], "…")
print(f"{engine.count_tokens(text):,} tokens, {engine.count_tokens(text) / engine.config.window:.0f} windows")

# %% [markdown]
# ## The first question
#
# Every chunk is read once, alone, and its keys and values are kept. Then each chunk condenses what it knows about the
# question into one candidate token, and the model answers behind this memory.


# %%
def ask(question, documents):
    started = time.perf_counter()
    answer = engine.generate(question, documents, max_new_tokens=32)
    return answer, time.perf_counter() - started


first, first_seconds = ask(questions[0], [text])
print(first.text)
print(first.usage)

# %% [markdown]
# ## The next question saves the reading
#
# The same text, another question: `cache_read` says that all of it was known, `cache_creation` that nothing had to be
# read again.

# %%
second, second_seconds = ask(questions[1], [text])
print(second.text)
print(second.usage)
print(f"first {first_seconds:.2f} s, second {second_seconds:.2f} s")

# %% [markdown]
# ## What happened inside
#
# What is kept is the size of the text times the bytes of one token's keys and values.

# %%
per_token = engine.focus.cache_bytes_per_token
print(f"{first.usage.chunks} chunks of up to {engine.config.chunk_size} tokens")
print(f"{per_token:,} bytes per token, {engine.shared.store.nbytes / 2**20:.0f} MiB in the store")

# %%
times = [first_seconds, second_seconds, *(ask(question, [text])[1] for question in questions[2:])]
figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
axes.barh(range(1, 5), times, color=["#d95f02", *["#1b9e77"] * 3])
axes.set(yticks=range(1, 5), ylabel="question", xlabel="seconds", title="Only the first question reads the text")
axes.invert_yaxis()

# %% [markdown]
# ## Several questions at once
#
# A list of questions is answered in one pass per token for all of them. `prepare` reads ahead of the first question.

# %%
prepared = engine.prepare([text])
answers = engine.generate(questions, prepared, max_new_tokens=32)
for fact, question, answer in zip(facts, questions, answers, strict=True):
    print(f"{question:<48}{answer.text:<64}(stated: {fact.value})")

# %% [markdown]
# ## Documents that change
#
# Chunks are known by their content, so a text that grows, or a document that joins, costs only what is new.

# %%
note = "The serial number of the silver anchor is 30418."
answer, seconds = ask("What is the serial number of the silver anchor?", [prepared, note])
print(answer.text)
print(f"{answer.usage.cache_creation} tokens read, {answer.usage.cache_read:,} found, {seconds:.2f} s")

# %% [markdown]
# ## Nothing is dropped in silence
#
# What does not fit is refused before any work, with the numbers and what to change.

# %%
try:
    engine.generate(questions[0], [text], max_new_tokens=100_000)
except ContextOverflowError as error:
    print(error)
