"""Group npu: Ascend devices, their driver, CANN, torch_npu and its operators. Skipped where there is no sign of any.

From the outside in: the card and its driver, CANN's environment and libraries, the packages and how they match, and in
the end torch_npu itself. It is imported by a child process only, which may crash or hang without taking doctor along.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial

from faops.doctor.check import Check, Result
from faops.doctor.npu import cann, cards, devices, packages, probe, smi

GROUP = "npu"
PATIENCE_SECONDS = 10.0  # more than the process that is waited for has


def checks() -> list[Check]:
    """npu-smi and the child are asked once, and the checks that need their answers share these."""
    ask, tell = functools.cache(smi.ask), functools.cache(probe.ask)
    own: list[tuple[str, str, Callable[[], Result]]] = [
        ("card", "an Ascend card in this machine has its driver", cards.check_card),
        ("files", "the device files of the Ascend driver can be opened", cards.check_files),
        ("health", "the Ascend driver answers and calls every NPU healthy", partial(cards.check_health, ask)),
        ("visible", "no NPU is hidden from programs", partial(cards.check_visible, ask)),
        ("cann", "CANN is set up in this shell", cann.check_cann),
        ("libraries", "the libraries of CANN can be loaded", cann.check_libraries),
        ("package", "torch-npu is installed and made for this PyTorch", packages.check_package),
        ("pairing", "torch-npu is made for this CANN", cann.check_pairing),
        ("triton", "triton-ascend is whole, and not mixed with triton", packages.check_triton),
    ]
    probed = [
        ("import", "torch-npu can be imported", devices.check_import),
        ("operators", "torch-npu has the operators that faops uses", devices.check_operators),
        ("devices", "PyTorch reaches the Ascend devices, and faops knows them", devices.check_devices),
        ("bfloat16", "the NPUs compute in bfloat16", devices.check_bfloat16),
        ("numerics", "torch-npu's attention agrees with the float64 reference", devices.check_numerics),
    ]
    purpose, limit = "`import torch` brings torch-npu", packages.IMPORT_SECONDS + PATIENCE_SECONDS
    return [
        *(Check(f"npu.{name}", GROUP, purpose, run) for name, purpose, run in own),
        Check("npu.autoload", GROUP, purpose, packages.check_autoload, limit, ahead=True),
        *(
            Check(f"npu.{name}", GROUP, purpose, partial(run, tell), probe.LIMIT_SECONDS + PATIENCE_SECONDS)
            for name, purpose, run in probed
        ),
    ]
