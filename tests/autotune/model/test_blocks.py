"""What the model says of grids of thread blocks: how time follows each thing that a footprint tells."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from faops.autotune.model import estimates
from faops.autotune.model.predict import of_footprint, with_resources
from faops.autotune.model.rates import rates
from faops.device import known
from faops.footprint import Footprint, Resources

from .support import A100, H100, NVIDIA, predicted


@pytest.mark.parametrize(
    "bound", ["matrix_flops", "vector_flops", "exponentials", "traffic", "shared_traffic", "memory"]
)
def test_twice_the_work_takes_twice_as_long(bound: str) -> None:
    rate = rates(A100)
    nothing = dict.fromkeys(("matrix_flops", "vector_flops", "exponentials", "traffic", "memory"), 0.0)
    work = {
        "matrix_flops": rate.matrix, "vector_flops": rate.vector, "exponentials": rate.exponentials,
        "traffic": rate.l2, "shared_traffic": rate.shared, "memory": rate.memory,
    }[bound] * 0.1  # fmt: skip
    once, twice = (predicted(**{**nothing, bound: times * work, "in_flight": 1e6}).seconds for times in (1, 2))
    assert 0.1 <= once < 0.2
    assert twice == pytest.approx(2 * once, rel=0.01)


def test_more_registers_never_help() -> None:
    found = [predicted(registers=registers, shared_bytes=0) for registers in range(16, 256, 8)]
    assert [one.occupancy for one in found] == sorted((one.occupancy for one in found), reverse=True)
    assert found[0].occupancy > 2 * found[-1].occupancy
    assert [one.seconds for one in found] == sorted(one.seconds for one in found)
    assert found[-1].seconds > 1.05 * found[0].seconds


def test_more_shared_memory_never_helps() -> None:
    found = [predicted(shared_bytes=shared, registers=64) for shared in range(0, 163 * 1024, 4096)]
    assert [one.seconds for one in found] == sorted(one.seconds for one in found)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"shared_bytes": 163 * 1024 + 1}, "a block takes 166913 bytes of shared memory, sm_80 has 166912"),
        ({"threads": 512, "registers": 255}, "512 threads of 255 registers do not fit the 65536 of sm_80"),
        ({"threads": 1056, "registers": 32}, "a block of 1056 threads is more than sm_80 takes"),
    ],
)
def test_what_does_not_fit_cannot_run(changes: dict[str, int], why: str) -> None:
    found = predicted(**changes)
    assert found.obstacle == why
    assert (found.seconds, found.occupancy) == (math.inf, 0)


def test_spills() -> None:
    none, few, many = (predicted(spill_bytes=spilled) for spilled in (0, 64, estimates.SPILL_LIMIT + 4))
    assert none.seconds < few.seconds < many.seconds < math.inf
    assert (none.obstacle, few.obstacle) == ("", "")
    assert many.obstacle == "a thread spills 260 bytes, more than 256"


def test_one_block_more_than_a_wave() -> None:
    """The last wave of equal blocks takes nearly as long with one block in it as with all."""
    slots = A100.units * 2
    work = {"vector_flops": 0.0, "exponentials": 0.0, "traffic": 0.0, "memory": 0.0}
    of_blocks = {
        blocks: predicted(blocks=blocks, matrix_flops=1e9 * blocks, **work) for blocks in (slots, slots + 1, 2 * slots)
    }
    one, more, two = (of_blocks[blocks].seconds for blocks in (slots, slots + 1, 2 * slots))
    assert [of_blocks[blocks].waves for blocks in of_blocks] == [1, 2, 2]
    assert more > 1.4 * one
    assert more < two < 2.1 * one


def test_uneven_blocks_fill_each_others_gaps_but_end_with_the_longest() -> None:
    slots = A100.units * 2
    even, uneven = (predicted(blocks=slots + 1, matrix_flops=1e9 * slots, longest=longest) for longest in (1.0, 1.2))
    assert uneven.seconds < even.seconds
    alone = predicted(blocks=4, matrix_flops=4e9)
    assert predicted(blocks=4, matrix_flops=4e9, longest=2.0).seconds == pytest.approx(2 * alone.seconds, rel=0.1)


def test_few_blocks_leave_units_idle() -> None:
    """The same work in a tenth as many blocks as there are units takes about ten times as long."""
    few, many = (predicted(blocks=blocks, matrix_flops=1e11, traffic=0.0) for blocks in (11, 108))
    assert few.seconds > 8 * many.seconds
    assert (few.bound, many.bound) == ("latency", "compute")


def test_steps_that_nothing_overlaps() -> None:
    work = {"matrix_flops": 1e10, "vector_flops": 0.0, "exponentials": 0.0, "traffic": 0.0, "memory": 0.0}
    few, many = (predicted(blocks=108, steps=steps, **work) for steps in (1.0, 1000.0))
    assert many.bound == "latency"
    assert many.seconds - few.seconds == pytest.approx(999 * estimates.STEP_CLOCKS / 1.41e9, rel=0.05)


def test_loads_that_are_not_asked_for_ahead() -> None:
    assert predicted(blocks=108, in_flight=0.0).seconds > predicted(blocks=108).seconds


def test_loads_of_a_block_wait_for_each_other() -> None:
    """Little's law for a block by itself: so many bytes on their way each time that the cache takes to answer."""
    work = {"matrix_flops": 0.0, "vector_flops": 0.0, "exponentials": 0.0, "memory": 0.0, "blocks": 108}
    found = predicted(traffic=108e6, in_flight=1e3, **work)
    assert found.seconds == pytest.approx(1000 * estimates.L2_LATENCY, rel=0.05)
    assert found.bound == "latency"


def test_memory_needs_bytes_on_their_way() -> None:
    """Little's law: bandwidth times latency must be asked for, or the bandwidth is not reached."""
    needed = A100.bandwidth * estimates.MEMORY_LATENCY
    work = {"matrix_flops": 0.0, "vector_flops": 0.0, "exponentials": 0.0, "traffic": 1e9, "memory": 1e9, "blocks": 108}
    enough, half = (predicted(in_flight=part * needed / 108, **work) for part in (1.0, 0.5))
    assert enough.bound == half.bound == "memory"
    assert enough.seconds == pytest.approx(1e9 / (estimates.MEMORY_EFFICIENCY * A100.bandwidth), rel=0.05)
    assert half.seconds == pytest.approx(1e9 / (0.5 * A100.bandwidth), rel=0.05)


def test_cache_that_holds_what_is_read_again() -> None:
    """At work at a time: 1 % of the blocks, so that 40 MiB of cache hold 4 GB in all."""
    work = {"matrix_flops": 0.0, "vector_flops": 0.0, "exponentials": 0.0, "in_flight": 1e6}
    fits, spills = (predicted(memory=memory, traffic=10 * memory, **work) for memory in (4e9, 16e9))
    assert spills.seconds > 2 * 4 * fits.seconds


def test_instructions_that_do_not_reach_the_published_rate() -> None:
    assert predicted(H100, matrix_share=0.5).seconds > 1.5 * predicted(H100).seconds


def test_launches_that_follow_add_up() -> None:
    small = Footprint(1, 32, 32, 0, 0.0, 0.0)
    large = replace(small, blocks=10**5, matrix_flops=1e12, threads=128, then=small)
    parts = [of_footprint(replace(part, then=None), A100) for part in large.parts()]
    both = of_footprint(large, A100)
    assert both.seconds == pytest.approx(sum(one.seconds for one in parts))
    assert (both.occupancy, both.waves, both.bound) == (parts[0].occupancy, parts[0].waves, parts[0].bound)
    assert of_footprint(replace(small, then=replace(small, shared_bytes=10**9)), A100).obstacle
    assert of_footprint(small, A100).bound == "overhead"


def test_what_was_compiled_replaces_the_estimate_of_the_heaviest() -> None:
    small = Footprint(1, 32, 32, 0, 0.0, 0.0)
    made = with_resources(replace(small, then=replace(small, matrix_flops=1.0, then=small)), Resources(99, 4, 7))
    assert [part.registers for part in made.parts()] == [32, 99, 32]
    assert [part.shared_bytes for part in made.parts()] == [0, 7, 0]
    assert [part.spill_bytes for part in made.parts()] == [0, 4, 0]
    assert [part.threads for part in made.parts()] == [32, 32, 32]
    assert with_resources(small, Resources(99, 0, 0, threads=64)).threads == 64


@pytest.mark.parametrize("card", NVIDIA)
def test_rates_are_of_the_right_size(card: str) -> None:
    """Clocks times operations a clock give what the vendor publishes, within what boost clocks differ; consumer cards
    of Turing multiply at half the rate of the T4, data-center cards of Ada at twice that of the others.
    """
    device = known(card)
    unpublished = rates(replace(device, matrix_flops=0.0))
    assert unpublished.matrix / device.matrix_flops == pytest.approx(
        {"2080ti": 2.05, "l4": 0.62}.get(card, 1), rel=0.05
    )
    assert rates(device).matrix == device.matrix_flops
    assert rates(device).memory == device.bandwidth
    assert rates(device).exponentials < rates(device).vector < rates(device).matrix


def test_exponentials_of_hopper() -> None:
    """3.9e12 a second, where products are 989e12: Shah et al. 2024, FlashAttention-3, section 3.1."""
    assert rates(H100).exponentials == pytest.approx(3.9e12, rel=0.02)
