"""Asynchronous copies arrive late, with the bytes asked for and zeros after them."""

from __future__ import annotations

import pytest
import torch

from faops.backends.cuda_raw.emulator import errors
from tests.cuda_raw.emulator.tiny import choose, launch, source, words

COPY = """
{{
    copy_async<{size}>(base + {size} * t, reinterpret_cast<const u8*>(params.a) + {size} * t, t % ({size} + 1));
    copy_async_commit();
    copy_async_wait<0>();
    sync_block();
    const u32 mine = base + {size} * t;
    for (int i = 0; i < {size}; i += 4) store_global(params.out + ({size} * t + i) / 4, load_shared_u32(mine + i));
}}
"""


@pytest.mark.parametrize("size", [4, 8, 16])
def test_partial_copies_are_filled_with_zeros(size: int) -> None:
    data = torch.randint(1, 256, (64, size), dtype=torch.uint8)
    out = torch.zeros_like(data)
    launch(source(COPY.format(size=size), threads=64), out, data)
    kept = torch.arange(size) < (torch.arange(64) % (size + 1))[:, None]
    torch.testing.assert_close(out, torch.where(kept, data, 0))


def test_a_copy_of_nothing_does_not_look_at_its_address() -> None:
    body = """
    copy_async<16>(base + 16 * t, reinterpret_cast<const void*>(16), 0);
    copy_async_commit();
    copy_async_wait<0>();
    store_global(params.out + t, load_shared_u32(base + 16 * t + 12) + 1);
    """
    out = words(32)
    launch(source(body), out)
    assert (out == 1).all()


GROUPS = """
for (int group = 0; group < 4; ++group) {
    copy_async<4>(base + 128 * group + 4 * t, params.a + 32 * group + t, 4);
    copy_async_commit();
}
"""
READ = "store_global(params.out + t, load_shared_u32(base + 128 * {group} + 4 * t));"
CASES = [
    GROUPS + "copy_async_wait<2>();" + READ.format(group=1) + "copy_async_wait<0>();",
    GROUPS + "copy_async_wait<2>();" + READ.format(group=2) + "copy_async_wait<0>();",
    GROUPS + "copy_async_wait<7>();" + READ.format(group=0) + "copy_async_wait<0>();",
    GROUPS + "copy_async_wait<0>();" + READ.format(group=3),
    GROUPS + "copy_async_commit(); copy_async_wait<1>();" + READ.format(group=3),  # an empty group counts
    GROUPS + "store_shared_u32(base + 4 * t, 1);",
    GROUPS + "sync_warp(); copy_async<4>(base + 128 + 4 * (t ^ 1), params.a, 0);",
    # Thread 0 waits for its own copies only.
    "if (t != 0) {" + GROUPS + "} copy_async_wait<0>(); if (t == 1) load_shared_u32(base + 4);"
    "sync_block(); load_shared_u32(base + 4 * (t | 1));",
    GROUPS + "sync_warp(); if (t == 0) { copy_async_wait<0>(); load_shared_u32(base + 4); } copy_async_wait<0>();",
]
KERNEL = source(choose(CASES))


@pytest.mark.parametrize(("case", "group"), [(0, 1), (3, 3), (4, 3)])
def test_waited_for(case: int, group: int) -> None:
    data, out = torch.arange(128, dtype=torch.int32), words(32)
    launch(KERNEL, out, data, what=case)
    torch.testing.assert_close(out, data[32 * group : 32 * group + 32])


@pytest.mark.parametrize(
    ("case", "text"),
    [
        (1, "thread 0: load_shared_u32 at .*: reads byte 256 of shared memory while an asynchronous copy to it by "
            "thread 0, copy_async at .* is under way"),
        (2, "reads byte 0 of shared memory"),
        (5, "store_shared_u32 at .*: writes byte 0 of shared memory"),
        (6, r"copy_async at .*: writes byte \d+ of shared memory while an asynchronous copy"),
        (8, "thread 0: load_shared_u32 at .*: reads byte 4 .* by thread 1"),
    ],
)  # fmt: skip
def test_used_too_early(case: int, text: str) -> None:
    with pytest.raises(errors.InFlightError, match=text):
        launch(KERNEL, words(32), words(128), what=case)


def test_a_barrier_after_the_wait_makes_it_everybodys() -> None:
    launch(KERNEL, words(32), words(128), what=7)
