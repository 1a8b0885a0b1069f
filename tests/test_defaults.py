"""Shipped defaults: rows for all that kernels accept, where they come from, and what a broken file says.

``python -m tests.test_defaults`` prints what tests/shipped_defaults.txt holds: a digest over many default configs, and
some of them in clear.
"""

from __future__ import annotations

import copy
import fnmatch
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from faops import defaults, dispatch, registry
from faops.architectures import ARCHITECTURES, KNOWN_DEVICES
from faops.device import DeviceProfile, known
from faops.errors import DefaultsError
from faops.problem import AttentionProblem, Band
from faops.registry import Kernel

ROOT = Path(__file__).parents[1]
SAMPLE = Path(__file__).with_name("shipped_defaults.txt")
KERNELS = (
    "cuda_raw.sm75_decode", "cuda_raw.sm75_forward", "cuda_raw.sm80_decode", "cuda_raw.sm80_forward", "triton.backward",
    "triton.decode", "triton.forward",
)  # fmt: skip
CARDS = ("t4", "a100", "3090", "4090", "h200", "b200", "5090")  # one for each architecture
DTYPES = ("float16", "bfloat16", "float32")
HEAD_DIMS = ((64, 64), (65, 40), (96, 97), (128, 128), (192, 128), (193, 256))  # of keys and of values
FEATURES: dict[str, dict[str, Any]] = {
    "causal": {},
    "full": {"band": Band()},
    "window": {"band": Band(48, 0)},
    "softcap": {"softcap": True},
    "alibi": {"alibi": True},
    "bias": {"bias": "bhmn"},
    "mask": {"mask": "...n"},
    "dropout": {"dropout": True},
    "varlen": {"layout": "varlen"},
    "paged": {"layout": "paged", "page_size": 16},
}
NOT_OF_CACHE = ("dropout", "varlen")
ROWS = (1, 10, 30, 200, 2048)  # times two query heads a key/value head


def kernel_of(kernel_id: str) -> Kernel:
    kernel = registry.get(kernel_id)
    assert kernel is not None
    return kernel


def problem_of(kernel: Kernel, dtype: str, head_dims: tuple[int, int], feature: str, rows: int) -> AttentionProblem:
    values = {"band": Band(right=0), **FEATURES[feature]}
    return AttentionProblem(
        op=kernel.op, dtype=dtype, batch=2, heads_q=8, heads_kv=4, seqlen_q=rows, seqlen_k=2048,
        head_dim=head_dims[0], head_dim_v=head_dims[1], **values,
    )  # fmt: skip


def devices() -> list[DeviceProfile]:
    """A GPU of each known architecture, and two of one that is not: with little shared memory and with much."""
    newer = [
        replace(known(name), family="newer", arch="sm_130", name=f"newer than {name}") for name in ("5090", "b200")
    ]
    return [*(known(name) for name in CARDS), *newer]


def sweep(kernel_id: str, device: DeviceProfile) -> Iterator[tuple[Kernel, AttentionProblem]]:
    """Problems of a kernel, whether it accepts them on ``device`` or not."""
    kernel = kernel_of(kernel_id)
    left_out = NOT_OF_CACHE if kernel.op == "decode" else ("paged",)
    features = [feature for feature in FEATURES if feature not in left_out]
    for values in itertools.product(DTYPES, HEAD_DIMS, features, ROWS):
        yield kernel, problem_of(kernel, *values)


# ------------------------------------------------------------------------------------------------- the rows


@pytest.mark.parametrize("kernel_id", KERNELS)
def test_there_is_a_row_for_all_that_a_kernel_accepts_and_none_in_vain(kernel_id: str) -> None:
    used, accepted = set(), 0
    for device in devices():
        for kernel, problem in sweep(kernel_id, device):
            if kernel.check(problem, device):
                accepted += 1
                row = kernel.shipped(problem, device)
                assert row is not None and row.kernel == kernel_id
                used.add(id(row))
                assert row.config.keys() <= {*kernel.default_config(problem, device), "blocks_ahead"}
    assert accepted > 100
    assert used == {id(row) for row in defaults.table()[kernel_id]}


def test_these_kernels_have_rows_and_no_others() -> None:
    assert tuple(sorted(defaults.table())) == KERNELS
    cpu = known("cpu")
    for kernel in registry.kernels():
        if kernel.id not in KERNELS:
            assert kernel.shipped(problem_of(kernel, "float16", (64, 64), "causal", 256), cpu) is None


def sample() -> str:
    """A digest over all of :func:`sweep`, and every config of causal calls in float16 on four cards."""
    digest, lines = hashlib.sha256(), []
    for kernel_id, device in itertools.product(KERNELS, devices()):
        for kernel, problem in sweep(kernel_id, device):
            digest.update(repr(kernel.default_config(problem, device)).encode())
    for kernel_id, card in itertools.product(KERNELS, ("t4", "a100", "4090", "h200")):
        kernel = kernel_of(kernel_id)
        for head_dim, rows in itertools.product((64, 128, 256), ROWS):
            problem = problem_of(kernel, "float16", (head_dim, head_dim), "causal", rows)
            if kernel.check(problem, known(card)):
                lines.append(
                    f"{kernel_id} {card} d{head_dim} {rows} rows: {kernel.default_config(problem, known(card))}"
                )
    return "\n".join([f"sha256 {digest.hexdigest()}", *lines, ""])


def test_every_known_architecture_is_among_the_cards() -> None:
    gpus = {device.arch for device in KNOWN_DEVICES.values() if device.arch.startswith("sm_")}
    assert {known(card).arch for card in CARDS} == gpus


def test_defaults_are_those_on_record() -> None:
    assert sample() == SAMPLE.read_text(encoding="utf-8")


def test_rows_stand_in_order_one_a_line() -> None:
    data = json.loads(defaults.FILE.read_text(encoding="utf-8"))
    lines = defaults.FILE.read_text(encoding="utf-8").splitlines()
    written = [line.rstrip(",") for line in lines if line.startswith('  {"kernel"')]
    assert written == [f"  {json.dumps(row, ensure_ascii=False)}" for row in data["rows"]]
    told = [{name: value for name, value in row.items() if name not in ("config", "provenance", "note")}
            for row in data["rows"]]  # fmt: skip
    keys = [(row["kernel"], json.dumps(row)) for row in told]
    assert keys == sorted(keys) and len(set(keys)) == len(keys)


def test_everybody_can_see_where_a_row_comes_from() -> None:
    data = json.loads(defaults.FILE.read_text(encoding="utf-8"))
    assert {row["provenance"] for row in data["rows"]} == set(data["provenance"])
    assert list(data["provenance"]) == sorted(data["provenance"])
    for rows in defaults.table().values():
        for origin in {row.provenance for row in rows}:
            assert origin.how in defaults.HOW and origin.note
            assert set(origin.architectures) <= set(ARCHITECTURES) and origin.architectures
            assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", origin.date) and re.fullmatch(r"[0-9a-f]{7,40}", origin.commit)


def test_the_file_is_installed_with_the_package() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (patterns,) = re.findall(r'^"\*" = (\[.*\])$', text, re.MULTILINE)
    assert any(fnmatch.fnmatch(defaults.FILE.name, pattern) for pattern in json.loads(patterns))
    assert defaults.FILE.parent == Path(defaults.__file__).parent


# ------------------------------------------------------------------------------------------------- in words


def test_a_plan_says_where_its_config_comes_from() -> None:
    problem = problem_of(kernel_of("triton.forward"), "float16", (64, 64), "causal", 2048)
    plan = dispatch.plan(problem, known("h200"), "triton.forward")
    assert plan.source == "default"
    assert plan.detail == "not tuned on this device; shipped default for hopper (compiled, not measured)"
    newer = dispatch.plan(problem, devices()[-1], "triton.forward")
    assert newer.detail.startswith("not tuned on this device; shipped default, made for sm_80, ")
    assert newer.detail.endswith(", not for sm_130 (compiled, not measured)")
    assert dispatch.plan(problem, known("cpu")).detail == "not tuned on this device; default chosen by rule"


def test_a_measured_row_names_its_device() -> None:
    row = defaults.table()["triton.forward"][0]
    origin = replace(row.provenance, how="measured", device="NVIDIA H200", architectures=("sm_90",), date="2026-01-31")
    words = replace(row, provenance=origin).words(known("h100"))
    assert words == "shipped default for hopper (measured on NVIDIA H200, 2026-01-31)"


# ------------------------------------------------------------------------------------------------- a broken file


def changed(change: Callable[[Any], None]) -> Any:
    data = copy.deepcopy(json.loads(defaults.FILE.read_text(encoding="utf-8")))
    change(data)
    return data


def test_the_file_as_it_is_parses() -> None:
    assert defaults.parse(changed(lambda data: None)) == defaults.table()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(schema=2), "expected an object with schema 1"),
        (lambda data: data.pop("rows"), "KeyError: 'rows'"),
        (lambda data: data["rows"].append(3), "TypeError"),
        (lambda data: data["rows"][1].update(colour="red"), "row 2: unknown name 'colour'"),
        (lambda data: data["rows"][2].pop("config"), "row 3: config is missing"),
        (lambda data: data["rows"][2].update(config={}), "row 3: config is missing"),
        (lambda data: data["rows"][0].update(provenance="hearsay"), "row 1: no provenance is called 'hearsay'"),
        (lambda data: data["rows"][0].update(head_dim=[64]), "IndexError"),
        (lambda data: data["rows"][0].update(head_dim=[128, 64]), "row 1: head_dim ends before it begins"),
        (lambda data: data["rows"].append(data["rows"][0]), "two rows of cuda_raw.sm75_decode fit the same: tile_m="),
        (lambda data: data["provenance"]["triton"].update(how="guessed"), "provenance triton: how is 'guessed'"),
        (lambda data: data["provenance"]["triton"].update(how="measured"), "measured on no device"),
        (lambda data: data["provenance"]["triton"].pop("commit"), "KeyError: 'commit'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(change: Callable[[Any], None], message: str) -> None:
    with pytest.raises(DefaultsError) as raised:
        defaults.parse(changed(change))
    assert message in str(raised.value) and "defaults.json" in str(raised.value)


def test_rows_overlap_only_where_something_fits_both() -> None:
    row = defaults.table()["triton.forward"][0]
    narrow = replace(row, lists={"dtype": ("float16",)}, ranges={"head_dim": (1, 64), "shared_bytes": (0, 9)})
    assert narrow.overlaps(narrow) and narrow.overlaps(replace(narrow, lists={}, ranges={}))
    assert narrow.overlaps(replace(narrow, ranges={"head_dim": (64, None)}))
    assert not narrow.overlaps(replace(narrow, ranges={"head_dim": (65, None)}))
    assert not narrow.overlaps(replace(narrow, ranges={"shared_bytes": (10, 20)}))
    assert not narrow.overlaps(replace(narrow, lists={"dtype": ("bfloat16",)}))


@pytest.fixture
def other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file in place of the shipped one."""
    path = tmp_path / "defaults.json"
    monkeypatch.setattr(defaults, "FILE", path)
    for function in (defaults.table, defaults._lookup):
        function.cache_clear()
    yield path
    for function in (defaults.table, defaults._lookup):
        function.cache_clear()


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe"])
def test_a_file_that_cannot_be_read(other_file: Path, content: bytes | None) -> None:
    if content is not None:
        other_file.write_bytes(content)
    kernel, device = kernel_of("triton.forward"), known("h200")
    with pytest.raises(DefaultsError, match=r"cannot be read: .*fix: pip install --force-reinstall faops"):
        kernel.default_config(problem_of(kernel, "float16", (64, 64), "causal", 256), device)


def test_a_row_that_is_not_there(other_file: Path) -> None:
    other_file.write_text(json.dumps({"schema": defaults.SCHEMA, "provenance": {}, "rows": []}))
    kernel, device = kernel_of("triton.decode"), known("h200")
    expected = "has no row for triton.decode with family hopper, .* dtype float16, .* query_rows 16"
    with pytest.raises(DefaultsError, match=expected):
        kernel.default_config(problem_of(kernel, "float16", (64, 64), "causal", 1), device)


if __name__ == "__main__":
    print(sample(), end="")
