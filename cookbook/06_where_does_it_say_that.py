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
# # Where does it say that?
#
# An answer with its sources: which sentences it rests on, what happens without them, and an answer that rests on
# nothing. No retriever guesses here and no model is asked to cite: every source is left out, and the same answer is
# looked at again. Everything runs on the small model that comes with the package.

# %%
import random
from pathlib import Path
from tempfile import gettempdir

from focus_core import Document, FocusEngine
from focus_core.engine.source_page import source_page
from focus_core.evaluation.facts import filler_sentences

engine = FocusEngine.from_pretrained()
filler = filler_sentences(random.Random(7), 150)
letter = Document(
    " ".join([*filler[:60], "The home city of Clara Fenwick is Lisbon.", *filler[60:110]]), name="letter.txt"
)
diary = Document(" ".join([*filler[110:130], "The depth of Lake Marden is 312.", *filler[130:]]), name="diary.txt")

# %% [markdown]
# ## An answer and its source
#
# `sources=True` explains the answer after its last token. The score is what the answer's log-probability loses, in
# nats, when this sentence is left out: 10 nats make an answer 22,000 times less likely.

# %%
question = "What is the home city of Clara Fenwick?"
answer = engine.generate(question, [letter, diary], max_new_tokens=24, method="focus", sources=True)
print(f"{answer.text}    (stated: Lisbon)")
for source in answer.sources:
    print(source)
    assert letter.text[source.start : source.end] == source.excerpt
print("supported:", answer.supported)

# %% [markdown]
# ## What every chunk contributes
#
# Each chunk enters the answer through one slot of the memory. The table behind the sources has the loss of every token
# without every chunk.

# %%
explanation = answer.explanation
for number, chunk in enumerate(explanation.chunks):
    if chunk.loss is not None:  # most chunks of a long text are left out only together with others
        print(f"chunk {number} of document {chunk.documents[0]}: {chunk.loss:7.2f} nats")
best = max((chunk for chunk in explanation.chunks if chunk.loss is not None), key=lambda chunk: chunk.loss)
print([(piece, round(loss, 1)) for piece, loss in zip(explanation.pieces, best.token_losses, strict=True)])

# %% [markdown]
# ## Two places that say the same
#
# Leave one of them out, and the answer stands: the other takes over. Both are found all the same, because each is also
# tried alone.

# %%
statement = "Note: the home city of Clara Fenwick is Lisbon."
again = Document(" ".join([*filler[:30], statement, *filler[30:60]]), name="note.txt")
twice = engine.generate(question, [letter, again], max_new_tokens=24, method="focus", sources=True)
print([(source.name, source.role) for source in twice.sources])

# %% [markdown]
# ## Not in the documents
#
# The model answers questions about texts that say nothing of the matter too. Nothing in such a text carries the answer:
# it is not supported, and what it owes to any passage is little.

# %%
asked = "What is the pass key?"
empty = Document(" ".join(filler[:110]), name="nothing.txt")
absent = engine.generate(asked, empty, max_new_tokens=24, method="focus", sources=True)
print(absent.text, "supported:", absent.supported, f"({absent.explanation.support:.1f} nats)")

# %% [markdown]
# Support means that the text carries the words of the answer, and not that it answers the question. Where another
# number stands in the text, this model takes that one; the source shows what it is about.

# %%
mistaken = engine.generate(asked, [empty, diary], max_new_tokens=24, method="focus", sources=True)
print(mistaken.text, "supported:", mistaken.supported, *map(str, mistaken.sources))

# %% [markdown]
# ## A page to show around
#
# The same as `focusllm ask --html report.html`: the answer with numbered sources, the documents as strips, and the
# table of tokens by chunks. The file needs nothing else.

# %%
page = Path(gettempdir()) / "sources.html"
page.write_text(source_page(question, answer.text, [letter, diary], explanation), encoding="utf-8")
print(page, f"{page.stat().st_size:,} bytes")
