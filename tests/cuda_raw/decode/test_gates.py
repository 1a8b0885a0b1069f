"""The gates hold for the KV-cache kernels, and each of them fails for a kernel that breaks what it guards."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from faops.backends.cuda_raw import emulator
from faops.backends.cuda_raw.gates import command, sass
from faops.backends.cuda_raw.gates.decode_cases import PAGES, ROWS, DecodeCase, decode_defaults, decode_everything
from faops.backends.cuda_raw.gates.decode_code import check_decode_code
from faops.backends.cuda_raw.gates.decode_counts import check_decode_counts
from faops.backends.cuda_raw.specialize import Specialised
from faops.backends.cuda_raw.targets import Target
from tests.cuda_raw.sources import need_compiler

need_compiler()
if reason := sass.missing() or emulator.missing():
    pytest.skip(f"NOT TESTED, no kernel went through the gates: {reason}", allow_module_level=True)

ROUNDED = "rounded_product(widen(mine[i], half), cosine[angle])"
pytestmark = pytest.mark.usefixtures("emulator_here", "kept_cubins")
TURING, AMPERE = Target("sm_75"), Target("sm_80")


def default(target: Target, head_dim: int = 64, feature: str = "page16", rows: int = 1) -> DecodeCase:
    cases = decode_defaults([target], [head_dim], [feature])
    return next(case for case in cases if case.rows == rows and case.dtype == torch.float16)


def changed(case: DecodeCase, entry: str, old: str, new: str) -> Specialised:
    """The case's kernel of that entry with ``old`` replaced in its sources; it must stand there exactly once."""
    kernel = next(kernel for kernel, _ in case.launches() if kernel.source.entry == entry)
    source = kernel.source
    count = source.text.count(old) + sum(text.count(old) for _, text in source.headers)
    assert count == 1, f"{old!r} stands {count} times in the sources"
    headers = tuple((name, text.replace(old, new)) for name, text in source.headers)
    return replace(kernel, source=replace(source, headers=headers, text=source.text.replace(old, new)))


@pytest.mark.parametrize(
    "case",
    [
        default(TURING, 64, "dense"),
        default(AMPERE, 128, "page1"),
        pytest.param(default(Target("sm_90a"), 64, "page64", 64), marks=pytest.mark.full),
        pytest.param(default(AMPERE, 256), marks=pytest.mark.full),
    ],
    ids=str,
)
def test_kernels_hold(case: DecodeCase) -> None:
    result = command.check(command.Job(case, counted=True))
    assert not result.failures, "\n".join(result.failures)
    assert result.figures["conflicts"] == 0 and result.figures["wavefronts"] > 0


@pytest.mark.full
@pytest.mark.parametrize("target", ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120"])
def test_every_default_holds(target: str) -> None:
    jobs = list(command.jobs_of(decode_defaults([Target(target)], [32, 64, 128], tuple(PAGES))))
    failures = [f"{result.case}: {text}" for result in map(command.check, jobs) for text in result.failures]
    assert len(jobs) >= 3 * len(PAGES) * len(ROWS) and not failures, "\n".join(failures)


@pytest.mark.full
@pytest.mark.parametrize(
    ("entry", "old", "new", "failure"),
    [
        ("attention_decode", "COPY_BYTES = 16", "COPY_BYTES = 8", "LDGSTS of 16 bytes in the loop"),
        ("attention_decode", "PARTIAL_VECTORS = true", "PARTIAL_VECTORS = false", "no STG of 16 bytes"),
        ("decode_append", "KEY_BYTES = 16", "KEY_BYTES = 4", "decode_append: "),
        ("decode_append", ROUNDED, "widen(mine[i], half) * cosine[angle]", "FFMA, but keys turn"),
        ("decode_combine", "OUT_VECTORS = true", "OUT_VECTORS = false", "decode_combine: 4 STG of 2 bytes"),
    ],
)  # fmt: skip
def test_code_that_breaks_a_gate(entry: str, old: str, new: str, failure: str) -> None:
    case = default(AMPERE)
    failures = check_decode_code(case, changed(case, entry, old, new)).failures
    assert any(failure in found for found in failures), failures


def test_a_product_computed_twice() -> None:
    case = default(AMPERE)
    once = "values.multiply(rows, scores, ring.value_slot(i));"
    failures = check_decode_code(case, changed(case, "attention_decode", once, once + once)).failures
    assert any("HMMA in the loop" in failure for failure in failures), failures


def test_results_in_the_same_banks() -> None:
    case = default(TURING)
    kernel = changed(case, "attention_decode", "(COLUMNS % 32 == 0 ? 8 : 24)", "(COLUMNS % 32 == 0 ? 0 : 16)")
    failures = check_decode_counts(case, kernel).failures
    assert any("bank conflicts" in failure for failure in failures), failures


@pytest.mark.full
def test_keys_read_twice() -> None:
    """Splits that all read every block load more than the keys and values there are."""
    case = default(AMPERE)
    kernel = changed(case, "attention_decode", "blocks = share + (split < left_over ? 1 : 0);", "blocks += 0 * share;")
    failures = check_decode_counts(case, kernel).failures
    assert any("attention_decode" in failure and "loaded" in failure for failure in failures), failures


def test_everything_is_what_it_says() -> None:
    cases = list(decode_everything([TURING, AMPERE], [64]))
    assert len(cases) == len(set(cases))
    assert {(case.target, case.feature, case.rows) for case in cases} >= {
        (target, feature, rows) for target in (TURING, AMPERE) for feature in PAGES for rows in ROWS
    }
    assert len({case.config for case in cases}) > 20
    sources = {
        feature: [kernel.source for kernel, _ in default(AMPERE, feature=feature).launches()] for feature in PAGES
    }
    assert len({tuple(source) for source in sources.values()}) == len(PAGES)
