"""What a FocusLLM answer owes to its chunks: every chunk enters it through one slot, and a slot can be hidden.

    memory_t   = candidates of the chunks after the answer's first t tokens       # once, as while it was generated
    logits_t   = frozen decoder over local context + t tokens, slots hidden       # one row for each part left out

A chunk without some of its tokens is read anew, and its candidates take the place of the chunk's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from focus_core.attention.memory import Memory
from focus_core.attention.slot_attention import SlotAttention, is_watchable
from focus_core.cache.chunks import ChunkSet
from focus_core.device import require_memory
from focus_core.methods.base import TokenizedQuestion, pad_left
from focus_core.methods.evidence import Cost, LeftOut, ReadChunks, by_chunk, tokens_left
from focus_core.methods.focus import FocusModel
from focus_core.text.documents import TokenIds


class FocusEvidence:
    """The evidence of one answer.

    Args:
        question: with its answer
        chunks: called once, when their memory is needed
    """

    def __init__(self, model: FocusModel, question: TokenizedQuestion, chunks: ReadChunks) -> None:
        self._model, self._question, self._read = model, question, chunks
        self._answer = list(question.generated)
        asked = question.asked
        self._local, self._prompt = asked.local_context, asked.dynamic_prompt
        self.attended: Tensor | None = None

    def begin(self) -> None:
        slots = len(self._question.chunks) * len(self._answer)
        nbytes = 2 * slots * self._model.parts.num_layers * self._model.bytes_per_layer  # twice while they are joined
        require_memory(nbytes, self._model.device, what=f"the memory of each of {len(self._answer):,} answer tokens")
        _ = self._chunks

    def cost(self, left_out: Sequence[LeftOut], tokens: Sequence[int] | None = None) -> Cost:
        targets = self._targets(tokens)
        local = len(left_out) * sum(len(self._local) + target for target in targets)
        cost = Cost(len(list(self._passes(len(left_out), targets))), local)
        if "_memory" not in self.__dict__:
            cost += self._cost_of_memory(len(self._question.chunks), len(self._answer))
        anew = self._read_anew(left_out)
        if anew:
            lengths = [len(self._row_without(part)) for part in anew]
            read = Cost(-(-sum(lengths) // self._model.tokens_per_pass), sum(lengths))
            cost += read + self._cost_of_memory(len(anew), targets[-1] + 1)
        return cost

    def log_probs(self, left_out: Sequence[LeftOut], tokens: Sequence[int] | None = None) -> Tensor:
        targets = self._targets(tokens)
        anew = self._read_anew(left_out)
        hidden = torch.zeros(len(left_out), len(self._question.chunks), dtype=torch.bool)
        for row, one in enumerate(left_out):
            hidden[row, self._apart(one)[0]] = True
        # `[layers, answer, kv_heads, 1, head_dim]` of each chunk that was read anew
        columns = dict(zip(anew, self._columns_of(anew, targets[-1] + 1), strict=True)) if anew else {}
        found = torch.empty(len(left_out), len(targets))
        for rows in self._passes(len(left_out), targets):
            parts, places = [row for row, _ in rows], [place for _, place in rows]
            said = [targets[place] for place in places]
            ids, padding = pad_left([[*self._local, *self._answer[:target]] for target in said])
            memory = self._memory_of([left_out[row] for row in parts], said, columns)
            unused = torch.tensor(padding) if any(padding) else None
            seen = self._watch(left_out, rows)
            logits = self._model.next_token_logits(ids, memory, padding=unused, hidden=hidden[parts], attention=seen)
            log_probs = logits.float().log_softmax(-1)
            next_tokens = torch.tensor([self._answer[target] for target in said], device=logits.device)
            found[parts, places] = log_probs.gather(-1, next_tokens[:, None])[:, 0].cpu()
            if seen is not None:
                self._attended(seen, [target for row, target in zip(parts, said, strict=True) if not left_out[row]])
        return found

    def _watch(self, left_out: Sequence[LeftOut], rows: Sequence[tuple[int, int]]) -> SlotAttention | None:
        """Of a pass: what is attended to in those rows from which nothing is left out."""
        whole = [place for place, (row, _) in enumerate(rows) if not left_out[row]]
        if not whole or not is_watchable(self._model.model):
            return None
        return SlotAttention(torch.tensor(whole, device=self._model.device), len(self._question.chunks))

    def _attended(self, seen: SlotAttention, targets: Sequence[int]) -> None:
        if self.attended is None:
            self.attended = torch.zeros(len(self._answer), len(self._question.chunks))
        self.attended[list(targets)] = seen.shares().cpu()

    def _passes(self, left_out: int, targets: Sequence[int]) -> Iterator[list[tuple[int, int]]]:
        """The rows of each pass: which of the parts is left out, and which of the targets follows."""
        rows: list[tuple[int, int]] = []
        for place, target in enumerate(targets):
            size = max(1, self._model.tokens_per_pass // (len(self._local) + target + len(self._question.chunks)))
            for row in range(left_out):
                if len(rows) >= size:
                    yield rows
                    rows = []
                rows.append((row, place))
        if rows:
            yield rows

    def _targets(self, tokens: Sequence[int] | None) -> Sequence[int]:
        return range(len(self._answer)) if tokens is None else tokens

    # --- memories -----------------------------------------------------------------------------------------------------

    @cached_property
    def _memory(self) -> Memory:
        """Of every token of the answer: `[layers, answer, kv_heads, chunks, head_dim]`."""
        return self._memory_after(self._chunks, len(self._answer))

    @cached_property
    def _chunks(self) -> ChunkSet:
        return self._read()

    def _memory_after(self, chunks: ChunkSet, targets: int) -> Memory:
        """Of the first tokens of the answer."""
        appended, new, found = self._model.start_answer(chunks), self._prompt, list[Memory]()
        for token in self._answer[:targets]:
            found.append(self._model.decode_candidates(chunks, torch.tensor([new]), appended))
            new = [new[-1], token]
        return Memory(torch.cat([m.keys for m in found], dim=1), torch.cat([m.values for m in found], dim=1))

    def _columns_of(self, anew: Sequence[LeftOut], targets: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the candidates of chunks that are read without some tokens, at the chunks' own slots."""
        rows = [self._row_without(part) for part in anew]
        read = self._memory_after(ChunkSet.of(self._model.prefill(rows)), targets)
        slots = torch.tensor([_chunk_of(part) for part in anew], device=self._model.device)
        distance = slots - torch.arange(len(anew), device=self._model.device)
        keys = self._model.positions.move(read.keys, distance.expand(targets, -1))
        return [(keys[:, :, :, [slot]], read.values[:, :, :, [slot]]) for slot in range(len(anew))]

    def _memory_of(
        self, rows: Sequence[LeftOut], targets: Sequence[int], columns: dict[LeftOut, tuple[Tensor, Tensor]]
    ) -> Memory:
        """Of each row the memory of its token of the answer, `[layers, rows, kv_heads, chunks, head_dim]`."""
        states = []
        for kind, whole in enumerate((self._memory.keys, self._memory.values)):
            own = whole[:, list(targets)]
            for row, (one, target) in enumerate(zip(rows, targets, strict=True)):
                for part in self._apart(one)[1] if columns else ():
                    own[:, row, :, _chunk_of(part)] = columns[part][kind][:, target, :, 0]
            states.append(own)
        return Memory(states[0], states[1])

    # --- what is left out ---------------------------------------------------------------------------------------------

    def _read_anew(self, left_out: Sequence[LeftOut]) -> list[LeftOut]:
        """The parts of chunks that are left out, each once; whole chunks need no reading."""
        return list(dict.fromkeys(part for one in left_out for part in self._apart(one)[1]))

    def _apart(self, left_out: LeftOut) -> tuple[list[int], list[LeftOut]]:
        """The chunks that are left out whole, and the parts of others."""
        whole, parts = list[int](), list[LeftOut]()
        for chunk, part in by_chunk(left_out).items():
            if tokens_left(self._question.chunks[chunk].token_ids, part):
                parts.append(part)
            else:
                whole.append(chunk)
        return whole, parts

    def _row_without(self, part: LeftOut) -> TokenIds:
        chunk = self._question.chunks[_chunk_of(part)]
        return [*chunk.opening, *tokens_left(chunk.token_ids, part)]

    # --- sizes --------------------------------------------------------------------------------------------------------

    def _cost_of_memory(self, chunks: int, targets: int) -> Cost:
        """Dynamic prompt and the first tokens of the answer after every chunk, a token of the answer at a time."""
        lengths = [len(self._prompt), *[2] * (targets - 1)]
        passes = (-(-chunks // self._model.rows_per_pass(new, self._model.tokens_per_pass)) for new in lengths)
        return Cost(sum(passes), chunks * sum(lengths))


def _chunk_of(part: LeftOut) -> int:
    return next(iter(part)).chunk
