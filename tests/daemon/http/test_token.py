"""The token of requests over TCP."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

from faops.daemon.http import token
from faops.errors import DaemonError


def test_tokens_differ_and_go_into_urls() -> None:
    made = {token.make() for _ in range(20)}
    assert len(made) == 20
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", found) for found in made)  # 32 bytes


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_its_file_is_its_users_alone(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "token"
    path.write_text("an older one")
    path.chmod(0o644)
    before = os.umask(umask)
    try:
        token.write(path, "abc")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token.read(path) == "abc"
    assert [found.name for found in tmp_path.iterdir()] == ["token"]


def test_what_cannot_be_read_or_written_says_so(tmp_path: Path) -> None:
    for make in (lambda path: token.read(path), lambda path: token.write(path / "deeper", "x")):
        with pytest.raises(DaemonError, match=r"none.*cannot be"):
            make(tmp_path / "none")
    (tmp_path / "large").write_text("x" * 1000)
    with pytest.raises(DaemonError, match="larger"):
        token.read(tmp_path / "large")


def test_equal_is_equal() -> None:
    assert token.equal("abc", "abc")
    for other in ("", "ab", "abcd", "abd", "é", "\ud800"):
        assert not token.equal(other, "abc")
