"""The training objective: the cross-entropy of every target, with the candidates it would have in use.

In use, every new token has candidates of its own: a chunk is followed by the dynamic prompt and the answer up to the
token before it, and only the last of these is the candidate (paper §2.2, eq. 1–5). Targets therefore never share
a memory, but nearly everything else:

    chunks = prefill(texts)                      no gradient: depends on nothing that learns (paper §2.2)
    prompts = append_prompts(chunks)             no gradient: ordinary tokens never see a candidate
    memory = append_candidates(chunks, prompts)  one candidate per chunk and target, all in one pass
    losses = local_losses(memory)                one row of local context per target after its own memory (paper eq. 6)

With a teacher (`distillation`), a part of the loss is the divergence from what the plain model would say after the one
chunk that holds the answer: the ordinary continuation of that chunk's row, whose keys and values are there already.

A candidate is the twin of an ordinary token: same token, same position. It sees its chunk, the prompt before its own
position and itself; no other candidate and nothing of another question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from focus_core.attention.chunk_pass import ChunkPass, active_pass
from focus_core.attention.memory import Memory
from focus_core.attention.passes import KeysAndValues, PassCache, until_done
from focus_core.cache.chunks import ChunkRow, ChunkSet
from focus_core.device import tokens_per_pass
from focus_core.methods.base import pad_left, without_unused
from focus_core.methods.focus import FocusModel
from focus_core.text.documents import TokenIds
from focus_core.training.examples import SupervisedQuestion, TrainingExample
from focus_core.training.kept import KeptChunks


class FocusLoss(nn.Module):
    """The frozen model and its projections as one module whose forward is the loss.

    Only the projections are registered: this module's parameters are the ones that learn, its state dict is saved, and
    data parallelism waits for no gradient that never comes.

    Args:
        model: its projections learn; everything else is frozen here
        recompute: keep no activations of candidates and local contexts for the backward pass, but compute them again
        distillation: share of the teacher in the loss, 0 to 1
        temperature: of teacher and student
        kept: where chunks are found that were read before; without it they are read each time
    """

    def __init__(
        self,
        model: FocusModel,
        *,
        recompute: bool = False,
        distillation: float = 0.0,
        temperature: float = 1.0,
        kept: KeptChunks | None = None,
    ) -> None:
        super().__init__()
        self._distillation, self._temperature = distillation, temperature
        model.model.requires_grad_(False)
        self.projections = model.projections.requires_grad_(True)
        self._method = _Method(model, recompute, kept)

    def forward(self, example: TrainingExample) -> Tensor:
        """The mean loss over the targets of one example."""
        return self._losses(example, self._distillation).mean()

    def target_losses(self, example: TrainingExample) -> Tensor:
        """Cross-entropy of every target `[targets]`, question by question."""
        return self._losses(example, 0.0)

    def _losses(self, example: TrainingExample, distillation: float) -> Tensor:
        method, targets = self._method, Targets.of(example, self._method.model.device)
        chunks = method.prefill(example.chunks, all_layers=distillation > 0)
        teacher = Teacher(None, 0.0, 1.0)
        if distillation > 0:
            teacher = Teacher(method.teacher_logits(chunks, example), distillation, self._temperature)
        prompts = method.append_prompts(chunks, targets)
        memory = method.append_candidates(chunks, prompts, targets)
        return method.local_losses(memory, targets, teacher)


@dataclass(frozen=True)
class Teacher:
    """What the plain model says in the place of each target.

    Attributes:
        logits: `[targets, vocab]`; `None` without a teacher
        share: of the divergence in the loss; the rest is cross-entropy
        temperature: of both distributions in the divergence, whose gradient it would make smaller by its square
    """

    logits: Tensor | None
    share: float
    temperature: float

    def losses(self, logits: Tensor, targets: Tensor, rows: slice) -> Tensor:
        """Of the student's `logits [rows, vocab]`: cross-entropy, and forward KL from the teacher, `[rows]`."""
        hard = F.cross_entropy(logits, targets, reduction="none")
        if self.logits is None:
            return hard
        student, wanted = ((one / self.temperature).log_softmax(-1) for one in (logits, self.logits[rows].float()))
        divergence = F.kl_div(student, wanted, reduction="none", log_target=True).sum(-1)
        return (1 - self.share) * hard + self.share * self.temperature**2 * divergence


@dataclass(frozen=True)
class Targets:
    """All targets of one example and the tokens that each of them sees. The prompts of all questions lie side by side.

    Example: the prompts `a b` (answer `c d`) and `x` (answer `y`), every answer token a target:

        prompt_ids          a b c | x     at 0 1 2 | 0 after the chunk, without tokens that nothing attends to
        candidate_ids       b c   | x     at 1 2   | 0, to predict c d | y
        candidate_visible   b sees a; c sees a b; x sees nothing; and each sees itself

    Attributes:
        prompt_ids: `[prompt]`, tokens read as ordinary ones
        prompt_offsets: `[prompt]`, their positions after the chunk
        prompt_visible: `[1, prompt, prompt]`
        candidate_ids: `[targets]`
        candidate_offsets: `[targets]`
        candidate_visible: `[1, targets, prompt + targets]`
        local_ids: `[targets, longest]`, the local context up to each target
        local_padding: unused tokens at the left of each row
        next_ids: `[targets]`, the targets themselves
    """

    prompt_ids: Tensor
    prompt_offsets: Tensor
    prompt_visible: Tensor
    candidate_ids: Tensor
    candidate_offsets: Tensor
    candidate_visible: Tensor
    local_ids: Tensor
    local_padding: list[int]
    next_ids: Tensor

    @classmethod
    def of(cls, example: TrainingExample, device: torch.device) -> Targets:
        prompt: list[tuple[int, int, int]] = []  # token, offset, question
        candidates: list[tuple[int, int, int]] = []
        local: list[list[int]] = []
        next_ids: list[int] = []
        for number, question in enumerate(example.questions):
            row = question.dynamic_prompt + question.answer
            before = len(question.dynamic_prompt) - 1  # the candidate of the answer's first token stands here
            prompt += [(row[at], at, number) for at in range(before + max(question.targets))]
            candidates += [(row[before + target], before + target, number) for target in question.targets]
            local += [question.local_context + question.answer[:target] for target in question.targets]
            next_ids += [question.answer[target] for target in question.targets]
        local_ids, local_padding = pad_left(local)
        prompts = torch.tensor(prompt, dtype=torch.long, device=device).view(-1, 3)
        twins = torch.tensor(candidates, dtype=torch.long, device=device)
        itself = torch.eye(len(twins), dtype=torch.bool, device=device)
        return cls(
            prompt_ids=prompts[:, 0],
            prompt_offsets=prompts[:, 1],
            prompt_visible=_same_question(prompts, prompts, lambda mine, theirs: theirs <= mine)[None],
            candidate_ids=twins[:, 0],
            candidate_offsets=twins[:, 1],
            candidate_visible=torch.cat(
                [_same_question(twins, prompts, lambda mine, theirs: theirs < mine), itself], dim=1
            )[None],
            local_ids=local_ids.to(device),
            local_padding=local_padding,
            next_ids=torch.tensor(next_ids, device=device),
        )


def _same_question(seeing: Tensor, seen: Tensor, position: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """`[seeing, seen]`: columns of the same question whose positions satisfy `position(mine, theirs)`."""
    same: Tensor = seeing[:, None, 2] == seen[:, 2]
    return same & position(seeing[:, None, 1], seen[:, 1])


@dataclass(frozen=True)
class Prompts:
    """Keys and values of the prompts after every chunk, constants of the loss.

    Attributes:
        keys: `[layers - 1, chunks, kv_heads, prompt, head_dim]`
        values: like `keys`
    """

    keys: Tensor
    values: Tensor


class _Method:
    """The steps of the loss. Not a module, so that the frozen model stays out of the loss module's state."""

    def __init__(self, model: FocusModel, recompute: bool, kept: KeptChunks | None) -> None:
        self.model = model
        self._parts = model.parts
        self._recompute = recompute
        self._kept = kept

    def prefill(self, chunks: Sequence[TokenIds], *, all_layers: bool) -> ChunkSet:
        """Keys and values of the chunks; of all layers for a teacher, which goes on from them."""
        if self._kept is not None:
            layers = self._parts.num_layers if all_layers else self.model.cached_layers
            return ChunkSet.of(self._kept.prefill(chunks, layers=layers))
        if not all_layers:
            return ChunkSet.of(self.model.prefill(chunks))
        rows: dict[int, ChunkRow] = {}
        for read in self.model.prefill_passes(chunks, layers=self._parts.num_layers):
            rows |= read
        return ChunkSet.of([rows[index] for index in range(len(chunks))])

    @torch.no_grad()
    def teacher_logits(self, chunks: ChunkSet, example: TrainingExample) -> Tensor:
        """What the plain model says in the place of each target after one chunk alone: `[targets, vocab]`.

        That chunk is the one, of those in which the answer stands (of all, where that is not known), after whose text
        question and answer are likeliest.
        """
        return torch.cat([self._taught(chunks, question) for question in example.questions])

    def _taught(self, chunks: ChunkSet, question: SupervisedQuestion) -> Tensor:
        """`teacher_logits` of one question."""
        row = torch.tensor([[*question.plain_prompt, *question.answer]])
        rows = ChunkSet.of([chunks.rows[number] for number in question.teachers or range(len(chunks))])
        if len(rows) > 1:
            likeliest = int(self.model.likelihoods(rows, row, [0], [(0, row.shape[1])]).argmax())
            rows = ChunkSet.of([rows.rows[likeliest]])
        appended = self.model.new_appended(rows, [0], layers=self._parts.num_layers)
        logits = self.model.append(rows, row[:, :-1], appended, logits_of=len(question.answer))
        return logits[0, 0, list(question.targets)]

    @torch.no_grad()
    def append_prompts(self, chunks: ChunkSet, targets: Targets) -> Prompts:
        """Append the ordinary tokens of all questions to every chunk."""
        columns = len(targets.prompt_ids)
        shape = (self._parts.num_layers - 1, len(chunks), self._parts.kv_heads, columns, self._parts.head_dim)
        keys, values = (torch.empty(shape, dtype=self.model.dtype, device=self.model.device) for _ in range(2))
        for start, stop in self._groups(len(chunks), tokens=columns):
            group = ChunkPass(chunks.between(start, stop), 1, 0, targets.prompt_visible, self._parts.num_layers - 1)
            store = partial(_store, keys[:, start:stop], values[:, start:stop])
            positions = _positions_after(chunks, start, stop, targets.prompt_offsets)
            self._append(group, targets.prompt_ids, positions, store, last=self._parts.num_layers - 2)
        return Prompts(keys, values)

    def append_candidates(self, chunks: ChunkSet, prompts: Prompts, targets: Targets) -> Memory:
        """Condense every chunk into one candidate per target (paper eq. 2–5), with gradient.

        Returns:
            a memory `[layers, targets, kv_heads, chunks, head_dim]`, candidate i moved to position i
        """

        def append(start: int, stop: int) -> KeysAndValues:
            made: list[KeysAndValues] = []

            def store(layer: int, keys: Tensor, values: Tensor) -> KeysAndValues:
                made.append((keys, values))
                if layer == self._parts.num_layers - 1:
                    return keys, values
                before = prompts.keys[layer, start:stop], prompts.values[layer, start:stop]
                return torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)

            count = len(targets.candidate_ids)
            group = ChunkPass(
                chunks.between(start, stop), 1, count, targets.candidate_visible, self._parts.num_layers - 1
            )
            positions = _positions_after(chunks, start, stop, targets.candidate_offsets)
            self._append(group, targets.candidate_ids, positions, store, last=self._parts.num_layers - 1)
            return torch.stack([k for k, _ in made]), torch.stack([v for _, v in made])

        groups = [
            self._kept_or_recomputed(append, start, stop)
            for start, stop in self._groups(len(chunks), tokens=len(targets.candidate_ids))
        ]
        # [layers, chunks, kv_heads, targets, head_dim] to [layers, targets, kv_heads, chunks, head_dim]
        keys, values = (torch.cat(states, dim=1).transpose(1, 3) for states in zip(*groups, strict=True))
        positions = _positions_after(chunks, 0, len(chunks), targets.candidate_offsets)
        distance = chunks.slots - positions.T
        return Memory(self.model.positions.move(keys, distance), values)

    def local_losses(self, memory: Memory, targets: Targets, teacher: Teacher) -> Tensor:
        """The loss of each target given its memory and its row of local context (paper eq. 6): `[targets]`."""

        def losses(start: int, stop: int) -> Tensor:
            rows = slice(start, stop)
            logits = self._next_token_logits(
                Memory(memory.keys[:, rows], memory.values[:, rows]),
                targets.local_ids[rows],
                targets.local_padding[start:stop],
            )
            return teacher.losses(logits.float(), targets.next_ids[rows], rows)

        rows, longest = targets.local_ids.shape
        groups = self._groups(rows, tokens=longest + memory.slots)
        return torch.cat([self._kept_or_recomputed(losses, start, stop) for start, stop in groups])

    def _next_token_logits(self, memory: Memory, local_ids: Tensor, padding: list[int]) -> Tensor:
        """`FocusModel.next_token_logits` with gradient, without columns that are padding in all rows."""
        padding, unused = without_unused(padding)
        on_device = torch.tensor(padding, device=local_ids.device)
        output = self.model.model(**memory.decoder_inputs(local_ids[:, unused:], on_device))
        return cast(Tensor, output.logits[:, -1])

    def _append(
        self,
        group: ChunkPass,
        token_ids: Tensor,
        positions: Tensor,
        store: Callable[[int, Tensor, Tensor], KeysAndValues],
        *,
        last: int,
    ) -> None:
        """One pass: the same `token_ids [new]` after every chunk, at `positions [chunks, new]`."""
        if not len(token_ids):
            return
        cache = PassCache(self._parts.num_layers, store, last=last, run_through=False)
        with active_pass(group), until_done():
            self.model.candidate_model.get_decoder()(
                input_ids=token_ids.expand(len(positions), -1),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )

    def _kept_or_recomputed(self, function: Callable[[int, int], Any], start: int, stop: int) -> Any:
        if not self._recompute:
            return function(start, stop)
        return checkpoint(function, start, stop, use_reentrant=False, preserve_rng_state=False)

    def _groups(self, rows: int, *, tokens: int) -> Iterator[tuple[int, int]]:
        """Borders of the groups of rows that pass the model together, for rows of `tokens` new tokens."""
        held = self._parts.num_layers if torch.is_grad_enabled() else 1
        size = max(1, tokens_per_pass(self.model.model, held_layers=held) // max(tokens, 1))
        return ((start, min(start + size, rows)) for start in range(0, rows, size))


def _store(keys: Tensor, values: Tensor, layer: int, new_keys: Tensor, new_values: Tensor) -> KeysAndValues:
    keys[layer], values[layer] = new_keys, new_values
    return new_keys, new_values


def _positions_after(chunks: ChunkSet, start: int, stop: int, offsets: Tensor) -> Tensor:
    """`[chunks, new]`: a chunk's own positions begin at 0, and the appended tokens follow."""
    lengths = chunks.lengths[start:stop]
    return lengths[:, None] + offsets
