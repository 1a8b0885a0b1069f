"""The folder of the examples on the path, as when one of them is run, and a tiny model with random weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: transformers)")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
VOCABULARY = 89


@pytest.fixture(autouse=True, scope="session")
def on_the_path() -> Any:
    sys.path.insert(0, str(EXAMPLES))
    yield
    sys.path.remove(str(EXAMPLES))


@pytest.fixture
def llama() -> Any:
    """Grouped queries, and weights so large that the most likely token stands out; float64."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=48, intermediate_size=56, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, head_dim=8, initializer_range=0.4, pad_token_id=None, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).double().eval()
    model.set_attn_implementation("sdpa")
    return model
