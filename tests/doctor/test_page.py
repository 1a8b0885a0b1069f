"""docs/doctor.md tells of the checks, statuses and fields that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path

from faops import doctor
from faops.doctor import check, probes
from faops.doctor.check import Check, Finding
from faops.doctor.report import counts

PAGE = (Path(__file__).parents[2] / "docs/doctor.md").read_text(encoding="utf-8")


def test_the_table_has_every_check_with_its_purpose() -> None:
    table = PAGE.split("| Check | Looks at: |\n|---|---|\n")[1].split("\n\n")[0]
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in table.splitlines()]
    kernels = ("`kernels.NAME`, one for each kernel", "the kernel agrees with the float64 reference on a small problem")
    listed = [
        (f"`{each.id}`", each.purpose)
        for each in doctor.checks()
        if each.group != "kernels" or each.id == "kernels.backends"
    ]
    assert rows == [*listed, kernels]


def test_the_json_document_has_the_fields_that_are_described() -> None:
    (example,) = re.findall(r"^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    shown = json.loads(example)
    finding = Finding(Check("a.b", "a", "", check.ok), check.warn("x", fix="y"), 0.1)  # type: ignore[arg-type]
    assert list(shown["findings"][0]) == list(finding.as_dict())
    assert list(shown["counts"]) == list(counts([]))
    for name in (*shown, *shown["findings"][0], *check.SEVERITY):
        assert f"`{name}`" in PAGE or name in ("command",), name


def test_the_limits_are_those_of_the_code() -> None:
    text = " ".join(PAGE.split())
    assert f"has {probes.TIMEOUT_SECONDS:.0f} s, and a check {check.LIMIT_SECONDS:.0f} s" in text


def test_the_output_shown_is_of_checks_that_exist() -> None:
    names = {each.id for each in doctor.checks()}
    shown = re.findall(r"^  (?:ok|!|x|-|\?) {1,3} (\w[\w., ]*?): ", PAGE, re.MULTILINE)
    assert len(shown) > 30
    assert {name for line in shown for name in line.split(", ")} <= names
