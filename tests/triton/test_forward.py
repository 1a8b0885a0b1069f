from __future__ import annotations
import time, random
import pytest, torch
from tests.support import *
from tests.triton.support import *
pytestmark = pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("name", ["plain", *FEATURES])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_x(name, dtype):
    fs = [] if name == "plain" else [name]
    check_kernels(make_case(*fs, dtype=dtype, seqlen_q=70, seqlen_k=100))
