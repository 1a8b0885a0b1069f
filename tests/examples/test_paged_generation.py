"""What examples/paged_generation.py claims: sameness of every token, and its table."""

from __future__ import annotations

import importlib
import re
from types import ModuleType
from typing import Any

import pytest

from tests.examples.conftest import VOCABULARY


class Tokenizer:
    """A token for each character; every chat begins alike."""

    def apply_chat_template(self, chat: list[dict[str, str]], **options: bool) -> list[int]:
        return [ord(letter) % VOCABULARY for letter in "system: answer! " + chat[0]["content"][:60]]

    def decode(self, tokens: list[int], **options: bool) -> str:
        return "".join(chr(ord("!") + token) for token in tokens)


@pytest.fixture
def example(llama: Any, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = importlib.import_module("paged_generation")
    llama.generation_config.eos_token_id = 5
    llama.generation_config.pad_token_id = 0
    monkeypatch.setattr(module, "load", lambda implementation: (llama, Tokenizer()))
    return module


def test_all_ways_write_the_same(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert example.main(["--tokens", "9", "--pages", "14"]) == 0
    out = capsys.readouterr().out
    assert "all tokens are those of transformers, one by one" in out and "DIFFERENT" not in out
    assert "16 tokens that all prompts begin with are held once" in " ".join(out.split())
    rows = re.findall(r"^(transformers, one by one|faops, one by one|faops, all at once) +(\d+) ", out, re.MULTILINE)
    assert len(rows) == 3 and len({count for _, count in rows}) == 1
    assert 8 <= int(rows[0][1]) <= 72


def test_the_size_of_the_cache_is_counted(example: ModuleType) -> None:
    model, tokenizer = example.load("sdpa")
    prompts = [example.encode(tokenizer, "abc"), example.encode(tokenizer, "a longer one than that")]
    size = 2 * 2 * 2 * 8 * 8  # keys and values, layers, heads, dim, float64
    model.generation_config.eos_token_id = -1
    theirs = example.with_transformers(model, prompts, 4, 20)
    ours = example.all_at_once(model, prompts, 4, 20)
    assert theirs.answers == ours.answers
    assert theirs.cache_bytes == (len(prompts[1]) + 3) * size  # the last token is never read
    # Both prompts begin with the system prompt and "a". These 17 tokens fill a page and one slot, and each request gets
    # a copy of that second page.
    assert ours.pages == f"{1 + 1 + 1 + 2}/20"
    assert ours.cache_bytes == 5 * 16 * size
    assert size == example.bytes_a_token(model)


def test_a_different_token_is_said_loudly(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = example.all_at_once

    def wrong(*arguments: Any) -> Any:
        run = right(*arguments)
        run.answers[3][-1] += 1
        return run

    monkeypatch.setattr(example, "all_at_once", wrong)
    assert example.main(["--tokens", "2"]) == 1
    out = capsys.readouterr().out
    assert out.count("*** DIFFERENT ***") == 1 and "some tokens are NOT those" in out


def test_too_few_pages_are_named(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert example.main(["--tokens", "2", "--pages", "4"]) == 1
    assert "--pages 4 do not hold the longest request" in capsys.readouterr().out


def test_wrong_arguments_are_named(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        example.main(["--tokens", "0"])
    assert "--tokens 0: expected at least 1" in capsys.readouterr().err
