"""README.md, CHANGELOG.md and docs/ are true: links resolve, code runs, commands exist, printed output is the real one.

A Python block that begins with a comment naming a file, such as ``# faops_matmul.py``, is written to that file; the
other blocks of a page run one after the other in one new process, beside such files. A TOML block with entry points
makes these files an installed package in the eyes of that process.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from faops_cli.main import COMMANDS, command_line

import faops
from faops import registry

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # a dependency of pytest on such a Python

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
QUICK = ("README.md", "docs/semantics.md")  # pages whose Python blocks run in a few seconds
FILE_COMMENT = re.compile(r"# (\w+\.py)\n")


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language, without their fences and indentation of the first line."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors that a page's headings get: lower case, without punctuation, spaces as hyphens."""
    headings = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_pages_are_found() -> None:
    assert {"README.md", "CHANGELOG.md", "docs/index.md", "docs/add-a-backend.md", *QUICK} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_links_resolve(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text_of(name))):
        if re.match(r"[a-z]+://", target):
            assert target.startswith("https://")
            continue
        path, _, anchor = target.partition("#")
        page = (ROOT / name).parent / path if path else ROOT / name
        assert page.exists(), f"{name}: {target}"
        assert page.resolve().is_relative_to(ROOT), f"{name}: {target} leaves the repository"
        assert not anchor or anchor in anchors(page.read_text(encoding="utf-8")), f"{name}: {target}"


def test_the_index_links_every_page() -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", text_of("docs/index.md"))
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert pages - {"index.md"} <= set(links)


def test_readme_begins_with_the_two_commands() -> None:
    lines = [line for line in text_of("README.md").splitlines()[1:] if line]
    assert lines[0].split()[:2] == ["make", "demo"] and lines[1].split()[:2] == ["make", "test"]
    assert all(line.startswith("    make ") and line.endswith(".") for line in lines[:2])
    assert not lines[2].lstrip().startswith("make")


def run_page(name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a page's Python blocks as one program in ``folder``."""
    program = []
    for block in blocks(text_of(name), "python"):
        named = FILE_COMMENT.match(block)
        if named:
            (folder / named.group(1)).write_text(block, encoding="utf-8")
        else:
            program.append(block)
    for block in blocks(text_of(name), "toml"):
        install(tomllib.loads(block), folder)
    (folder / "page.py").write_text("\n".join(program), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-W", "error::faops.FaopsWarning", "page.py"],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def install(pyproject: dict[str, dict[str, dict[str, dict[str, str]]]], folder: Path) -> None:
    """Write what an installer would: the metadata and the entry points of the package, beside its modules."""
    project = pyproject["project"]
    metadata = folder / f"{str(project['name']).replace('-', '_')}-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{entry} = {target}" for entry, target in entries.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("name", [*QUICK, pytest.param("docs/tuning.md", marks=pytest.mark.full)])
def test_python_blocks_run(name: str, tmp_path: Path) -> None:
    assert blocks(text_of(name), "python")
    done = run_page(name, tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_example_backend_works_as_an_installed_package(tmp_path: Path) -> None:
    done = run_page("docs/add-a-backend.md", tmp_path)
    assert done.returncode == 0, done.stderr
    (printed,) = blocks(text_of("docs/add-a-backend.md"), "text")
    assert without_device(done.stdout) == without_device(printed)

    shown = output_of([["kernels", "--json"], ["doctor", "kernels.matmul.forward"]], tmp_path)
    assert '"matmul.forward"' in shown
    assert "kernels.matmul.forward: cpu" in shown


def without_device(message: str) -> list[str]:
    return [re.sub(r" on .*$", "", line) for line in message.splitlines()]


COMMANDS_IN_TURN = """
from click.testing import CliRunner
from faops_cli.main import command_line
for command in {commands}:
    result = CliRunner().invoke(command_line, command, prog_name="faops")
    assert result.exit_code == 0, result.output
    print(result.stdout)
"""


def output_of(commands: list[list[str]], folder: Path) -> str:
    """Standard output of commands, run one after the other in a process that sees the packages in ``folder``."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS_IN_TURN.format(commands=commands)],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_names_in_python_blocks_exist(name: str) -> None:
    for block in blocks(text_of(name), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in ("faops", "faops_cli"):
                for alias in node.names:
                    assert exists(f"{node.module}.{alias.name}"), f"{name}: {node.module}.{alias.name}"
            elif isinstance(node, ast.Attribute) and (dotted := ast.unparse(node)).startswith("faops."):
                assert not re.fullmatch(r"[\w.]+", dotted) or exists(dotted), f"{name}: {dotted}"


@pytest.mark.parametrize("name", NAMES)
def test_names_in_prose_exist(name: str) -> None:
    found = re.findall(r"`(faops(?:\.\w+)+)(?:\(\))?`", prose(text_of(name)))
    for dotted in set(found) - {"faops.yaml", "faops.backends"}:  # the settings file and the entry point group
        assert exists(dotted), f"{name}: {dotted}"


def exists(dotted: str) -> bool:
    """Whether a dotted name is a module or an attribute of one."""
    parts = dotted.split(".")
    found = importlib.import_module(parts[0])
    for index, part in enumerate(parts[1:], start=2):
        if not hasattr(found, part):
            try:
                importlib.import_module(".".join(parts[:index]))
            except ImportError:
                return False
        found = getattr(found, part)
    return True


@pytest.mark.parametrize("name", NAMES)
def test_paths_in_prose_exist(name: str) -> None:
    """Names of files and folders of this repository, written as code."""
    pattern = r"`((?:faops|cli|tests|docs|examples|benchmarks)/[\w./]*)`"
    for path in re.findall(pattern, prose(text_of(name))):
        assert (ROOT / path).exists(), f"{name}: {path}"


@pytest.mark.parametrize("name", NAMES)
def test_commands_exist(name: str) -> None:
    text = text_of(name)
    makefile = text_of("Makefile")
    for target in re.findall(r"(?:^[ $]*|`)make (?:\w+=\S+ )*([a-z-]+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{name}: make {target}"
    for line in re.findall(r"(?:^[ $]*|`)faops ([^`\n#]*)", text, re.MULTILINE):
        words = line.split()
        if not words or not re.fullmatch(r"[a-z]+", words[0]):
            continue
        if words[0] not in COMMANDS:  # prose that begins a line with the name of the project
            assert not re.search(rf"(?:^ *\$ *|`)faops {words[0]}", text, re.MULTILINE), f"{name}: faops {words[0]}"
            continue
        options = options_of(words[0], words[1:])
        for option in [word for word in words[1:] if word.startswith("--")]:
            assert option.partition("=")[0] in options, f"{name}: faops {line}"


def options_of(name: str, words: list[str]) -> set[str]:
    """All options of a command, or of its subcommand where ``words`` name one."""
    context = click.Context(command_line)
    command = command_line.get_command(context, name)
    assert command is not None
    if isinstance(command, click.Group):
        found = [part for word, part in command.commands.items() if word in words] or list(command.commands.values())
    else:
        found = [command]
    return {"--help", *(option for part in found for parameter in part.params for option in parameter.opts)}


@pytest.mark.parametrize("name", NAMES)
def test_explanations_for_other_devices_are_what_is_printed(name: str) -> None:
    for block in blocks(text_of(name), r"(?:text)?"):
        command, _, printed = block.partition("\n")
        if command.startswith("$ faops explain ") and "--device" in command:
            shown = CliRunner().invoke(command_line, command.split()[2:], prog_name="faops")
            assert shown.exit_code == 0, shown.output
            assert shown.stdout.rstrip() == printed.rstrip()


def test_readme_shows_such_an_explanation() -> None:
    assert re.search(r"^\$ faops explain .*--device t4", text_of("README.md"), re.MULTILINE)


def test_the_options_of_a_call_are_documented() -> None:
    readme, semantics = text_of("README.md"), text_of("docs/semantics.md")
    for function in (faops.attention, faops.attention_varlen, faops.attention_with_kvcache):
        for option in inspect.signature(function).parameters:
            if option not in ("q", "k", "v"):
                assert re.search(rf"\b{option}\b", semantics), f"docs/semantics.md: {option}"
    for option, parameter in inspect.signature(faops.attention).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            assert f"`{option}`" in readme, f"README.md: {option}"


def test_every_kernel_is_in_the_hardware_table() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \|", text_of("docs/hardware.md"), re.MULTILINE)
    kernels = {kernel.id for kernel in registry.kernels() if type(kernel).__module__.startswith("faops.")}
    assert set(rows) == kernels


def test_every_extra_is_in_install() -> None:
    extras = tomllib.loads(text_of("pyproject.toml"))["project"]["optional-dependencies"]
    assert len(extras) >= 8
    for extra in extras:
        assert f"`{extra}`" in text_of("docs/install.md"), extra


def test_versions_in_install_are_those_of_the_package() -> None:
    install_page, project = text_of("docs/install.md"), tomllib.loads(text_of("pyproject.toml"))["project"]
    (needed,) = [text for text in project["dependencies"] if text.startswith("torch")]
    (pinned,) = re.findall(r"^torch==(\S+)$", text_of("constraints.txt"), re.MULTILINE)
    assert f"{needed.removeprefix('torch>=')} or newer" in install_page and pinned in install_page
    for classifier in project["classifiers"]:
        if found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", classifier):
            assert found.group(1) in install_page
