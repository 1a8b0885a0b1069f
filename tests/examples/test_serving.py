"""examples/serving: the model over pages is the model, and no batch, wait or interruption changes an answer."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from examples.serving.batching import Batch, Request, shared_prefix
from examples.serving.llama import PagedLlama, rotary_of
from faops.nn import OutOfPagesError
from tests.examples.conftest import VOCABULARY, transformers

NO_STOP = -1


def draw(count: int) -> list[int]:
    return [random.randrange(VOCABULARY) for _ in range(count)]


def expected(model: Any, prompt: list[int], count: int, stop: int = NO_STOP) -> list[int]:
    """Greedy tokens, the whole text read anew for each of them: no cache takes part."""
    tokens = list(prompt)
    with torch.no_grad():
        while len(tokens) < len(prompt) + count and tokens[len(prompt) :][-1:] != [stop]:
            tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


# --- the model --------------------------------------------------------------------------------------------------------


def test_logits_are_those_of_the_model(llama: Any) -> None:
    """Prompts, chunks and single tokens in one pass; pages that are no multiple of anything."""
    paged = PagedLlama(llama, pages=40, page_size=3)
    texts = [draw(random.randint(9, 20)) for _ in range(4)]
    sequences = [paged.cache.allocate() for _ in texts]
    read = [0] * len(texts)
    for counts in ((5, 1, 8, 2), (1, 1, 1, 1), (2, 6, 0, 1)):
        chosen = [index for index, count in enumerate(counts) if count]
        new = [texts[index][read[index] : read[index] + counts[index]] for index in chosen]
        logits = paged.read([sequences[index] for index in chosen], new)
        for row, index in enumerate(chosen):
            read[index] += counts[index]
            with torch.no_grad():
                want = llama(torch.tensor([texts[index][: read[index]]]), use_cache=False).logits[0, -1]
            torch.testing.assert_close(logits[row], want, atol=1e-4, rtol=1e-4)  # rotary tables are float32


def test_no_room_changes_nothing(llama: Any) -> None:
    paged = PagedLlama(llama, pages=3, page_size=4)
    first, second = paged.cache.allocate(), paged.cache.allocate()
    paged.read([first], [draw(7)])
    before = paged.cache.k.clone()
    with pytest.raises(OutOfPagesError):
        paged.read([first, second], [draw(1), draw(5)])
    assert (first.length, second.length, paged.cache.free_pages) == (7, 0, 1)
    assert torch.equal(paged.cache.k, before)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 3.0},
        {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
    ids=lambda scaling: scaling["rope_type"],
)  # fmt: skip
def test_rotary_is_that_of_the_config(scaling: dict[str, Any]) -> None:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    described = {"rope_theta": 777.0, **scaling}
    config = transformers.LlamaConfig(head_dim=16, rope_parameters=described, max_position_embeddings=512)
    cos, sin = LlamaRotaryEmbedding(config)(torch.ones(1), torch.arange(300)[None])
    ours = rotary_of(config).tables(300)
    torch.testing.assert_close(ours[0], cos[0, :, :8], atol=1e-4, rtol=0)
    torch.testing.assert_close(ours[1], sin[0, :, :8], atol=1e-4, rtol=0)


def test_rotary_of_an_older_config() -> None:
    class Older:
        head_dim, rope_theta, rope_scaling = 8, 500.0, {"rope_type": "linear", "factor": 2.0}

    assert rotary_of(Older()).base == 500.0
    assert rotary_of(Older()).scaling == {"rope_theta": 500.0, "rope_type": "linear", "factor": 2.0}


# --- the batch --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [0, 5, 8], ids=["nothing shared", "a page and a half shared", "two pages shared"])
@pytest.mark.parametrize("pages", [13, 60])
def test_answers_do_not_depend_on_the_batch(llama: Any, pages: int, shared: int) -> None:
    start = draw(shared)
    prompts = [start + draw(random.choice((1, 2, 11, 20))) for _ in range(6)]
    requests = [Request(prompt, random.randint(1, 18)) for prompt in prompts]
    requests[2].prompt, requests[2].max_new_tokens = start + draw(20), 18  # 46 tokens at most, 12 pages
    paged = PagedLlama(llama, pages, page_size=4)
    batch = Batch(paged, NO_STOP, prefix=start)
    batch.run(requests)
    for request in requests:
        assert request.generated == expected(llama, list(request.prompt), request.max_new_tokens)
    assert paged.cache.free_pages == pages and not paged.cache.sequences
    assert batch.peak_pages <= pages


def test_requests_wait_for_pages_and_give_them_back(llama: Any) -> None:
    """All three get in and none of them fits to its end beside the others."""
    requests = [Request(draw(4), 20) for _ in range(3)]
    paged = PagedLlama(llama, pages=11, page_size=4)
    batch = Batch(paged, NO_STOP)
    batch.run(requests)
    assert batch.interruptions > 0
    assert [request.generated for request in requests] == [expected(llama, list(r.prompt), 20) for r in requests]


def test_the_last_to_join_is_the_first_to_wait(llama: Any) -> None:
    """It comes before those that have not begun, and keeps what it has written."""
    requests = [Request(draw(4), 20) for _ in range(4)]
    batch = Batch(PagedLlama(llama, pages=11, page_size=4), NO_STOP, most=3)
    batch.waiting.extend(requests)
    while not batch.interruptions:
        batch.step()
    assert [requests.index(request) for request in batch.running] == [0, 1]
    assert [requests.index(request) for request in batch.waiting] == [2, 3]
    assert 0 < len(requests[2].generated) < len(requests[1].generated) and not requests[3].generated


def test_one_that_fits_nowhere_is_an_error(llama: Any) -> None:
    with pytest.raises(OutOfPagesError):
        Batch(PagedLlama(llama, pages=3, page_size=4), NO_STOP).run([Request(draw(13), 2)])
    with pytest.raises(OutOfPagesError):
        Batch(PagedLlama(llama, pages=3, page_size=4), NO_STOP).run([Request(draw(11), 5)])


def test_a_prefix_is_held_once(llama: Any) -> None:
    start = draw(40)
    prompts = [start + draw(2) for _ in range(5)]
    peaks = {}
    for name, prefix in (("shared", start), ("apart", [])):
        batch = Batch(PagedLlama(llama, pages=80, page_size=4), NO_STOP, prefix=prefix)
        batch.run([Request(prompt, 3) for prompt in prompts])
        peaks[name] = batch.peak_pages
    assert peaks == {"shared": 10 + 5 * 1, "apart": 5 * 11}


def test_the_most_that_run(llama: Any) -> None:
    batch = Batch(PagedLlama(llama, pages=40, page_size=4), NO_STOP, most=2)
    batch.waiting.extend(Request(draw(3), count) for count in (2, 5, 3))
    seen = []
    while batch.waiting or batch.running:
        batch.step()
        seen.append((len(batch.waiting), len(batch.running)))
    assert seen == [(1, 2), (1, 1), (0, 2), (0, 2), (0, 0)]


def test_the_stop_token_ends_an_answer(llama: Any) -> None:
    prompt = draw(9)
    whole = expected(llama, prompt, 12)
    stop = whole[5]
    request = Request(prompt, 12)
    Batch(PagedLlama(llama, pages=10, page_size=4), stop).run([request])
    assert request.generated == whole[: whole.index(stop) + 1]


@pytest.mark.parametrize(
    ("prompts", "shared"),
    [
        ([[1, 2, 3], [1, 2, 4, 5]], [1, 2]),
        ([[1, 2], [1, 2, 4]], [1]),  # each prompt keeps a token of its own
        ([[7], [7]], []),
        ([[1, 2], [3, 2]], []),
        ([[1, 2, 3]], [1, 2]),
    ],
)
def test_shared_prefix(prompts: list[list[int]], shared: list[int]) -> None:
    assert shared_prefix(prompts) == shared
