"""The fixture ``npu``: in its tests, CPU tensors are on an Ascend 910B whose operators are the contract double's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.npu import double
from tests.npu.support import ascend


@pytest.fixture
def npu(request: pytest.FixtureRequest) -> Iterator[double.Handle]:
    """The handle of the double. ``@pytest.mark.parametrize("npu", [...], indirect=True)`` gives other versions: each a
    version of torch_npu, or a dict of the arguments of :func:`tests.npu.support.ascend`.
    """
    given = getattr(request, "param", "2.13.0")
    with ascend(**(given if isinstance(given, dict) else {"version": given})) as handle:
        yield handle
