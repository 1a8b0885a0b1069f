"""Where the function is replaced and where it is not: blocks, threads, installation, modules, compiled code."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as imported_before
from torch.utils.checkpoint import checkpoint

import faops
from faops.adapters import sdpa
from tests.adapters.models import close, llama, padding, tokens
from tests.test_docs import blocks, text_of

BUILTIN = imported_before


def attention(q: Tensor, k: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, k)


def qk() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 4, 9, 8), torch.randn(2, 4, 13, 8)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    assert F.scaled_dot_product_attention is BUILTIN  # importing the adapter has not changed it
    sdpa.reset_stats()
    yield
    sdpa.uninstall()
    assert F.scaled_dot_product_attention is BUILTIN
    assert torch._C._len_torch_function_stack() == 0
    before = sdpa.stats().routed
    attention(*qk())
    assert sdpa.stats().routed == before


# --- blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [attention, lambda q, k: imported_before(q, k, k), lambda q, k: torch._C._nn.scaled_dot_product_attention(q, k, k)],
    ids=["looked up", "imported before", "builtin"],
)
def test_a_block_routes_however_the_function_was_imported(function: Callable[..., Tensor]) -> None:
    q, k = qk()
    plain = function(q, k)
    with sdpa.enabled() as calls:
        ours = function(q, k)
    assert calls.routed == 1 and not calls.kept
    close(ours, plain)


def test_a_decorator() -> None:
    routed = sdpa.enabled()(attention)
    for _ in range(2):
        routed(*qk())
    assert sdpa.stats().routed == 2


def test_the_innermost_block_decides_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    forced = []
    real = faops.attention
    monkeypatch.setattr(faops, "attention", lambda *t, **o: (forced.append(o["backend"]), real(*t, **o))[1])
    sdpa.install("torch.blockwise_forward")
    with sdpa.enabled() as outer:
        attention(*qk())
        with sdpa.enabled(backend="torch") as inner:
            attention(*qk())
            imported_before(*qk(), qk()[1])
            imported_before(*qk(), qk()[1], dropout_p=1.0)
        attention(*qk())
    attention(*qk())
    assert forced == [None, "torch", "torch", None, "torch.blockwise_forward"]
    assert (inner.routed, outer.routed, sdpa.stats().routed) == (2, 2, 5)
    assert sum(inner.kept.values()) == 1 and not outer.kept


def test_an_error_in_a_block_leaves_nothing_behind() -> None:
    with pytest.raises(ZeroDivisionError), sdpa.enabled(), sdpa.enabled():
        raise ZeroDivisionError
    with pytest.raises(RuntimeError), sdpa.enabled():
        attention(torch.ones(1, 1, 2, 3), torch.ones(1, 1, 2, 4))


def test_disabled_inside() -> None:
    sdpa.install()
    with sdpa.enabled() as calls:
        with sdpa.disabled():
            attention(*qk())
            imported_before(*qk(), qk()[1])
        assert sdpa.stats() == sdpa.Calls()
        attention(*qk())
    assert calls.routed == 1


def test_a_block_is_its_threads_own() -> None:
    """Another thread that calls while the block is open gets PyTorch's function, through the stand-in."""
    entered, done = threading.Event(), threading.Event()
    results: list[Tensor] = []
    q, k = qk()

    def other() -> None:
        entered.wait()
        results.append(F.scaled_dot_product_attention(q, k, k))
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with sdpa.enabled() as calls:
        entered.set()
        assert done.wait(60)
        assert F.scaled_dot_product_attention is not BUILTIN
    thread.join()
    assert torch.equal(results[0], attention(q, k))
    assert sdpa.stats() == sdpa.Calls() == calls


def test_blocks_of_many_threads_at_once() -> None:
    counts: list[int] = []

    def work() -> None:
        for _ in range(20):
            with sdpa.enabled() as calls:
                attention(*qk())
            counts.append(calls.routed)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [1] * 80 and sdpa.stats().routed == 80


# --- the whole process ------------------------------------------------------------------------------------------------


def test_installed_for_every_thread_until_it_is_not() -> None:
    sdpa.install()
    sdpa.install()
    thread = threading.Thread(target=attention, args=qk())
    thread.start()
    thread.join()
    attention(*qk())
    assert sdpa.stats().routed == 2
    imported_before(*qk(), qk()[1])  # not seen without a block
    assert sdpa.stats().routed == 2
    sdpa.uninstall()
    sdpa.uninstall()
    assert F.scaled_dot_product_attention is BUILTIN


def test_a_replacement_by_others_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was there before answers what stays, and what came later is left in place."""
    seen = []

    def earlier(*args: Any, **kwargs: Any) -> Tensor:
        seen.append("earlier")
        return BUILTIN(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", earlier)
    sdpa.install()
    q, k = qk()
    F.scaled_dot_product_attention(q, k, k, torch.randn(9, 13))
    F.scaled_dot_product_attention(q, k, k, dropout_p=1.0)
    assert seen == ["earlier"] and sdpa.stats().routed == 1

    def later(*args: Any, **kwargs: Any) -> Tensor:
        seen.append("later")
        return stand_in(*args, **kwargs)

    stand_in = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = later
    sdpa.uninstall()
    assert F.scaled_dot_product_attention is later
    attention(q, k)
    assert seen == ["earlier", "later", "earlier"] and sdpa.stats().routed == 1
    monkeypatch.undo()


def test_the_kernels_of_faops_call_pytorch_itself() -> None:
    """faops.attention may run PyTorch's function: that call is not sent round again, nor counted."""
    q, k = (tensor.transpose(1, 2) for tensor in qk())
    plain = faops.attention(q, k, k, backend="torch.sdpa_forward")
    sdpa.install()
    for context in (sdpa.enabled, sdpa.disabled):
        with context():
            assert torch.equal(faops.attention(q, k, k, backend="torch.sdpa_forward"), plain)
    assert torch.equal(faops.attention(q, k, k, backend="torch.sdpa_forward"), plain)
    assert sdpa.stats() == sdpa.Calls()


def test_what_a_routed_call_calls_is_not_routed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that is not faops' own may call the function by any name without going round in circles."""
    monkeypatch.setattr(faops, "attention", lambda q, k, v, **options: imported_before(*_both(q, k, v)))
    q, k = qk()
    sdpa.install()
    attention(q, k)
    with sdpa.enabled():
        attention(q, k)
        imported_before(q, k, k)
    assert sdpa.stats().routed == 3


def _both(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    F.scaled_dot_product_attention(q, k, v)
    return q, k, v


# --- modules and models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_multihead_attention(training: bool) -> None:
    module = nn.MultiheadAttention(32, 4, batch_first=True).train(training)
    x = torch.randn(2, 9, 32)
    hidden = torch.zeros(2, 9, dtype=torch.bool)
    hidden[0, 6:] = True
    with torch.set_grad_enabled(training):
        plain = module(x, x, x, need_weights=False, key_padding_mask=hidden)[0]
        with sdpa.enabled() as calls:
            ours = module(x, x, x, need_weights=False, key_padding_mask=hidden)[0]
    assert calls.routed == 1 and not calls.kept
    close(ours, plain)


@pytest.mark.parametrize("training", [True, False])
def test_transformer_encoder(training: bool) -> None:
    """In a block the fused path for inference, which has an attention of its own, is left."""
    layer = nn.TransformerEncoderLayer(32, 4, 48, dropout=0.0, batch_first=True).train(training)
    x = torch.randn(2, 9, 32)
    with torch.set_grad_enabled(training):
        plain = layer(x)
        with sdpa.enabled() as calls:
            ours = layer(x)
        assert calls.routed == 1
        close(ours, plain)
        sdpa.install()
        close(layer(x), plain)
    assert sdpa.stats().routed == (2 if training else 1)


@pytest.mark.parametrize("kind", ["none", "left"])
def test_a_model_of_transformers(kind: str) -> None:
    eager, model = (
        transformers.AutoModelForCausalLM.from_config(copy.deepcopy(llama()), attn_implementation=name).eval()
        for name in ("eager", "sdpa")
    )
    model.load_state_dict(eager.state_dict())
    ids, mask = tokens(3, 11), padding(kind, 3, 11)
    with torch.no_grad():
        expected = eager(ids, attention_mask=mask).logits
        with sdpa.enabled() as calls:
            ours = model(ids, attention_mask=mask).logits
    assert calls.routed == model.config.num_hidden_layers and not calls.kept
    close(ours, expected, mask)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_training_in_a_block(reentrant: bool, calls: list[tuple[str, dict[str, object]]]) -> None:
    q, k = (tensor.requires_grad_() for tensor in qk())
    weights = torch.randn(2, 4, 9, 8)
    plain = torch.autograd.grad((attention(q, k) * weights).sum(), [q, k])
    with sdpa.enabled():
        out = checkpoint(attention, q, k, use_reentrant=reentrant)
        (out * weights).sum().backward()
    assert len(calls) == 2  # once more for backward
    for tensor, gradient in zip((q, k), plain):
        assert tensor.grad is not None
        close(tensor.grad, gradient)


# --- compiled code ----------------------------------------------------------------------------------------------------


def compiled(function: Callable[..., Tensor]) -> tuple[Callable[..., Tensor], list[str]]:
    """The function compiled as one graph, and the operators in the graphs made for it."""
    operators: list[str] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        operators.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch._dynamo.reset()
    return torch.compile(function, backend=keep, fullgraph=True), operators


def test_compiled_code_is_routed_while_it_is_enabled() -> None:
    q, k = qk()
    plain = attention(q, k)
    run, operators = compiled(attention)
    sdpa.install()
    close(run(q, k), plain)
    assert operators.count("faops.attention.default") == 1
    sdpa.uninstall()
    assert torch.equal(run(q, k), plain)
    assert operators.count("faops.attention.default") == 1
    with sdpa.enabled():
        close(run(q, k), plain)
    assert operators.count("faops.attention.default") == 2


def test_compiled_code_that_stays() -> None:
    q, k = qk()

    def masked(q: Tensor, k: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, k, torch.zeros(9, 13), dropout_p=1.0)

    run, operators = compiled(masked)
    with sdpa.enabled():
        assert torch.equal(run(q, k), masked(q, k))
    assert "faops.attention.default" not in operators


def test_exported_programs_hold_operators_of_pytorch() -> None:
    class Model(nn.Module):
        def forward(self, q: Tensor, k: Tensor) -> Tensor:
            return attention(q, k)

    sdpa.install()
    program = torch.export.export(Model(), qk())
    targets = [str(node.target) for node in program.graph.nodes]
    assert "aten.scaled_dot_product_attention.default" in targets and not any("faops" in name for name in targets)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_code_keeps_pytorchs_operator() -> None:
    def scripted(q: torch.Tensor, k: torch.Tensor):
        return F.scaled_dot_product_attention(q, k, k)

    sdpa.install()
    script = torch.jit.script(scripted)
    assert "aten::scaled_dot_product_attention" in str(script.graph)
    q, k = qk()
    assert torch.equal(script(q, k), BUILTIN(q, k, k))


@pytest.mark.parametrize("page", ["docs/sdpa.md", "docs/xformers.md"])
def test_the_pages_print_what_they_show(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(blocks(text_of(page), "python")[0], {})
    assert capsys.readouterr().out == blocks(text_of(page), "text")[0]
