"""The helpers that print."""

from __future__ import annotations

import json
import math

import click
import pytest
from faops_cli import output
from faops_cli.devices import default, present, profile, torch_device
from faops_cli.durations import parse_duration

from faops.errors import ArgumentError


def test_plain_table_is_aligned_and_continues_cells() -> None:
    lines = output.plain_table(("a", "name"), [["1", "x"], ["22", "first\nsecond"]], title="numbers")
    assert lines == ["numbers", "a   name", "1   x", "22  first", "    second"]


def test_json_has_no_number_that_json_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json("test", values=(1.5, math.inf, {"x": math.nan}), flag=True)
    text = capsys.readouterr().out
    assert json.loads(text, parse_constant=pytest.fail) == {
        "schema_version": 1, "command": "test", "values": [1.5, None, {"x": None}], "flag": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.0, "2 s"),
        (0.0123, "12.3 ms"),
        (4.5e-5, "45 us"),
        (3e-8, "30 ns"),
        (None, "-"),
        (math.nan, "-"),
        (7200, "7200 s"),
    ],
)
def test_seconds(value: float | None, text: str) -> None:
    assert output.seconds(value) == text


def test_ratio() -> None:
    assert output.ratio(1.337) == "1.34x"
    assert output.ratio(None) == "-"


def test_terminal_table_keeps_brackets(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Square brackets are text and not rich's markup."""
    monkeypatch.setattr(output, "is_terminal", lambda: True)
    output.print_table(("config",), [("[block_q=64]",)])
    output.print_line("plan [bold]", style="green")
    text = capsys.readouterr().out
    assert "[block_q=64]" in text
    assert "plan [bold]" in text


def test_dumb_terminal_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert output.is_terminal()
    monkeypatch.setenv("TERM", "dumb")
    assert not output.is_terminal()


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("60s", 60), ("1.5m", 90), ("2h", 7200), (None, None)])
def test_durations(text: str | None, seconds: float | None) -> None:
    assert _duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "0", "1d", "1e3", "nan"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(click.BadParameter, match="60s, 2m or 1h"):
        _duration(text)


def _duration(text: str | None) -> float | None:
    option = click.Option(["--time-budget"])
    return parse_duration(click.Context(click.Command("tune")), option, text)


def test_devices() -> None:
    assert present()[0] == "cpu"
    assert torch_device("cpu").type == "cpu"
    assert profile("t4").arch == "sm_75"
    for name in ("toaster", "meta", "cpu:x", ""):
        with pytest.raises(ArgumentError, match="a device of this machine"):
            torch_device(name)


def test_default_device_is_the_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert default() == torch_device(None).type == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert default() == "cuda"


def test_device_index_past_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert torch_device("cuda:1").index == 1
    with pytest.raises(ArgumentError, match=r"'cuda:2'.*device count"):
        torch_device("cuda:2")
