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
# # Whole documents in LangChain
#
# One import, and a chain can ask about documents that are many times as long as the model's window. Everything here
# runs on the small model that comes with the package: no GPU, no account, no network. It looks up what a text states
# and does nothing else; its card, `focus_core/embedded/README.md`, says how often it is right.

# %%
import random
import time

from langchain_core.documents import Document
from langchain_core.prompts import PromptTemplate

from focus_core.evaluation.facts import Fact, filler_sentences, hide
from focus_integrations.langchain import ChatFocusLLM, FocusLLM, WholeDocumentRetriever, create_focus_documents_chain

# %% [markdown]
# ## Some documents
#
# A long book of made-up sentences with three facts somewhere in it, and a letter with one.

# %%
facts = [
    Fact("access code", "the amber falcon", "48213"),
    Fact("home city", "Clara Fenwick", "Lisbon"),
    Fact("population", "Lake Marden", "90576"),
]
rng = random.Random(2)
book = Document(
    hide(facts, filler_sentences(rng, 600), rng, depths=[0.2, 0.5, 0.8]).text, metadata={"title": "The book"}
)
letter = Document(
    "Dear Anna, the captain of the northern lighthouse is Silas Marsh. Yours, Ben.", metadata={"title": "A letter"}
)
documents = [book, letter]

llm = FocusLLM(max_tokens=32)
tokens = llm.get_num_tokens(book.page_content)
print(f"The book has {tokens:,} tokens, {tokens / llm.engine.config.window:.0f} windows of the model.")

# %% [markdown]
# ## `FocusLLM` in a chain
#
# It is a language model like any other: it goes behind a prompt with `|`. What it takes on top is `documents`, on a
# call or bound to the model.

# %%
prompt = PromptTemplate.from_template("What is the {property} of {owner}?")
chain = prompt | llm.bind(documents=documents)
print(chain.invoke({"property": "access code", "owner": "the amber falcon"}))

# %% [markdown]
# A batch through the chain is one call of the engine: all questions are answered in the same passes through the
# model.

# %%
asked = [{"property": fact.attribute, "owner": fact.entity} for fact in facts]
for fact, answer in zip(facts, chain.batch(asked), strict=True):
    print(f"{fact.attribute} of {fact.entity}: {answer}   (stated: {fact.value})")

# %% [markdown]
# ## Chat with whole documents
#
# The chat model takes documents beside the messages, or in them, as LangChain's standard `text-plain` blocks. They
# stay with the conversation.

# %%
from langchain_core.messages import HumanMessage
from langchain_core.messages.content import create_plaintext_block, create_text_block

chat = ChatFocusLLM(max_tokens=32)
blocks = [create_plaintext_block(text=document.page_content) for document in documents]
history = [HumanMessage([*blocks, create_text_block("What is the home city of Clara Fenwick?")])]
reply = chat.invoke(history)
print(reply.content)

# %%
history += [reply, HumanMessage("What is the population of Lake Marden?")]
print(chat.invoke(history).content)

# %% [markdown]
# ## Streaming
#
# `create_focus_documents_chain` takes the place of `create_stuff_documents_chain`: same input, same output. Tokens
# come as soon as they are certain; the documents have been read above, so this starts at once.

# %%
answering = create_focus_documents_chain(chat, PromptTemplate.from_template("{input}"))
question = "What is the access code of the amber falcon?"
for piece in answering.stream({"context": documents, "input": question}):
    print(piece, end="", flush=True)

# %% [markdown]
# In a notebook the event loop is running, and it runs on while the model works.

# %%
print(await answering.ainvoke({"context": documents, "input": question}))

# %% [markdown]
# ## Retrieval of whole documents
#
# A vector store finds passages, and passages leave things out. Here a hit only decides *which documents* are read,
# and they are read whole. `DeterministicFakeEmbedding` finds passages at random, which is good enough for two
# documents; your embedding model goes in its place.

# %%
from langchain_classic.chains import create_retrieval_chain
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.stores import InMemoryStore
from langchain_core.vectorstores import InMemoryVectorStore

passages, originals = InMemoryVectorStore(DeterministicFakeEmbedding(size=64)), InMemoryStore()
for document in documents:
    key, text = document.metadata["title"], document.page_content
    originals.mset([(key, document)])
    cut = [text[start : start + 2000] for start in range(0, len(text), 2000)]
    passages.add_documents([Document(passage, metadata={"doc_id": key}) for passage in cut])

retriever = WholeDocumentRetriever(vectorstore=passages, docstore=originals, k=20)
found = create_retrieval_chain(retriever, answering).invoke({"input": question})
print("hits:  ", {passage.metadata["doc_id"] for passage in passages.similarity_search(question, k=20)})
print("read:  ", [f"{one.metadata['title']} ({len(one.page_content):,} letters)" for one in found["context"]])
print("answer:", found["answer"])

# %% [markdown]
# ## What a second question costs
#
# What was read is kept. `usage_metadata` says so in LangChain's own words: `cache_creation` are tokens that were read
# for this answer, `cache_read` those that had been read before.

# %%
other = Document(hide([facts[0]], filler_sentences(random.Random(3), 600), rng).text)
for question in ("What is the access code of the amber falcon?", "What is the population of Lake Marden?"):
    started = time.perf_counter()
    usage = chat.invoke(question, documents=[other], max_tokens=8).usage_metadata
    print(f"{time.perf_counter() - started:5.2f} s  {usage['input_token_details']}")

# %% [markdown]
# A document that joins is read; those that are known are not read again, in whatever order they come.

# %%
usage = chat.invoke(question, documents=[letter, other, "A third one, which is new."], max_tokens=8).usage_metadata
print(usage["input_token_details"])
