"""Integer tensors read to the host: once for each change, and never a stale value."""

from __future__ import annotations

import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from faops import lengths


class OnDevice(Tensor):
    """A tensor that says it is on a device, and counts how often its values are read from there."""

    reads = 0

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 0)

    def tolist(self) -> Any:
        OnDevice.reads += 1
        return self.as_subclass(Tensor).tolist()


@pytest.fixture(autouse=True)
def nothing_read() -> None:
    lengths._reads.clear()
    OnDevice.reads = 0


def on_device(*values: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor(values, dtype=dtype).as_subclass(OnDevice)


def read(tensor: Tensor) -> tuple[list[int], int]:
    """The values, and how often the device was read for them."""
    before = OnDevice.reads
    return lengths.host(tensor), OnDevice.reads - before


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (3, 5), ()])
def test_a_cpu_tensor_is_read_and_not_kept(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randint(-9, 2**31 - 1, shape, dtype=dtype)
    values = lengths.host(tensor)
    assert values == tensor.reshape(-1).tolist()
    assert all(type(value) is int for value in values)
    assert not lengths._reads
    tensor += 1
    assert lengths.host(tensor) == [value + 1 for value in values]


def test_the_device_is_read_once() -> None:
    tensor = on_device(0, 3, 65, 130)
    assert read(tensor) == ([0, 3, 65, 130], 1)
    assert read(tensor) == ([0, 3, 65, 130], 0)


def test_tensors_do_not_share_an_entry() -> None:
    first, second = on_device(1, 2), on_device(1, 3)
    assert read(first) == ([1, 2], 1)
    assert read(second) == ([1, 3], 1)
    assert read(first) == ([1, 2], 0)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor.add_(1),
        lambda tensor: tensor.copy_(torch.tensor([5, 6, 7])),
        lambda tensor: tensor.__setitem__(1, 9),
        lambda tensor: tensor[1:].mul_(2),
        lambda tensor: tensor.view(3, 1).sub_(1),
        lambda tensor: torch.add(tensor, 4, out=tensor),
        lambda tensor: tensor.detach().zero_(),
    ],
    ids=["add", "copy", "setitem", "slice", "view", "out", "detached"],
)
def test_a_change_in_place_is_seen(change: Any) -> None:
    tensor = on_device(1, 2, 3)
    lengths.host(tensor)
    change(tensor)
    assert read(tensor) == (tensor.as_subclass(Tensor).tolist(), 1)
    assert read(tensor)[1] == 0


def test_other_memory_is_seen() -> None:
    tensor = on_device(1, 2, 3)
    lengths.host(tensor)
    tensor.data = torch.tensor([7, 8, 9], dtype=torch.int32)
    assert read(tensor) == ([7, 8, 9], 1)


def test_inference_tensors_are_read_every_time() -> None:
    with torch.inference_mode():
        tensor = on_device(4, 5)
        assert read(tensor) == ([4, 5], 1)
        tensor.add_(1)
        assert read(tensor) == ([5, 6], 1)
        assert read(tensor) == ([5, 6], 1)
    assert not lengths._reads


def test_what_the_caller_does_with_the_list_stays_there() -> None:
    tensor = on_device(1, 2)
    for _ in range(3):
        values = lengths.host(tensor)
        assert values == [1, 2]
        values.append(3)


def test_an_entry_goes_with_its_tensor() -> None:
    tensor, kept = on_device(1, 2), on_device(3)
    lengths.host(tensor)
    lengths.host(kept)
    gone = weakref.ref(tensor)
    del tensor
    assert gone() is None, "nothing else may hold the tensor"
    assert set(lengths._reads) == {id(kept)}


def test_another_tensor_at_the_same_place_is_read() -> None:
    """An id is given again once its tensor is gone; here the first one's entry is still there."""
    gone, tensor = on_device(1, 2), on_device(8, 9)
    lengths.host(gone)
    lengths._reads[id(tensor)] = lengths._reads[id(gone)]._replace(state=lengths.state_of(tensor))
    assert read(tensor) == ([8, 9], 1)
    del gone
    assert read(tensor) == ([8, 9], 0)


def test_a_late_farewell_leaves_the_entry_of_the_next_tensor() -> None:
    tensor, other = on_device(1, 2), on_device(3)
    lengths.host(tensor)
    lengths._forget(id(tensor), weakref.ref(other))
    assert read(tensor) == ([1, 2], 0)


def test_threads() -> None:
    """Some share tensors, some make and drop their own, and one changes: nobody gets values that never were."""
    shared = [on_device(*range(count)) for count in range(1, 9)]
    changing = on_device(0, 0)
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            changing.add_(1)

    def look(seed: int) -> None:
        last = 0
        for step in range(100):
            for count, tensor in enumerate(shared, 1):
                assert lengths.host(tensor) == list(range(count))
            own = on_device(seed, step)
            assert lengths.host(own) == [seed, step] == lengths.host(own)
            seen = lengths.host(changing)[0]
            assert seen >= last, "an older value came back"
            last = seen

    with ThreadPoolExecutor(5) as pool:
        writer = pool.submit(change)
        try:
            for found in [pool.submit(look, seed) for seed in range(4)]:
                found.result()
        finally:
            stop.set()
        writer.result()
    assert set(lengths._reads) <= {id(tensor) for tensor in (*shared, changing)}
