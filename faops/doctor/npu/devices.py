"""What torch_npu and the devices do, as the child of :mod:`faops.doctor.npu.probe` has found."""

from __future__ import annotations

from typing import Any

from faops.ascend import UNKNOWN
from faops.doctor.check import Result, fail, ok, warn
from faops.doctor.npu.packages import mending, numbers
from faops.doctor.npu.probe import Ask, told
from faops.doctor.npu.signs import torch_npu

# Without these there is no attention on an NPU; without another, a feature is slower or missing.
NEEDED = ("attention", "gradients")
LOOK_BELOW = "faops doctor npu.card npu.files npu.health npu.visible"
LOOK_AROUND = "faops doctor npu.libraries npu.package npu.pairing"


def check_import(ask: Ask) -> Result:
    found = told(ask, "import", "`import torch_npu`", lambda error: mending(error) if error else LOOK_AROUND)
    return found if isinstance(found, Result) else ok(f"torch_npu {found['version']}")


def check_operators(ask: Ask) -> Result:
    found = told(ask, "operators", "reading the operators", lambda error: LOOK_AROUND)
    if isinstance(found, Result):
        return found
    lacking = found["lacking"]
    details = tuple(f"no {use}: {reason}" for use, reason in lacking.items())
    if not lacking:
        return ok(f"there are those for {', '.join(found['served'])}")
    text = f"torch-npu {torch_npu()} has no operator for {', '.join(lacking)}"
    make = fail if any(use in NEEDED for use in lacking) else warn
    return make(text, *details, fix=_newest())


def _newest() -> str:
    """The newest correction of the torch-npu that is here, which goes with the same PyTorch."""
    return f"pip install --upgrade 'torch-npu=={numbers(torch_npu() or '')}.*'"


def check_devices(ask: Ask) -> Result:
    found = told(ask, "devices", "looking for devices", lambda error: LOOK_BELOW)
    if isinstance(found, Result):
        return found
    devices = found["devices"]
    if not devices:
        return fail("torch_npu finds no device", fix=LOOK_BELOW)
    details = tuple(f"npu:{index} {_described(each)}" for index, each in enumerate(devices))
    if any(each["arch"] == UNKNOWN for each in devices):
        text = "faops does not know this chip, and plans for it with the smallest limits of those that it knows"
        return warn(text, *details, fix="pip install --upgrade faops")
    return ok(f"PyTorch reaches {len(devices)}", *details)


def _described(device: dict[str, Any]) -> str:
    known = "" if device["arch"] == UNKNOWN else f"{device['arch']}, "
    soc = f"SoC {device['soc'] or 'not told'}"
    return f"{device['name']} ({known}{soc}), {device['cores']} AI cores, {device['bytes'] / 2**30:.0f} GiB"


def check_bfloat16(ask: Ask) -> Result:
    found = told(ask, "bfloat16", "a bfloat16 product", lambda error: LOOK_AROUND)
    if isinstance(found, Result):
        return found
    name = found["name"]
    if found["right"]:
        return ok(f"{name} computes in bfloat16")
    if found["supported"]:
        return fail(f"a bfloat16 matrix product of {name} is wrong", fix=LOOK_AROUND)
    if found["expected"]:
        return fail(f"{name} has bfloat16, but torch_npu says that it has not", fix=LOOK_AROUND)
    text = f"{name} has no bfloat16"
    return warn(text, "models in bfloat16 have to be loaded in float16", fix="edit the program: dtype=torch.float16")


def check_numerics(ask: Ask) -> Result:
    found = told(ask, "numerics", "a small attention", lambda error: LOOK_AROUND)
    if isinstance(found, Result):
        return found
    tried = found["tried"]
    details = tuple(
        f"{each['name']} in {each['dtype']}: max error {each['error']:.1e}, allowed {each['allowed']:.1e}"
        for each in tried
    )
    wrong = [text for each, text in zip(tried, details) if not each["error"] <= each["allowed"]]
    if wrong:
        return fail(f"wrong result: {wrong[0]}", *details, fix=LOOK_AROUND)
    if not tried:
        return warn("no operator of torch_npu could be tried", fix=_newest())
    return ok(f"{len(tried)} small attentions agree with the float64 reference", *details)
