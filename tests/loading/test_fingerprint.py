"""Which base model an adapter belongs to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from focus_core import AdapterError
from focus_core.loading.adapters import load_adapter


def test_adapter_of_another_shape_and_of_other_weights_is_refused(adapter: Path, base: PreTrainedModel) -> None:
    with torch.no_grad():
        base.get_decoder().layers[1].self_attn.o_proj.weight.mul_(1.5)
    with pytest.raises(AdapterError, match="weights of layer 1"):
        load_adapter(adapter, base)
    base.config.hidden_size += 1
    with pytest.raises(AdapterError, match="hidden_size: adapter 32, model 33"):
        load_adapter(adapter, base)


@pytest.mark.parametrize("name", ["self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj"])
def test_one_other_matrix_is_another_base(adapter: Path, base: PreTrainedModel, name: str) -> None:
    """Of the same size, as those of any model that was trained alike."""
    with torch.no_grad():
        base.get_decoder().layers[1].get_submodule(name).weight.neg_()
    with pytest.raises(AdapterError, match="weights of layer 1"):
        load_adapter(adapter, base)


def test_another_embedding_is_another_base(adapter: Path, base: PreTrainedModel) -> None:
    with torch.no_grad():
        base.get_input_embeddings().weight.mul_(1.1)
    with pytest.raises(AdapterError, match="weights of embedding"):
        load_adapter(adapter, base)


def test_the_same_base_in_half_precision_is_the_same_base(adapter: Path, base: PreTrainedModel) -> None:
    load_adapter(adapter, base.to(torch.bfloat16))
