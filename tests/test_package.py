"""The shape of the package: what it imports and exports, how its parts depend on each other, what its files say."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import faops
from faops import settings

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "faops").rglob("*.py"))
}
FOLDERS = (".ci", "benchmarks", "cli", "docs", "examples", "faops", "tests")
TEXT_SUFFIXES = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".cfg", ".html", ".css", ".js", ".svg"}
TEXT_NAMES = {"Makefile", "LICENSE", ".gitignore", "run"}
MAX_LINES = 400

# What `import faops` must not bring: packages that are slow to import, or that only some machines have.
HEAVY = {
    "rich",
    "click",
    "cupy",
    "triton",
    "torch_npu",
    "transformers",
    "yaml",
    "platformdirs",
    "filelock",
    "faops_cli",
}

PUBLIC = [getattr(faops, name) for name in faops.__all__ if name != "__version__"]
FUNCTIONS = [item for item in PUBLIC if inspect.isfunction(item)]


# --- what it imports --------------------------------------------------------------------------------------------------


def test_public_names_bring_torch_and_nothing_heavy() -> None:
    program = (
        "import sys, torch; before = set(sys.modules); import faops; [getattr(faops, name) for name in faops.__all__]; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    brought = set(done.stdout.split())
    assert "faops" in brought
    assert not brought & HEAVY
    assert brought - set(sys.stdlib_module_names) == {"faops"}


def test_import_alone_brings_no_torch() -> None:
    program = "import sys, faops, faops.settings, faops.files; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_import_opens_no_device() -> None:
    program = "import faops, torch; faops.attention; print(torch.cuda.is_initialized())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- what it exports --------------------------------------------------------------------------------------------------


def test_public_names_are_those_of_all() -> None:
    assert list(faops.__all__) == sorted(faops.__all__) == sorted({*faops._HOMES, "__version__"})
    assert set(faops.__all__) <= set(dir(faops))
    with pytest.raises(AttributeError, match="'faops' has no attribute 'atention'"):
        faops.atention  # noqa: B018


@pytest.mark.parametrize("item", PUBLIC, ids=lambda item: item.__name__)
def test_public_names_are_documented(item: Any) -> None:
    assert inspect.getdoc(item)
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert any(re.search(rf"\b{item.__name__}\b", page.read_text(encoding="utf-8")) for page in pages)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_docstrings_name_every_parameter(function: Callable[..., Any]) -> None:
    """In its own docstring, or in that of a function which it refers to for the rest."""
    text = documentation(function)
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is not parameter.VAR_KEYWORD:
            assert re.search(rf"\b{parameter.name}\b", text), parameter.name


def documentation(function: Callable[..., Any]) -> str:
    text = inspect.getdoc(function) or ""
    for name in re.findall(r":func:`(?:faops\.)?(\w+)`", text):
        text += inspect.getdoc(getattr(faops, name)) or ""
    return text


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_every_parameter_has_a_type(function: Callable[..., Any]) -> None:
    assert all(
        parameter.annotation is not parameter.empty for parameter in inspect.signature(function).parameters.values()
    )


def test_the_three_calls_have_the_same_options() -> None:
    """Of `attention` all options, in the same order and with the same defaults; the cache call has no dropout."""
    dense = keyword_options(faops.attention)
    without_dropout = {"dropout_p", "generator", "deterministic"}
    assert keyword_options(faops.attention_varlen) == dense
    cached = keyword_options(faops.attention_with_kvcache)
    assert [option for option in cached if option in dense] == [
        option for option in dense if option[0] not in without_dropout
    ]


def keyword_options(function: Callable[..., Any]) -> list[tuple[str, Any]]:
    parameters = inspect.signature(function).parameters.values()
    return [(parameter.name, parameter.default) for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


# --- how its parts depend on each other -------------------------------------------------------------------------------


def imports(path: Path, module: str, *, inside_functions: bool) -> Iterator[str]:
    """Modules that a file imports, as full dotted names. Imports for type checkers only do not count.

    `from a import b` means a.b where that is a module of faops, else a.
    """
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in statements(ast.parse(path.read_text(encoding="utf-8")), inside_functions):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *filter(None, [base])])
            for alias in node.names:
                dotted = f"{base}.{alias.name}"
                yield dotted if dotted in MODULES else base


def statements(node: ast.AST, inside_functions: bool) -> Iterator[ast.AST]:
    """All nodes below ``node`` but those under `if TYPE_CHECKING:` and, unless asked for, in functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not inside_functions:
            continue
        yield child
        yield from statements(child, inside_functions)


def test_the_library_does_not_import_the_command_line() -> None:
    for module, path in MODULES.items():
        for name in imports(path, module, inside_functions=True):
            assert name.partition(".")[0] not in ("faops_cli", "cli", "tests", "benchmarks"), f"{module} imports {name}"


def test_there_are_no_import_cycles() -> None:
    graph = {
        module: {name for name in imports(path, module, inside_functions=False) if name in MODULES}
        for module, path in MODULES.items()
    }
    assert sum(len(targets) for targets in graph.values()) > 50  # the graph is really there
    assert find_cycle(graph) == []


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one cycle in order; [] where there is none."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        for target in sorted(graph[module]):
            if found := visit(target, [*path, module]):
                return found
        done.add(module)
        return []

    return next((cycle for module in graph if (cycle := visit(module, []))), [])


def test_cycles_are_found() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_backends_do_not_import_each_other() -> None:
    backends = {module.split(".")[2] for module in MODULES if module.startswith("faops.backends.")}
    assert "torch" in backends
    for module, path in MODULES.items():
        if module.startswith("faops.backends."):
            own = module.split(".")[2]
            for name in imports(path, module, inside_functions=True):
                other = name.removeprefix("faops.backends.").partition(".")[0] if "faops.backends." in name else own
                assert other == own, f"{module} imports {name}"


def test_only_backends_know_their_backend() -> None:
    """The library reaches a backend through the registry alone; doctor looks inside one, in a module of its own."""
    allowed = {
        "faops.doctor.cuda": "faops.backends.cuda_raw",
        "faops.doctor.npu.child": "faops.backends.npu",
        "faops.doctor.triton": "faops.backends.triton",
    }
    for module, path in MODULES.items():
        if not module.startswith("faops.backends"):
            own = allowed.get(module, "nothing else")
            for name in imports(path, module, inside_functions=True):
                assert not name.startswith("faops.backends") or name.startswith(own), f"{module} imports {name}"


# --- what its files say -----------------------------------------------------------------------------------------------


def text_files() -> Iterator[Path]:
    """The repository's own text files."""
    for path in [*ROOT.iterdir(), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))]:
        if path.is_file() and (path.suffix in TEXT_SUFFIXES or path.name in TEXT_NAMES):
            yield path


def test_files_are_short() -> None:
    for path in text_files():
        if path.suffix == ".py":
            count = len(path.read_text(encoding="utf-8").splitlines())
            assert count < MAX_LINES, f"{path.relative_to(ROOT)} has {count} lines"


# Written in pieces, so that this file does not hold what it looks for. "ada" and "mallory" are made up for examples.
FORBIDDEN = (
    r"(?<![\w.])/(?:wo" + r"rk|ro" + r"ot)/",
    r"/ho" + r"me/(?!ada/|mallory\b)\w+",
    r"/Us" + r"ers/\w+",
    r"py" + r"pi\.org",
    r"python" + r"hosted",
    r"np" + r"mjs",
    r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b",
)


def test_files_hold_no_paths_of_a_machine_and_no_registry_hosts() -> None:
    pattern = re.compile("|".join(FORBIDDEN))
    files = list(text_files())
    assert len(files) > 100
    for path in files:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            found = pattern.search(line)
            assert not found, f"{path.relative_to(ROOT)}:{number}: {found.group() if found else ''}"


def test_every_setting_is_documented() -> None:
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert settings.SETTINGS
    for setting in settings.SETTINGS.values():
        assert f"`{setting.name}`" in text and f"`{setting.variable}`" in text


def test_the_version_is_the_newest_of_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d{2}-\d{2}$", changelog, re.MULTILINE)
    assert released[0] == faops.__version__
    assert importlib.metadata.version("faops") == faops.__version__


def test_the_types_are_published() -> None:
    assert (ROOT / "faops" / "py.typed").is_file()
