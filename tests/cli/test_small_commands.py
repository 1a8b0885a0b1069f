"""`faops config`, `version` and `completion`."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
import torch

from faops import settings
from faops._version import __version__
from tests.cli.conftest import Faops
from tests.cli.support import document, python, refused


def test_config_shows_every_setting_and_its_source(faops: Faops, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(os.environ["FAOPS_CONFIG"])
    path.write_text("tuning: false\n")
    monkeypatch.setenv("FAOPS_BACKEND", "torch")
    found = document(faops("config", "--json"))
    assert [row["name"] for row in found["settings"]] == list(settings.SETTINGS)
    rows = {row["name"]: (row["value"], row["source"]) for row in found["settings"]}
    assert rows["backend"] == ("torch", "environment")
    assert rows["tuning"] == (False, "file")
    assert rows["check_values"] == (False, "default")
    assert found["paths"] == {"config": str(path), "config_exists": True, "cache": os.environ["FAOPS_CACHE_DIR"]}
    text = faops("config").stdout
    for setting in settings.SETTINGS.values():
        assert setting.variable in text
        assert setting.meaning in text
    assert str(path) in text


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("tuning: perhaps\n", ("tuning", "perhaps", "expected 0 or 1")),
        ("tunning: 1\n", ("unknown setting 'tunning'", "tuning")),
        ("[1, 2]\n", ("expected a mapping",)),
        ("a: [\n", ("cannot be read",)),
    ],
)
def test_config_refuses_a_broken_file(faops: Faops, written: str, words: tuple[str, ...]) -> None:
    path = Path(os.environ["FAOPS_CONFIG"])
    path.write_text(written)
    refused(faops("config"), str(path), *words)


def test_version(faops: Faops) -> None:
    found = document(faops("version", "--json"))
    assert found["faops"] == __version__
    assert found["python"] == platform.python_version()
    assert found["torch"] == metadata.version("torch")
    assert torch.__version__.startswith(found["torch"])  # which may add the CUDA version it was built for
    assert found["packages"]["numpy"] == metadata.version("numpy")
    text = faops("version").stdout
    assert text.startswith("faops ")
    assert __version__ in text


def test_version_says_what_is_not_installed(faops: Faops, monkeypatch: pytest.MonkeyPatch) -> None:
    import faops_cli.version

    monkeypatch.setattr(faops_cli.version, "OPTIONAL", ("no-such-distribution",))
    assert document(faops("version", "--json"))["packages"] == {"no-such-distribution": None}
    assert "no-such-distribution  not installed" in faops("version").stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_and_how_to_install_it(faops: Faops, shell: str) -> None:
    found = document(faops("completion", shell, "--json"))
    assert "_FAOPS_COMPLETE" in found["script"]
    text = faops("completion", shell).stdout
    assert text.startswith(f"# install: {found['install']}\n")
    assert f"faops completion {shell}" in found["install"]


def test_completion_of_an_unknown_shell(faops: Faops) -> None:
    refused(faops("completion", "tcsh"), "'tcsh'", "bash", code=2)


def test_bash_takes_the_script(faops: Faops) -> None:
    script = faops("completion", "bash").stdout + "\ncomplete -p faops\n"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "_faops_completion" in done.stdout


def test_shell_asks_and_gets_the_commands() -> None:
    done = python("-m", "faops_cli", _FAOPS_COMPLETE="bash_complete", COMP_WORDS="faops ca", COMP_CWORD="1")
    assert done.stdout.split() == ["plain,cache"]
