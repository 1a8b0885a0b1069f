"""Reading kernel_details.csv, in which torch_npu's profiler lists what ran on an Ascend NPU.

Which columns there are depends on the version of CANN and on how the profiler was set up: with profiler level 0 there
are no shapes, and the type may be N/A. The columns are those of the Ascend PyTorch Profiler's user guide.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from faops.profile import kernels
from faops.profile.events import Event, Kind, Operand, Timeline, TraceError

FILE = "kernel_details.csv"

# Names of columns in other versions, and in op_summary.csv, from which this file is made.
RENAMED = {
    "Op Name": "Name",
    "OP Type": "Type",
    "Task Type": "Accelerator Core",
    "Task Start Time(us)": "Start Time(us)",
    "Task Duration(us)": "Duration(us)",
    "Task Wait Time(us)": "Wait Time(us)",
    "Block Dim": "Block Num",
    "Mix Block Dim": "Mix Block Num",
}
NEEDED = ("Name", "Start Time(us)", "Duration(us)")
ABSENT = ("", "N/A")
# Shapes in other formats are those of tiles, such as FRACTAL_NZ.
PLAIN_FORMATS = ("ND", "NCHW", "NHWC", "NCL", "NCDHW", *ABSENT)
ITEMSIZES = {
    "FLOAT": 4, "DT_FLOAT": 4, "FLOAT16": 2, "DT_BF16": 2, "BF16": 2, "DOUBLE": 8, "BOOL": 1, "INT8": 1, "UINT8": 1,
    "INT16": 2, "INT32": 4, "INT64": 8, "UINT32": 4, "UINT64": 8, "FLOAT8_E4M3FN": 1, "FLOAT8_E5M2": 1,
}  # fmt: skip


def find(folder: Path) -> list[Path]:
    """The files of this name in a folder that the profiler wrote, one a process and device."""
    return sorted(folder.rglob(FILE))


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a file, by the names that its columns have today; cells are stripped. Raises TraceError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TraceError(f"{path}: is no text, and no {FILE}") from None
    try:
        table = list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise TraceError(f"{path}: is no CSV file: {error}") from None
    if not table:
        raise TraceError(f"{path}: is empty; the profiler ended before it wrote its results")
    header = [RENAMED.get(name.strip(), name.strip()) for name in table[0]]
    missing = [name for name in NEEDED if name not in header]
    if missing:
        raise TraceError(f"{path}: has no column {', '.join(missing)}; is it a {FILE}?")
    return [_row(path, header, number, cells) for number, cells in enumerate(table[1:], 2) if any(cells)]


def _row(path: Path, header: list[str], number: int, cells: list[str]) -> dict[str, str]:
    if len(cells) < len(header):
        raise TraceError(f"{path}: line {number} has {len(cells)} of {len(header)} cells; the file is cut off")
    row = {name: cell.strip() for name, cell in zip(header, cells)}
    for name in ("Start Time(us)", "Duration(us)"):
        try:
            float(row[name])
        except ValueError:
            raise TraceError(f"{path}: line {number}: {name} is {row[name]!r}, expected a number") from None
    return row


def read(paths: list[Path]) -> Timeline:
    """The kernels of one or several files. Raises TraceError."""
    events = [_event(row, str(path)) for path in paths for row in rows(path)]
    return Timeline("kernel_details", events, device="npu")


def _event(row: dict[str, str], path: str) -> Event:
    operator, type_ = _names(row)
    family = kernels.npu_kernel(type_)
    kind = family.kind if family else Kind.OTHER
    inside = "" if kind is Kind.FUSED else _attention(operator)
    lane = (path, *(row.get(name, "") for name in ("Device_id", "Stream ID")))
    return Event(
        type_, kind, lane, float(row["Start Time(us)"]), float(row["Duration(us)"]), family.label if family else "",
        tuple(_operands(row, "Input")), tuple(_operands(row, "Output")), inside=inside,
        backward=kernels.is_backward(type_),
    )  # fmt: skip


def _names(row: dict[str, str]) -> tuple[str, str]:
    """The operator that launched a kernel, and the kernel's type.

    A name is such as aclnnFlashAttentionScore_TransposeAiCore_Transpose: operator, template and type. Where the type is
    not said, it is the last part of the name after a template of one AI core, else the operator.
    """
    parts = row["Name"].split("_")
    operator = parts[0].removeprefix("aclnn")
    type_ = row.get("Type", "")
    if type_ not in ABSENT and (type_ != "Compute"):
        return operator, type_
    return operator, parts[-1] if len(parts) > 1 and (parts[-2].endswith("AiCore") or _known(parts[-1])) else operator


def _known(type_: str) -> bool:
    return kernels.npu_kernel(type_) is not None


def _attention(operator: str) -> str:
    """The operator if it is attention, whose helpers are its own."""
    family = kernels.npu_kernel(operator)
    return operator if family is not None and family.kind is Kind.FUSED else ""


def _operands(row: dict[str, str], side: str) -> Iterator[Operand]:
    """The tensors of one side: ``"8,128,64;8,64,128"`` with ``FLOAT16;FLOAT16`` and ``ND;ND``."""
    shapes = row.get(f"{side} Shapes", "").strip('"')
    if shapes in ABSENT:
        return
    types = row.get(f"{side} Data Types", "").strip('"').split(";")
    formats = row.get(f"{side} Formats", "").strip('"').split(";")
    for index, shape in enumerate(shapes.split(";")):
        sizes = [size.strip() for size in shape.split(",")]
        plain = index >= len(formats) or formats[index].strip() in PLAIN_FORMATS
        if plain and all(size.isdigit() for size in sizes):
            dtype = types[index].strip() if index < len(types) else ""
            yield Operand(tuple(map(int, sizes)), dtype, ITEMSIZES.get(dtype, 0))
