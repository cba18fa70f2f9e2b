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
# # LlamaIndex: a query engine over whole documents
#
# An index over one long document and one over several, answered by `FocusSynthesizer`: one call with whole documents,
# streaming, source nodes. Then the same questions with LlamaIndex's own synthesizers beside it, on the same model.
# Everything runs on the small model that comes with the package: no GPU, no network, no key. It is not always right;
# its card, `focus_core/embedded/README.md`, says how often.

# %%
import random
import re
import time
from zlib import crc32

import matplotlib.pyplot as plt
from llama_index.core import Document, SummaryIndex, VectorStoreIndex, get_response_synthesizer
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.indices.prompt_helper import PromptHelper
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.prompts import PromptTemplate

from focus_core.evaluation.facts import Fact, filler_sentences, hide
from focus_integrations.llama_index import FocusLLM, FocusSynthesizer

llm = FocusLLM(max_tokens=32)
print(llm.metadata.context_window, "tokens of documents fit")

# %% [markdown]
# ## A long document
#
# Made-up sentences with four facts among them, almost three times as long as the model's window.

# %%
facts = [
    Fact("access code", "the amber falcon", "48213"),
    Fact("home city", "Clara Fenwick", "Lisbon"),
    Fact("population", "Lake Marden", "90576"),
    Fact("serial number", "the silver anchor", "304187"),
]
questions = [f"What is the {fact.attribute} of {fact.entity}?" for fact in facts]
rng = random.Random(3)
text = hide(facts, filler_sentences(rng, 400), rng, depths=[0.1, 0.35, 0.6, 0.85]).text
book = Document(text=text, id_="book", metadata={"title": "A long book"})
print(f"{len(llm.tokenize(text)):,} tokens")

# %% [markdown]
# `SummaryIndex` cuts it into overlapping pieces. The original goes into the docstore as well, so that the synthesizer
# can hand over what was written and not what is left of it after cutting.

# %%
index = SummaryIndex.from_documents([book])
index.docstore.add_documents([book])
query_engine = index.as_query_engine(llm=llm, response_synthesizer=FocusSynthesizer(llm, docstore=index.docstore))

started = time.perf_counter()
response = query_engine.query(questions[0])
print(response)
print(f"{time.perf_counter() - started:.1f} s", response.metadata["focus"])

# %% [markdown]
# One call read the whole book, once. The next question finds all of it in memory: `cache_creation` is 0.

# %%
for fact, question in zip(facts, questions, strict=True):
    started = time.perf_counter()
    response = query_engine.query(question)
    seconds, read = time.perf_counter() - started, response.metadata["focus"]["cache_creation"]
    print(f"{question:<48} {response!s:<56} (stated: {fact.value}) {seconds:.1f} s, {read} tokens read")

# %% [markdown]
# ## Streaming
#
# Text comes as soon as it is certain. Usage is there when the stream has ended.

# %%
synthesizer = FocusSynthesizer(llm, docstore=index.docstore, streaming=True)
stream = index.as_query_engine(llm=llm, response_synthesizer=synthesizer).query(questions[2])
for piece in stream.response_gen:
    print(piece, end="|")
print("\n", stream.metadata["focus"])

# %% [markdown]
# In a notebook, `await` works at the top level; the event loop stays free meanwhile.

# %%
print(await query_engine.aquery(questions[3]))

# %% [markdown]
# ## Several documents
#
# Six short documents with one fact each, in a vector index. Its embedding counts words; take a real one.


# %%
class WordEmbedding(BaseEmbedding):
    def _get_text_embedding(self, text):
        vector = [0.0] * 512
        for word in re.findall(r"\w{4,}", text.lower()):
            vector[crc32(word.encode()) % 512] += 1.0
        return vector

    def _get_query_embedding(self, query):
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query):
        return self._get_text_embedding(query)


more = [*facts, Fact("room number", "Oscar Pemberton", "2217"), Fact("postal code", "Port Elwick", "61840")]
documents = [
    Document(text=hide([fact], filler_sentences(rng, 100), rng).text, id_=f"letter {number}")
    for number, fact in enumerate(more, 1)
]
vectors = VectorStoreIndex.from_documents(
    documents,
    transformations=[SentenceSplitter(chunk_size=96, chunk_overlap=24)],
    embed_model=WordEmbedding(),
)
vectors.docstore.add_documents(documents)

# %% [markdown]
# The retriever finds passages. The model reads the documents they are from; the source nodes are the passages.

# %%
letters = vectors.as_query_engine(
    llm=llm,
    similarity_top_k=3,
    response_synthesizer=FocusSynthesizer(llm, docstore=vectors.docstore),
)
for fact in more[3:]:
    response = letters.query(f"What is the {fact.attribute} of {fact.entity}?")
    print(f"{fact.attribute} of {fact.entity}: {response} (stated: {fact.value})")
    for source in response.source_nodes:
        print(f"    {source.score:.2f} {source.node.source_node.node_id}: {source.node.get_content()[:60]} …")

# %% [markdown]
# ## The stock synthesizers beside it
#
# The same model, book and questions. `CompactAndRefine`, the default, asks about the first part and then lets the model
# improve its answer with every further part. `TreeSummarize` asks about all parts and then about the answers. Here they
# get parts of the size that fits the model's window, and bare prompts, because this model knows no instructions. What
# is counted: calls of the model, tokens it was given, seconds, and right answers.

# %%
ask = PromptTemplate("{context_str}\n\n{query_str}")
refine = PromptTemplate("{existing_answer}\n\n{context_msg}\n\n{query_str}")
stock = {
    "llm": llm,
    "prompt_helper": PromptHelper(context_window=2000, num_output=32, tokenizer=llm.tokenize),
    "text_qa_template": ask,
    "summary_template": ask,
    "refine_template": refine,
}
synthesizers = {
    "CompactAndRefine": get_response_synthesizer(response_mode="compact", **stock),
    "TreeSummarize": get_response_synthesizer(response_mode="tree_summarize", **stock),
    "FocusSynthesizer": FocusSynthesizer(llm, docstore=index.docstore),
}
rows = []
for name, synthesizer in synthesizers.items():
    engine = index.as_query_engine(llm=llm, response_synthesizer=synthesizer)
    counter = TokenCountingHandler(tokenizer=llm.tokenize)
    llm.callback_manager = CallbackManager([counter])
    started = time.perf_counter()
    answers = [str(engine.query(question)) for question in questions[:2]]
    seconds = time.perf_counter() - started
    right = sum(fact.value in answer for fact, answer in zip(facts[:2], answers, strict=True))
    rows.append((name, len(counter.llm_token_counts), counter.prompt_llm_token_count, seconds, right))
for name, calls, tokens, seconds, right in rows:
    print(f"{name:<18}{calls:>4} calls {tokens:>8,} tokens given {seconds:>7.1f} s  {right} of 2 right")

# %%
figure, axes = plt.subplots(figsize=(6, 2.2), layout="constrained")
axes.barh([row[0] for row in rows], [row[1] for row in rows], color=["#7570b3", "#7570b3", "#1b9e77"])
axes.set(xlabel="calls of the model for two questions", title="One call for each question")
axes.invert_yaxis()

# %% [markdown]
# `FocusSynthesizer` was given the whole book for both questions as well, but had read it before: what is not new is not
# read again. The others have nothing to keep, because every part comes in another prompt.
