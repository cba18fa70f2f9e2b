"""All targets in one pass against the method as it is used, and against one plain pass per target and chunk."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from focus_core.attention.candidates import LowRankChange
from focus_core.attention.memory import Memory
from focus_core.attention.rope import RotaryPositions
from focus_core.cache.chunks import ChunkSet
from focus_core.config import FocusConfig
from focus_core.methods.focus import FocusModel
from focus_core.training.examples import SupervisedQuestion, TrainingExample
from focus_core.training.loss import FocusLoss
from tests.model_zoo import FAMILIES_BY_KIND, build, random_projections
from tests.training.cases import BOS, CONFIG, example_for, focus_model, gradients


def losses_in_use(model: FocusModel, example: TrainingExample) -> Tensor:
    """The losses of the same tokens when the method is used step by step."""
    losses = []
    for question in example.questions:
        chunks = ChunkSet.of(model.prefill(example.chunks))
        appended = model.start_answer(chunks)
        local, pending = torch.tensor([question.local_context]), torch.tensor([question.dynamic_prompt])
        for position, token in enumerate(question.answer):
            logits = model.next_token_logits(local, model.decode_candidates(chunks, pending, appended))
            if position in question.targets:
                losses.append(F.cross_entropy(logits, torch.tensor([token])))
            pending = torch.tensor([[int(pending[0, -1]), token]])
            local = torch.cat([local, torch.tensor([[token]])], dim=1)
    return torch.stack(losses)


def plain_candidate(model: FocusModel, row: list[int]) -> tuple[Tensor, Tensor]:
    """Keys and values `[layers, kv_heads, 1, head_dim]` of the last token of one row, read in one plain pass.

    Everything with gradient and hooks on the model's own maps: nothing of the package but the projections.
    """
    handles = []
    for index, attention in enumerate(model.parts.attentions):
        for name, projection in model.projections.layer(index).items():

            def hook(
                module: object, args: tuple[Tensor], output: Tensor, projection: torch.nn.Module = projection
            ) -> Tensor:
                last = projection(args[0][:, -1:])
                changed = output[:, -1:] + last if isinstance(projection, LowRankChange) else last
                return torch.cat([output[:, :-1], changed], dim=1)

            handles.append(getattr(attention, name).register_forward_hook(hook))
    cache = DynamicCache()
    model.model.get_decoder()(input_ids=torch.tensor([row]), past_key_values=cache, use_cache=True)
    for handle in handles:
        handle.remove()
    return tuple(  # type: ignore[return-value]
        torch.stack([getattr(layer, name)[0, :, -1:] for layer in cache.layers]) for name in ("keys", "values")
    )


def plain_losses(model: FocusModel, example: TrainingExample) -> Tensor:
    wanted = [question.answer[target] for question in example.questions for target in question.targets]
    return F.cross_entropy(plain_logits(model, example), torch.tensor(wanted), reduction="none")


def plain_logits(model: FocusModel, example: TrainingExample) -> Tensor:
    """`[targets, vocab]`: one target at a time, one chunk at a time, no constant taken out of the gradient."""
    found = []
    for question in example.questions:
        for target in question.targets:
            before = question.answer[:target]
            rows = [chunk + question.dynamic_prompt + before for chunk in example.chunks]
            made = [plain_candidate(model, row) for row in rows]
            keys, values = (torch.cat(states, dim=2)[:, None] for states in zip(*made, strict=True))
            distance = torch.tensor([[slot - (len(row) - 1) for slot, row in enumerate(rows)]])
            memory = Memory(RotaryPositions(model.parts).move(keys, distance), values)
            local = torch.tensor([question.local_context + before])
            output = model.model(input_ids=local, past_key_values=memory.as_cache(), use_cache=True)
            found.append(output.logits[0, -1])
    return torch.stack(found)


def assert_equal_gradients(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        difference = (got[name] - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert difference < 1e-5, f"{name}: relative difference {difference:.1e}"


FAMILIES = [("llama", None), ("llama", 4), ("llama with biases", None), ("qwen3", None)]


@pytest.mark.parametrize(("family", "rank"), FAMILIES)
@pytest.mark.parametrize("bos_per_chunk", [True, False])
def test_losses_are_those_of_the_method_in_use(family: str, rank: int | None, bos_per_chunk: bool) -> None:
    config = FocusConfig(chunk_size=12, local_window=16, dynamic_prompt=5, bos_per_chunk=bos_per_chunk)
    model = focus_model(family, rank, config)
    example = example_for(model)
    losses = FocusLoss(model).target_losses(example)
    torch.testing.assert_close(losses.detach(), losses_in_use(model, example), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("family", "rank"), FAMILIES)
def test_loss_and_gradients_equal_one_plain_pass_per_target_and_chunk(family: str, rank: int | None) -> None:
    model = focus_model(family, rank)
    example = example_for(model)
    losses, wanted = FocusLoss(model).target_losses(example), plain_losses(model, example)
    torch.testing.assert_close(losses, wanted, rtol=1e-4, atol=1e-5)
    weights = torch.linspace(0.5, 1.5, len(losses))  # so that exchanged targets would show
    assert_equal_gradients(gradients(model, losses @ weights), gradients(model, wanted @ weights))


@pytest.mark.parametrize("family", FAMILIES_BY_KIND)
def test_loss_and_gradients_of_every_family(family: str) -> None:
    """Fused maps, bounded scores, two kinds of rotary embedding, norms in other places: the same comparison for all."""
    base = build(family)
    model = FocusModel(base, random_projections(base).requires_grad_(True), config=CONFIG)
    example = example_for(model)
    losses, wanted = FocusLoss(model).target_losses(example), plain_losses(model, example)
    torch.testing.assert_close(losses, wanted, rtol=1e-4, atol=1e-5)
    assert_equal_gradients(gradients(model, losses.mean()), gradients(model, wanted.mean()))


@pytest.mark.parametrize(("family", "rank"), FAMILIES)
def test_all_targets_in_one_pass_equal_one_at_a_time(family: str, rank: int | None) -> None:
    model = focus_model(family, rank)
    example, module = example_for(model), FocusLoss(model)
    alone = [
        TrainingExample(example.chunks, [SupervisedQuestion(q.local_context, q.dynamic_prompt, q.answer, (target,))])
        for q in example.questions
        for target in q.targets
    ]
    together, apart = module(example), torch.stack([module(single) for single in alone]).mean()
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-6)
    assert_equal_gradients(gradients(model, together), gradients(model, apart))


def test_recomputing_activations_changes_nothing() -> None:
    model = focus_model()
    example = example_for(model)
    kept, recomputed = FocusLoss(model)(example), FocusLoss(model, recompute=True)(example)
    torch.testing.assert_close(recomputed, kept)
    assert_equal_gradients(gradients(model, recomputed), gradients(model, kept))


def test_targets_that_are_left_out_change_no_other() -> None:
    model = focus_model()
    all_losses, some = (FocusLoss(model).target_losses(example_for(model, targets=t)) for t in ((), (0, 3)))
    torch.testing.assert_close(some, all_losses[[0, 1, 2, 3, 6, 7]])


def test_a_single_token_before_the_answer_is_candidate_enough() -> None:
    model = focus_model()
    example = TrainingExample([[BOS, 7, 8, 9]], [SupervisedQuestion([BOS], [BOS], [5])])
    torch.testing.assert_close(FocusLoss(model).target_losses(example).detach(), losses_in_use(model, example))


def test_state_and_parameters_are_those_of_the_projections() -> None:
    model = focus_model()
    module = FocusLoss(model)
    assert {name.removeprefix("projections.") for name in module.state_dict()} == set(model.projections.state_dict())
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert not any(parameter.requires_grad for parameter in model.model.parameters())
