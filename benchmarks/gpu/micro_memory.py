"""Micro-tests of where threads are, of memory, and of how lanes exchange words."""

from __future__ import annotations

import numpy as np

from benchmarks.gpu.micro import THREADS, Micro, Words, random_words

WARP = 32
GRID = 5
INDEX = np.arange(THREADS)
LANE = INDEX % WARP
VECTORS = {1: "u8", 2: "u16", 4: "u32", 8: "Vec2", 16: "Vec4"}
STEP = 3  # between two threads' elements, so that a wrong width or stride shows


def memory_micros() -> list[Micro]:
    return [*_places(), *_global(), *_shared(), *_exchanges(), *_ldmatrix(), *_copies()]


def _places() -> list[Micro]:
    threads = Micro(
        "thread_index",
        "store_global(out + t, u32(thread_index() * 65536 + lane_index() * 256 + warp_index()));",
        random_words(1, 1),
        (INDEX * 65536 + LANE * 256 + INDEX // WARP).astype(np.uint32),
    )
    blocks = Micro(
        "block_index",
        "if (t == 0) store_global(out + block_index(), block_index() * 1000 + block_count());",
        random_words(1, 1),
        (np.arange(GRID) * 1000 + GRID).astype(np.uint32),
        grid=GRID,
    )
    return [threads, blocks]


def _global() -> list[Micro]:
    found = []
    for width, name in VECTORS.items():
        a = random_words(10 + width, STEP * THREADS * max(width, 4) // 4)
        pieces = a.view(np.uint8).reshape(-1, width)[: STEP * THREADS : STEP]
        padded = np.zeros((THREADS, -(-width // 4) * 4), dtype=np.uint8)
        padded[:, :width] = pieces
        store = f"store_global(reinterpret_cast<{name}*>(out) + t, value);" if width >= 4 else (
            "store_global(out + t, u32(value));")  # fmt: skip
        found.append(
            Micro(
                f"load_global_{width}",
                f"{name} value = load_global(reinterpret_cast<const {name}*>(a) + {STEP} * t);\n{store}",
                a,
                padded.reshape(-1).view(np.uint32),
            )
        )
    halves = random_words(30, THREADS // 2)
    found.append(
        Micro(
            "store_global_2",
            "u16 value = load_global(reinterpret_cast<const u16*>(a) + t);\n"
            f"store_global(reinterpret_cast<u16*>(out) + ({THREADS - 1} - t), value);",
            halves,
            halves.view(np.uint16)[::-1].copy().view(np.uint32),
        )
    )
    a = random_words(31, THREADS)
    found.append(Micro("computed_here", "store_global(out + t, load_global(computed_here(a + t)));", a, a))
    return found


def _shared() -> list[Micro]:
    last = THREADS - 1
    words, quads = random_words(40, THREADS), random_words(41, 4 * THREADS)
    return [
        Micro(
            "shared_u32",
            f"store_shared_u32(base + 4 * t, load_global(a + t));\nsync_block();\n"
            f"store_global(out + t, load_shared_u32(base + 4 * ({last} - t)));",
            words,
            words[::-1].copy(),
        ),
        Micro(
            "shared_u16",
            "store_shared_u16(base + 2 * (t ^ 1), load_global(reinterpret_cast<const u16*>(a) + t));\nsync_block();\n"
            f"if (t < {THREADS // 2}) store_global(out + t, load_shared_u32(base + 4 * t));",
            words[: THREADS // 2],
            words[: THREADS // 2].view(np.uint16)[INDEX ^ 1].view(np.uint32),
        ),
        Micro(
            "shared_vec4",
            "store_shared_vec4(base + 16 * t, load_global(reinterpret_cast<const Vec4*>(a) + t));\nsync_block();\n"
            f"store_global(reinterpret_cast<Vec4*>(out) + t, load_shared_vec4(base + 16 * ({last} - t)));",
            quads,
            quads.reshape(THREADS, 4)[::-1].reshape(-1).copy(),
        ),
        Micro(
            "sync_warp",
            "store_shared_u32(base + 4 * t, load_global(a + t));\nsync_warp();\n"
            "store_global(out + t, load_shared_u32(base + 4 * (t ^ 31)));",
            words,
            words[INDEX ^ 31],
        ),
    ]


def _exchanges() -> list[Micro]:
    a = random_words(50, THREADS)
    distances = (1, 2, 4, 8, 16)
    swapped = np.stack([a[INDEX ^ distance] for distance in distances], axis=1).reshape(-1)
    finite = a & np.uint32(0xBFFFFFFF)  # no NaN, whose bits a float may lose
    swapped_floats = np.stack([finite[INDEX ^ distance] for distance in distances], axis=1).reshape(-1)
    text = "for (int i = 0; i < 5; ++i) {{ {0} }}"
    # One warp has exactly one lane that says yes, the other has none; then the other way round; then all lanes.
    asked = np.zeros((THREADS, 3), dtype=np.uint32)
    asked[7, 0] = asked[THREADS - 1, 1] = 1
    asked[:, 2] = 1
    answers = asked.reshape(2, WARP, 3).any(axis=1)
    return [
        Micro(
            "shuffle_xor_u32",
            text.format("store_global(out + 5 * t + i, shuffle_xor(load_global(a + t), 1 << i));"),
            a,
            swapped,
        ),
        Micro(
            "shuffle_xor_float",
            text.format("store_global(out_float + 5 * t + i, shuffle_xor(as_float(load_global(a + t)), 1 << i));"),
            finite,
            swapped_floats,
        ),
        Micro(
            "any_in_warp",
            "for (int i = 0; i < 3; ++i) store_global(out + 3 * t + i, u32(any_in_warp(load_global(a + 3 * t + i))));",
            asked.reshape(-1),
            np.repeat(answers, WARP, axis=0).astype(np.uint32).reshape(-1),
        ),
    ]


def _ldmatrix() -> list[Micro]:
    """Every lane gives the address of some row of 16 bytes, in an order that has nothing to do with the lanes."""
    rows = random_words(60, 4 * THREADS)
    order = np.random.default_rng(61).permutation(THREADS)
    matrices = rows.view(np.uint16).reshape(THREADS, 8)[order].reshape(2, 4, 8, 8)  # warp, matrix, row, column
    body = """store_shared_vec4(base + 16 * t, load_global(reinterpret_cast<const Vec4*>(a) + t));
sync_block();
u32 found[4];
{0}(found, base + load_global(b + t));
for (int i = 0; i < 4; ++i) store_global(out + 4 * t + i, found[i]);"""
    offsets = (16 * order).astype(np.uint32)
    return [
        Micro("ldmatrix", body.format("ldmatrix"), rows, _pairs(matrices), b=offsets),
        Micro("ldmatrix_transposed", body.format("ldmatrix_transposed"), rows, _pairs(matrices.swapaxes(2, 3)),
              b=offsets),
    ]  # fmt: skip


def _pairs(matrices: np.ndarray) -> Words:
    """Lane l gets elements 2 (l % 4) and the next of row l / 4 of each of its warp's matrices."""
    words = np.ascontiguousarray(matrices).view(np.uint32)  # warp, matrix, row, pair
    result: Words = words.reshape(2, 4, WARP).swapaxes(1, 2).reshape(-1).copy()
    return result


def _copies() -> list[Micro]:
    found = [_partial_copy(size) for size in (4, 8, 16)]
    a = random_words(71, 8 * THREADS)
    found.append(
        Micro(
            "copy_async_groups",
            f"""copy_async<16>(base + 16 * t, a + 4 * t, 16);
copy_async_commit();
copy_async<16>(base + {16 * THREADS} + 16 * t, a + {4 * THREADS} + 4 * t, 16);
copy_async_commit();
copy_async_wait<1>();
sync_block();
store_global(reinterpret_cast<Vec4*>(out) + t, load_shared_vec4(base + 16 * ({THREADS - 1} - t)));
copy_async_wait<0>();
sync_block();
store_global(reinterpret_cast<Vec4*>(out) + {THREADS} + t, load_shared_vec4(base + {16 * THREADS} + 16 * (t ^ 32)));""",
            a,
            np.concatenate(
                [a.reshape(2, THREADS, 4)[0][::-1].reshape(-1), a.reshape(2, THREADS, 4)[1][INDEX ^ 32].reshape(-1)]
            ),
            arch=80,
        )
    )
    found.append(
        Micro(
            "copy_async_of_nothing",
            """store_shared_vec4(base + 16 * t, Vec4{1, 2, 3, 4});
copy_async<16>(base + 16 * t, reinterpret_cast<const u8*>(a) + (1ull << 44), 0);
copy_async_commit();
copy_async_wait<0>();
store_global(reinterpret_cast<Vec4*>(out) + t, load_shared_vec4(base + 16 * t));""",
            random_words(72, 4),
            np.zeros(4 * THREADS, dtype=np.uint32),
            arch=80,
        )
    )
    return found


def _partial_copy(size: int) -> Micro:
    """Every number of bytes from none to all, over memory that held something else."""
    words = size // 4
    a = random_words(80 + size, words * THREADS)
    data = a.view(np.uint8).reshape(THREADS, size).copy()
    data[np.arange(size)[None, :] >= (INDEX % (size + 1))[:, None]] = 0
    return Micro(
        f"copy_async_{size}",
        f"""for (int i = 0; i < {words}; ++i) store_shared_u32(base + {size} * t + 4 * i, 0xdeadbeef);
sync_block();
const int other = {THREADS - 1} - t;
copy_async<{size}>(base + {size} * other, a + {words} * other, other % {size + 1});
copy_async_commit();
copy_async_wait<0>();
sync_block();
for (int i = 0; i < {words}; ++i) store_global(out + {words} * t + i, load_shared_u32(base + {size} * t + 4 * i));""",
        a,
        data.reshape(-1).view(np.uint32),
        arch=80,
    )
