"""Models of strangers: a config that cannot work is refused before anything is built, and none of its code runs."""

from __future__ import annotations

import io
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from focus_core import ConfigError, FocusEngine, UnsupportedModelError
from focus_core.loading.models import load_model


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(model_folder, tmp_path / "model", ignore=shutil.ignore_patterns("adapter")))


def _change(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"hidden_size": "32"}, r"hidden_size='32': it must be a whole number"),
        ({"hidden_size": True}, r"hidden_size=True: it must be a whole number"),
        ({"hidden_size": 10**30}, r"hidden_size=10+: it must lie between 1 and 1,000,000,000"),
        ({"hidden_size": None}, r"expected int, got NoneType"),
        ({"intermediate_size": -1}, r"intermediate_size=-1: it must lie"),
        ({"intermediate_size": 64}, r"its tensors have other shapes than its config says"),
        ({"intermediate_size": 10**8}, r"at least 9,600,[\d,]+ numbers, and its files hold \d+,\d+ bytes"),
        ({"head_dim": 10**8}, r"at least \d+,[\d,]+ numbers, and its files hold"),
        ({"vocab_size": 10**8}, r"at least \d+,[\d,]+ numbers, and its files hold"),
        ({"num_attention_heads": 0}, r"num_attention_heads=0: it must lie"),
        ({"num_key_value_heads": 0}, r"num_key_value_heads=0: it must lie"),
        ({"head_dim": 7}, r"RoPE requires an even rotary dimension"),
        ({"vocab_size": 0}, r"vocab_size=0: it must lie"),
        ({"max_position_embeddings": None}, r"Field 'max_position_embeddings' expected int"),
        ({"max_position_embeddings": "4096"}, r"max_position_embeddings='4096': it must be a whole number"),
        ({"num_hidden_layers": 1_000_000}, r"num_hidden_layers=1000000: no more than 1,000 are built"),
        ({"text_config": {"num_hidden_layers": 1_000_000}}, r"num_hidden_layers=1000000: no more"),
        ({"num_labels": 10**9}, r"num_labels=1000000000: no more than 100,000"),
        ({"sliding_window": "a"}, r"sliding_window='a': it must be a whole number"),
        ({"rope_parameters": {"rope_type": "nonsense", "rope_theta": 1.0}}, r"names 'nonsense', which transformers"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, r"Missing required keys"),
        ({"hidden_act": "nonsense"}, r"names 'nonsense', which transformers does not know"),
        ({"dtype": "float99"}, r"dtype='float99': torch has no such dtype"),
        ({"pad_token_id": 10**9}, r"Padding_idx must be within num_embeddings"),
        ({"layer_types": 5}, r"'int' object is not iterable"),
        ({"attn_implementation": "somebody/kernel"}, r"'somebody/kernel': code on the hub, which no config may choose"),
    ],
)
def test_a_config_that_cannot_work_is_refused_at_once(folder: Path, settings: dict[str, Any], reason: str) -> None:
    _change(folder / "config.json", **settings)
    began = time.thread_time()
    with pytest.raises(UnsupportedModelError, match=reason):
        load_model(folder, device="cpu")
    assert time.thread_time() - began < 5


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "is a list, not a JSON object"),
        ("null", "No causal language model could be loaded"),
        ("nonsense", "not a valid JSON"),
        ("[" * 100_000, "recursion"),
        ('{"model_type": "llama", "hidden_size": ' + "9" * 5000 + "}", "5000 digi"),
    ],
)
def test_a_damaged_config_is_named(folder: Path, text: str, reason: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(UnsupportedModelError, match=reason):
        load_model(folder, device="cpu")


@pytest.mark.parametrize("content", [b"nonsense" * 9999, b"", b"PK\x03\x04" + b"x" * 9999])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "model.safetensors.index.json"])
def test_damaged_weights_are_named(folder: Path, name: str, content: bytes) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(content)
    with pytest.raises(UnsupportedModelError, match=f"No causal language model could be loaded from '{folder}': "):
        load_model(folder, device="cpu")


def test_a_list_of_end_tokens_that_are_none_is_refused(folder: Path) -> None:
    _change(folder / "generation_config.json", eos_token_id=[[1]])
    with pytest.raises(UnsupportedModelError, match=r"eos_token_id=\[\[1\]\]: it must be a token's number"):
        FocusEngine.from_pretrained(folder, device="cpu")


# --- code that comes with a model -------------------------------------------------------------------------------------

_CODE = """
from pathlib import Path
Path(r"{mark}").write_text("ran")
"""


@pytest.fixture
def stranger(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with code of its own that leaves a mark, and a user who answers "y" to every question."""
    (folder / "code.py").write_text(_CODE.format(mark=tmp_path / "mark"))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 100))
    monkeypatch.setattr("builtins.input", lambda *prompt: "y")
    return folder


def test_code_of_a_model_is_never_run(stranger: Path, tmp_path: Path) -> None:
    """transformers asks on the terminal, and takes a "y" on standard input for an answer."""
    modules = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    _change(stranger / "config.json", model_type="of_its_own", auto_map=modules)
    with pytest.raises(UnsupportedModelError, match=r"it needs code that comes with it .* which is never run"):
        FocusEngine.from_pretrained(stranger, device="cpu")
    assert not (tmp_path / "mark").exists()


def test_code_of_a_model_that_transformers_knows_is_passed_over(stranger: Path, tmp_path: Path) -> None:
    modules = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    _change(stranger / "config.json", auto_map=modules)
    assert load_model(stranger, device="cpu").model.config.model_type == "llama"
    assert not (tmp_path / "mark").exists()


def test_code_of_a_tokenizer_is_never_run(stranger: Path, tmp_path: Path) -> None:
    modules = {"AutoTokenizer": ["code.Slow", "code.Fast"]}
    _change(stranger / "tokenizer_config.json", tokenizer_class="OfItsOwn", auto_map=modules)
    with pytest.raises(UnsupportedModelError, match="it needs code that comes with it"):
        FocusEngine.from_pretrained(stranger, device="cpu")
    assert not (tmp_path / "mark").exists()


def test_code_of_a_model_cannot_be_switched_on(folder: Path) -> None:
    with pytest.raises(ConfigError, match="trust_remote_code: code that comes with a model is never run"):
        FocusEngine.from_pretrained(folder, device="cpu", trust_remote_code=True)
    assert FocusEngine.from_pretrained(folder, device="cpu", trust_remote_code=False).generate("a", max_new_tokens=1)
