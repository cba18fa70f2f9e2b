"""Hits become whole documents: exact where that can be proved, with a warning where not, never over budget unseen."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core import SummaryIndex, VectorStoreIndex
from llama_index.core.node_parser import SentenceSplitter, TokenTextSplitter
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import BaseNode, Document, NodeRelationship, NodeWithScore, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict

from focus_core.errors import ConfigError, ContextOverflowError
from focus_core.evaluation.facts import filler_sentences
from focus_integrations.llama_index import FocusLLM, FocusSynthesizer, WholeDocumentPostprocessor
from focus_integrations.llama_index.whole import joined, whole_documents
from tests.integrations.llama_index.drivers import Found, TinyEmbedding, as_documents

PROSE = " ".join(filler_sentences(random.Random(1), 80))
PARAGRAPHS = "\n\n".join(" ".join(filler_sentences(random.Random(seed), 9)) for seed in range(8)) + "\n"
REPETITIVE = "The tide came in. The tide went out. " * 60

Cut = tuple[str, list[NodeWithScore]]


def split(text: str, overlap: int = 12, **metadata: str) -> list[NodeWithScore]:
    document = Document(text=text, id_="doc", metadata=metadata)
    splitter = SentenceSplitter(chunk_size=60, chunk_overlap=overlap, tokenizer=str.split)
    return [NodeWithScore(node=node) for node in splitter.get_nodes_from_documents([document])]


def store_of(*nodes: BaseNode) -> SimpleDocumentStore:
    store = SimpleDocumentStore()
    store.add_documents(list(nodes))
    return store


def hit(text: str, document: str, score: float | None = None, start: int | None = None) -> NodeWithScore:
    """A passage of a document that nothing else is known about."""
    node = TextNode(text=text, start_char_idx=start)
    node.relationships[NodeRelationship.SOURCE] = Document(text="not known", id_=document).as_related_node_info()
    return NodeWithScore(node=node, score=score)


# --- what the text is -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [PROSE, PARAGRAPHS, REPETITIVE], ids=["prose", "paragraphs", "repetitive"])
def test_with_the_original_it_is_always_exact(text: str) -> None:
    original = Document(text=text, id_="doc", metadata={"title": "Tides"})
    nodes = split(text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = whole_documents([nodes[1], nodes[-1], nodes[1]], store_of(original))
    assert (found.text, found.exact, found.metadata) == (text, True, {"title": "Tides"})
    assert found.hits == [nodes[1], nodes[-1], nodes[1]]


@pytest.mark.parametrize("overlap", [0, 12, 30])
@pytest.mark.parametrize("text", [PROSE, PARAGRAPHS], ids=["prose", "paragraphs"])
def test_from_all_nodes_it_is_exact_and_proved(text: str, overlap: int) -> None:
    """By the hash of the original that every node keeps: overlaps are gone, and what splitters took away is back."""
    nodes = split(text, overlap, title="Tides")
    assert len(nodes) > 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = whole_documents(nodes[::-1], None)
        (known,) = whole_documents(nodes[3:4], store_of(*(node.node for node in nodes)))
    assert found.text == known.text == text
    assert found.exact
    assert found.metadata == {"title": "Tides"}


def test_what_cannot_be_proved_is_warned_about() -> None:
    """Offsets of a text that repeats itself are wrong: LlamaIndex finds them by searching."""
    nodes = split(REPETITIVE)
    with pytest.warns(UserWarning, match="Text may be missing or repeated"):
        (found,) = whole_documents(nodes, None)
    assert not found.exact


def test_a_short_document_of_one_node_is_exact() -> None:
    """It needs no docstore and no warning, although it names a source."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = whole_documents(split("One sentence only."), None)
    assert (found.text, found.exact) == ("One sentence only.", True)


def test_other_splitters_and_stores_keep_what_is_needed() -> None:
    """Vector stores give nodes back from their metadata."""
    splitter = TokenTextSplitter(chunk_size=40, chunk_overlap=10, tokenizer=str.split)
    nodes = splitter.get_nodes_from_documents([Document(text=PROSE, id_="doc")])
    again = [metadata_dict_to_node(node_to_metadata_dict(node), text=node.get_content()) for node in nodes]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = whole_documents([NodeWithScore(node=node) for node in again], None)
    assert found.text == PROSE


def test_overlaps_are_believed_only_where_texts_agree() -> None:
    """A wrong offset must not eat text."""
    right = [TextNode(text="abcdef", start_char_idx=0), TextNode(text="efgh", start_char_idx=4)]
    wrong = [TextNode(text="abcdef", start_char_idx=0), TextNode(text="wxyz", start_char_idx=4)]
    touching = [TextNode(text="abc", start_char_idx=0), TextNode(text="def", start_char_idx=3)]
    unknown = [TextNode(text="def"), TextNode(text="abc", start_char_idx=0)]
    assert joined(right) == "abcdefgh"
    assert joined(wrong) == "abcdef\nwxyz"
    assert joined(touching) == "abcdef"
    assert joined(unknown) == "def\nabc"
    assert joined([*right, *right]) == "abcdefgh"


def by_hand(texts: Sequence[str], separator: str, *, linked: bool = False) -> tuple[str, list[NodeWithScore]]:
    """A document whose nodes a program has made: they tell no offsets."""
    document = Document(text=separator.join(texts), id_="doc")
    nodes = [TextNode(text=text) for text in texts]
    for node in nodes:
        node.relationships[NodeRelationship.SOURCE] = document.as_related_node_info()
    for before, after in pairwise(nodes) if linked else ():
        before.relationships[NodeRelationship.NEXT] = after.as_related_node_info()
        after.relationships[NodeRelationship.PREVIOUS] = before.as_related_node_info()
    return document.text, [NodeWithScore(node=node) for node in nodes]


def assert_exact(hits: list[NodeWithScore], text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = whole_documents(hits, None)
    assert (found.text, found.exact) == (text, True)


@pytest.mark.parametrize("separator", [" ", "", "\n", "\n\n"], ids=repr)
def test_nodes_without_offsets_are_put_together_exactly(separator: str) -> None:
    text, hits = by_hand(filler_sentences(random.Random(3), 40), separator)
    assert_exact(hits, text)


def test_links_between_nodes_give_the_order() -> None:
    """Retrievers return them by score."""
    text, hits = by_hand(filler_sentences(random.Random(3), 40), " ", linked=True)
    random.Random(0).shuffle(hits)
    assert_exact(hits, text)


def test_links_in_a_circle_lose_no_node() -> None:
    text, hits = by_hand(["one", "two", "three"], " ", linked=True)
    hits[0].node.relationships[NodeRelationship.PREVIOUS] = hits[2].node.as_related_node_info()
    hits[2].node.relationships[NodeRelationship.NEXT] = hits[0].node.as_related_node_info()
    assert_exact(hits, text)


@pytest.mark.parametrize("kind", ["by hand", "repetitive"])
def test_two_thousand_tiny_nodes_are_the_whole_text_again(kind: str) -> None:
    """A sentence each: the document is read whole, not as two thousand documents with a slot of memory each."""
    sentences = filler_sentences(random.Random(5), 2001)
    if kind == "repetitive":  # offsets are found by searching, and are wrong
        sentences = ["The grass is green."] * 1000 + ["The pass key is 71402."] + ["The grass is green."] * 1000
    text, hits = by_hand(sentences, " ")
    if kind != "by hand":
        cut = SentenceSplitter(chunk_size=5, chunk_overlap=0, include_metadata=False, tokenizer=str.split)
        hits = [NodeWithScore(node=node) for node in cut.get_nodes_from_documents([Document(text=text, id_="doc")])]
    assert len(hits) >= 2001
    assert_exact(hits, text)


@st.composite
def cut_up(draw: st.DrawFn, separators: Sequence[str], words: st.SearchStrategy[str] | None = None) -> Cut:
    """A text and its nodes, in any order; without `words` no word comes twice."""
    count = draw(st.integers(1, 60))
    chosen = [draw(words) if words is not None else f"word{number}" for number in range(count)]
    between = draw(st.lists(st.sampled_from(separators), min_size=count - 1, max_size=count - 1))
    text = "".join(word + gap for word, gap in zip(chosen, [*between, ""], strict=True))
    size = draw(st.integers(3, 20))
    splitter = draw(st.sampled_from([SentenceSplitter, TokenTextSplitter]))(
        chunk_size=size, chunk_overlap=draw(st.integers(0, size - 1)), tokenizer=str.split, include_metadata=False
    )
    nodes = splitter.get_nodes_from_documents([Document(text=text, id_="doc")])
    return text, [NodeWithScore(node=node) for node in draw(st.permutations(nodes))]


@given(cut_up([" ", ". ", ".\n\n"]))
def test_paragraphs_are_put_together_exactly(cut: Cut) -> None:
    """Whatever the splitter and its sizes, the overlaps, and the order in which the nodes come."""
    text, nodes = cut
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = whole_documents(nodes, None)
    assert (found.text, found.exact) == (text, True)


@given(cut_up([" ", "\n", ". ", "   ", " \n\n\n"], words=st.sampled_from(["the", "tide", "came", "in", "in."])))
def test_what_is_called_exact_is_exact(cut: Cut) -> None:
    """A text that repeats itself, or with unequal gaps, may not be told from its nodes; then there is a warning."""
    text, nodes = cut
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        (found,) = whole_documents(nodes, None)
    assert found.text == text if found.exact else warned
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = whole_documents(nodes, store_of(Document(text=text, id_="doc")))
    assert (found.text, found.exact) == (text, True)


# --- the postprocessor ------------------------------------------------------------------------------------------------


def test_documents_stand_where_their_first_hit_was_with_their_best_score() -> None:
    documents = as_documents("text 0", "text 1", "text 2")
    hits = [hit("a", "doc-2", 0.4), hit("b", "doc-0", 0.9), hit("c", "doc-2", 0.7), hit("d", "doc-1")]
    made = WholeDocumentPostprocessor(docstore=store_of(*documents)).postprocess_nodes(hits)
    assert [(node.node.node_id, node.score) for node in made] == [("doc-2", 0.7), ("doc-0", 0.9), ("doc-1", None)]
    assert [node.node.get_content() for node in made] == ["text 2", "text 0", "text 1"]


def test_an_original_comes_as_it_was_stored() -> None:
    """Which metadata a stock synthesizer may show is one of the things that users set on it."""
    original = Document(text="text", id_="doc", metadata={"secret": "x"}, excluded_llm_metadata_keys=["secret"])
    (made,) = WholeDocumentPostprocessor(docstore=store_of(original)).postprocess_nodes([hit("te", "doc")])
    assert made.node.excluded_llm_metadata_keys == ["secret"]
    assert made.node.metadata == {"secret": "x"}


async def test_it_works_asynchronously() -> None:
    processor = WholeDocumentPostprocessor(docstore=store_of(*as_documents("text")))
    (made,) = await processor.apostprocess_nodes([hit("te", "doc-0", 0.5)])
    assert (made.node.get_content(), made.score) == ("text", 0.5)


def test_without_the_original_it_warns() -> None:
    with pytest.warns(UserWarning, match="doc-0"):
        made = WholeDocumentPostprocessor(docstore=SimpleDocumentStore()).postprocess_nodes(
            [hit("second", "doc-0", start=60), hit("first", "doc-0", start=0)]
        )
    assert [node.node.get_content() for node in made] == ["first\nsecond"]
    assert made[0].node.node_id == "doc-0"


def budgeted(llm: FocusLLM, **options: Any) -> list[str]:
    """What three documents of ten tokens each become."""
    documents = as_documents(*(str(number) * 10 for number in range(3)))
    processor = WholeDocumentPostprocessor(docstore=store_of(*documents), llm=llm, **options)
    hits = [hit("x", f"doc-{number}") for number in range(3)]
    return [node.node.get_content()[0] for node in processor.postprocess_nodes(hits)]


def test_a_budget_is_never_exceeded_in_silence(tiny_settings: dict[str, Any], recwarn: pytest.WarningsRecorder) -> None:
    llm = FocusLLM(**tiny_settings)
    assert budgeted(llm, max_document_tokens=30) == ["0", "1", "2"]
    assert not recwarn
    with pytest.raises(ContextOverflowError, match="3 of 3 documents have 30 tokens, and max_document_tokens=29"):
        budgeted(llm, max_document_tokens=29)
    with pytest.warns(UserWarning, match="Left out, because they came last: doc-1, doc-2"):
        assert budgeted(llm, max_document_tokens=19, on_overflow="drop") == ["0"]
    with pytest.raises(ContextOverflowError):  # nothing would be left
        budgeted(llm, max_document_tokens=9, on_overflow="drop")


def test_the_old_name_of_the_budget_is_refused_with_the_new_one() -> None:
    """Elsewhere in this package `max_tokens` is the length of an answer."""
    with pytest.raises(ConfigError, match="Give max_document_tokens"):
        WholeDocumentPostprocessor(docstore=SimpleDocumentStore(), max_tokens=10)  # type: ignore[call-arg]


def test_a_budget_needs_the_model_that_counts() -> None:
    with pytest.raises(ConfigError, match="llm=FocusLLM"):
        WholeDocumentPostprocessor(docstore=SimpleDocumentStore(), max_document_tokens=10)


@pytest.mark.parametrize("kind", [SummaryIndex, VectorStoreIndex])
def test_in_an_index_whole_documents_are_the_sources(tiny_settings: dict[str, Any], kind: Any) -> None:
    """With our synthesizer behind it, which takes them as they are."""
    llm, documents = FocusLLM(**tiny_settings), as_documents(PROSE, PARAGRAPHS)
    splitter = SentenceSplitter(chunk_size=60, chunk_overlap=12, tokenizer=str.split)
    index = kind.from_documents(documents, transformations=[splitter], embed_model=TinyEmbedding())
    index.docstore.add_documents(documents)
    engine = index.as_query_engine(
        llm=llm,
        response_synthesizer=FocusSynthesizer(llm),
        node_postprocessors=[WholeDocumentPostprocessor(docstore=index.docstore)],
    )
    response = engine.query(PROSE[:200])
    texts = {node.node.node_id: node.node.get_content() for node in response.source_nodes}
    assert texts.items() <= {"doc-0": PROSE, "doc-1": PARAGRAPHS}.items()
    assert texts["doc-0"] == PROSE


def test_errors_come_through_the_query_engine(tiny_settings: dict[str, Any]) -> None:
    llm = FocusLLM(**tiny_settings)
    processor = WholeDocumentPostprocessor(docstore=store_of(*as_documents("text")), llm=llm, max_document_tokens=2)
    engine = RetrieverQueryEngine(
        Found([hit("x", "doc-0")]), response_synthesizer=FocusSynthesizer(llm), node_postprocessors=[processor]
    )
    with pytest.raises(ContextOverflowError, match="max_document_tokens=2"):
        engine.query("Who?")
