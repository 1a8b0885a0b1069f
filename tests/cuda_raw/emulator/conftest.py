"""Every test here runs something in the emulator."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def kept_kernels(optimised: None, emulator_here: None) -> None:
    """Compiled kernels are kept between tests, and are built as the emulator builds them."""
