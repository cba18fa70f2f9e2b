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
# # Read once, ask tomorrow
#
# Reading a long text takes most of the time of its first answer. With a folder to keep what was read, the next process
# asks at once, an edited text is read only where it changed, and a damaged file costs a chunk and not an answer.

# %%
import json
import random
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import focus_core
from focus_core import FocusEngine, FocusWarning
from focus_core.evaluation.facts import Fact, filler_sentences, hide

folder = Path(tempfile.mkdtemp()) / "store"
engine = FocusEngine.from_pretrained(store=folder, boundaries="content", device="cpu", progress=False)

rng = random.Random(5)
fact = Fact("access code", "the amber falcon", "48213")
sentences = filler_sentences(rng, 300)
text = hide([fact], sentences, rng, [0.6]).text
question = "What is the access code of the amber falcon?"
print(f"{engine.count_tokens(text):,} tokens")

# %% [markdown]
# ## The first reading

# %%
started = time.perf_counter()
prepared = engine.prepare(text)
print(f"{prepared.tokens_read:,} tokens read in {time.perf_counter() - started:.1f} s")
answer = engine.generate(question, documents=prepared)
print(answer.text, "(stated: 48213)")

# %% [markdown]
# ## Another process
#
# The command line knows the same folder. `cache_creation` is what it had to read: nothing.

# %%
book = folder.parent / "book.txt"
book.write_text(text)
command = ["ask", "-d", str(book), "--store", str(folder), "--setting", "boundaries=content", "--json", question]
done = subprocess.run([sys.executable, "-m", "focus_core.cli", *command], capture_output=True, text=True)
told = json.loads(done.stdout)
print(told["text"].strip(), "(stated: 48213)")
print(told["usage"]["cache_read"], "tokens were there,", told["usage"]["cache_creation"], "were read")

# %% [markdown]
# ## An edit
#
# A sentence changes in the middle. With `boundaries="content"` the ends of chunks depend on the text near them, so they
# meet again behind the edit, and one or two chunks are read.

# %%
edited = text.replace(sentences[150], "The lighthouse was painted green.")
again = engine.prepare(edited)
print(f"{again.tokens_read:,} of {again.tokens:,} tokens read")

# %% [markdown]
# ## A damaged file
#
# Files carry checksums and the tokens they belong to. What does not agree is not used.

# %%
path = next(folder.rglob("*.safetensors"))
content = bytearray(path.read_bytes())
content[-1000] ^= 1
path.write_bytes(content)
engine.store.memory.clear()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", FocusWarning)
    answer = engine.generate(question, documents=[text, edited])
print(str(caught[0].message).replace(str(folder), "…/store")[:200] if caught else "no warning")
print(answer.text, "(stated: 48213)")
print(engine.verify(again, sample=3))

# %% [markdown]
# ## What the folder holds

# %%
listed = subprocess.run(
    [sys.executable, "-m", "focus_core.cli", "store", "ls", "--store", str(folder)], capture_output=True, text=True
)
print(listed.stdout.replace(str(folder.parent), "…").replace(str(Path(focus_core.__file__).parent), "focus_core"))
