"""What a FocusLLM answer owes to its chunks: every chunk enters it through one slot, and a slot can be hidden.

    memory_t   = candidates of the chunks after the answer's first t tokens       # once, as while it was generated
    logits_t   = frozen decoder over local context + t tokens, slots hidden       # one row for each part left out

A chunk without some of its tokens is read anew, and its candidates take the place of the chunk's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from focus_core.attention.memory import Memory
from focus_core.cache.chunks import ChunkSet
from focus_core.methods.base import TokenizedQuestion
from focus_core.methods.evidence import Cost, LeftOut, ReadChunks, by_chunk, tokens_left
from focus_core.methods.focus import FocusModel
from focus_core.methods.hidden_tokens import log_probs_of
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

    def begin(self) -> None:
        _ = self._chunks

    def cost(self, left_out: Sequence[LeftOut], tokens: Sequence[int] | None = None) -> Cost:
        targets = self._targets(tokens)
        local = [len(self._local) + target for target in targets]
        passes = sum(-(-len(left_out) // self._rows_of(length)) for length in local)
        cost = Cost(passes, len(left_out) * sum(local))
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
        hidden = torch.tensor(
            [[self._is_whole(one, chunk) for chunk in range(len(self._question.chunks))] for one in left_out]
        )
        # `[layers, answer, kv_heads, 1, head_dim]` of each chunk that was read anew
        columns = dict(zip(anew, self._columns_of(anew, targets[-1] + 1), strict=True)) if anew else {}
        found = torch.empty(len(left_out), len(targets))
        for place, target in enumerate(targets):
            local = torch.tensor([[*self._local, *self._answer[:target]]])
            size = self._rows_of(local.shape[1])
            for start in range(0, len(left_out), size):
                rows = slice(start, start + size)
                memory = self._memory_of(left_out[rows], target, columns)
                ids = local.expand(len(left_out[rows]), -1)
                logits = self._model.next_token_logits(ids, memory, hidden=hidden[rows])
                of_target = log_probs_of(logits.float()[:, None], [self._answer[target]])
                found[rows, place] = of_target[:, 0].cpu()
        return found

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

    def _memory_of(self, rows: Sequence[LeftOut], target: int, columns: dict[LeftOut, tuple[Tensor, Tensor]]) -> Memory:
        """The memory of one token of the answer for each row: `[layers, rows, kv_heads, chunks, head_dim]`."""
        states = []
        for kind, whole in enumerate((self._memory.keys, self._memory.values)):
            own = whole[:, [target]].expand(-1, len(rows), -1, -1, -1)
            parts = [(row, part) for row, one in enumerate(rows) for part in by_chunk(one).values() if part in columns]
            own = own.clone() if parts else own
            for row, part in parts:
                own[:, row, :, _chunk_of(part)] = columns[part][kind][:, target, :, 0]
            states.append(own)
        return Memory(states[0], states[1])

    # --- what is left out ---------------------------------------------------------------------------------------------

    def _read_anew(self, left_out: Sequence[LeftOut]) -> list[LeftOut]:
        """The parts of chunks that are left out, each once; whole chunks need no reading."""
        parts = (part for one in left_out for chunk, part in by_chunk(one).items() if not self._is_whole(one, chunk))
        return list(dict.fromkeys(parts))

    def _is_whole(self, left_out: LeftOut, chunk: int) -> bool:
        return not tokens_left(self._question.chunks[chunk].token_ids, by_chunk(left_out).get(chunk, ()))

    def _row_without(self, part: LeftOut) -> TokenIds:
        chunk = self._question.chunks[_chunk_of(part)]
        return [*chunk.opening, *tokens_left(chunk.token_ids, part)]

    # --- sizes --------------------------------------------------------------------------------------------------------

    def _rows_of(self, local: int) -> int:
        """Rows of `local` tokens that pass the model together."""
        return max(1, self._model.tokens_per_pass // (local + len(self._question.chunks)))

    def _cost_of_memory(self, chunks: int, targets: int) -> Cost:
        """Dynamic prompt and the first tokens of the answer after every chunk, a token of the answer at a time."""
        lengths = [len(self._prompt), *[2] * (targets - 1)]
        passes = (-(-chunks // self._model.rows_per_pass(new, self._model.tokens_per_pass)) for new in lengths)
        return Cost(sum(passes), chunks * sum(lengths))


def _chunk_of(part: LeftOut) -> int:
    return next(iter(part)).chunk
