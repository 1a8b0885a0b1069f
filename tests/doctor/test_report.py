"""The block for a bug report, and what is taken out of it."""

from __future__ import annotations

import re

import pytest
import torch

from faops.doctor import report
from faops.doctor.check import Check, Finding, Result, fail, ok, skipped, warn
from faops.doctor.redact import REMOVED, redact

HOMES = ("/home/", "/Users/")  # apart from the names of people


@pytest.fixture(autouse=True)
def mallory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The person and the machine that nothing may name."""
    monkeypatch.setenv("HOME", "/home/mallory")
    monkeypatch.setenv("USERPROFILE", "/home/mallory")
    monkeypatch.setenv("LOGNAME", "mallory")
    monkeypatch.setattr("platform.node", lambda: "lair.example.org")


def _finding(name: str, result: Result, seconds: float = 0.1) -> Finding:
    return Finding(Check(name, name.partition(".")[0], "for a test", lambda: result), result, seconds)


FINDINGS = [
    _finding("a.fine", ok("all is well", "of no interest")),
    _finding("a.slow", ok("all is well"), 3.21),
    _finding("b.absent", skipped("not here")),
    _finding("b.absent2", skipped("not here")),
    _finding("b.poor", warn("so so", "because", fix="mend it")),
    _finding("c.broken", fail("in /home/mallory/x on lair", "```\nquoted", fix="rm /home/mallory/x")),
]


def test_the_block() -> None:
    block = report.markdown(FINDINGS)
    lines = block.splitlines()
    assert (lines[0], lines[-1]) == ("<details>", "</details>")
    assert re.fullmatch(
        r"<summary>faops .*, torch .*, Python .*: 1 failed, 1 warning, 2 ok, 2 skipped</summary>", lines[1]
    )
    assert f"torch  {' ' * 0}" in block and str(torch.__version__) in block
    for expected in (
        "!  b.poor: so so",
        "     because",
        "     fix: mend it",
        "x  c.broken: in ~/x on <host>",
        "ok a.fine, a.slow",
        "-  b.absent, b.absent2: not here",
        "slow: a.slow 3.2 s",
    ):
        assert expected in lines
    assert "of no interest" not in block


def test_a_fence_is_longer_than_those_in_its_text() -> None:
    fences = re.findall(r"^ *(`{3,}\w*)", report.markdown(FINDINGS), re.MULTILINE)
    assert fences == ["```text", "```"] * 3 + ["````text", "```", "````"]


def test_settings_and_variables_that_matter(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    path = f"{tmp_path}/faops.yaml"
    with open(path, "w") as file:
        file.write("tuning: false\n")
    values = {
        "FAOPS_CONFIG": path, "CUDA_VISIBLE_DEVICES": "1", "OMP_NUM_THREADS": "3", "TORCH_API_KEY": "k1",
        "CUDA_TOKEN": "k2", "UNRELATED_VARIABLE": "k3", "CUSTOMCUDA_HOME": "k4",
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    block = report.markdown([])
    assert re.search(r"^tuning \(faops.yaml\) +False$", block, re.MULTILINE)
    assert re.search(r"^CUDA_VISIBLE_DEVICES +1$", block, re.MULTILINE)
    assert re.search(rf"^CUDA_TOKEN +{REMOVED}$", block, re.MULTILINE)
    assert not re.search(r"k[1-4]\b", block)
    assert block.count("(faops.yaml)") == 1
    assert "nothing was checked" in block


def test_a_wrong_setting_does_not_stop_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAOPS_TUNING", "perhaps")
    assert "tuning (wrong)" in report.markdown([])


def test_nothing_is_taken_out_unless_wanted() -> None:
    assert "/home/mallory/x" in report.markdown(FINDINGS, redacted=False)
    assert "mallory" not in report.markdown(FINDINGS)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/mallory/.cache", "~/.cache"),
        (f"{HOMES[0]}mallory2/.cache and {HOMES[1]}eve/x", f"{HOMES[0]}<user>/.cache and {HOMES[1]}<user>/x"),
        ("by mallory, not mallory2", "by <user>, not mallory2"),
        ("lair.example.org and lair", "<host> and <host>"),
        ("https://eve:pw@example.org/simple", f"https://{REMOVED}@example.org/simple"),
        ("hf_abcdefghijklmnopqrst", REMOVED),
        ("HF_TOKEN=secret and api_key=x", f"HF_TOKEN={REMOVED} and api_key={REMOVED}"),
        ("tcp 192.168.1.20:80, 8.8.8.8", "tcp <address>:80, 8.8.8.8"),
        ("cuDNN 9.1.0.70, driver 570.86.10", "cuDNN 9.1.0.70, driver 570.86.10"),
        ("at fe80::1, 2001:db8:0:0:0:0:2:1", "at <address>, <address>"),
        ("12:30:45 00000000:00:04.0 std::vector", "12:30:45 00000000:00:04.0 std::vector"),
        ("GPU-5ee4a0b1-0c1d-4b3a-9f00-123456789abc", "GPU-<uuid>"),
        ("sm_90 in torch 2.13.0+cpu at 0x7f3a", "sm_90 in torch 2.13.0+cpu at 0x7f3a"),
    ],
)
def test_redact(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact({"a": [text], "b": (text,)}) == {"a": [shown], "b": [shown]}


def test_values_of_secret_names_are_removed() -> None:
    secrets = ["HF_TOKEN", "MY_SECRET", "DB_PASSWORD", "AWS_ACCESS_KEY", "GITHUB_PAT", "HTTP_AUTHORIZATION"]
    assert redact(dict.fromkeys(secrets, "x")) == dict.fromkeys(secrets, REMOVED)
    assert redact({"OMP_NUM_THREADS": "4", "keys": 3, "path": "x"}) == {"OMP_NUM_THREADS": "4", "keys": 3, "path": "x"}


def test_a_host_without_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.node", lambda: "localhost")
    assert redact("tcp://localhost:80") == "tcp://localhost:80"
