"""CANN: whether its environment is set up, its libraries load, and its version goes with torch_npu."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from faops import cann
from faops.doctor import probes
from faops.doctor.check import Result, fail, ok, skipped, warn
from faops.doctor.npu.cards import GIVE, INSTALL_DRIVER
from faops.doctor.npu.signs import torch_npu, without_torch_npu

VARIABLES = ("ASCEND_HOME_PATH", "ASCEND_OPP_PATH")  # of CANN itself, and of its operators
RUNTIME, COLLECTIVES, OPERATORS = "libascendcl.so", "libhccl.so", "libopapi.so"
DRIVER = "libascend_hal.so"  # of the driver; the runtime needs it
SCRIPTS = ("ascend-toolkit/set_env.sh", "cann/set_env.sh", "nnae/set_env.sh")  # below an Ascend directory

# Which CANN each torch-npu is released for. Source: github.com/Ascend/pytorch, COMPATIBILITY.en.md, "TorchNPU version
# mapping table", read in November 2026; 2.10.0.post2 from its README.md. What is not in it is not known here: 2.13 was
# not released when it was read.
PAIRS = {
    "2.6.0": "8.2.RC1",
    "2.6.0.post3": "8.3.RC1",
    "2.6.0.post5": "8.5.0",
    "2.7.1": "8.3.RC1",
    "2.7.1.post2": "8.5.0",
    "2.7.1.post4": "9.0.0",
    "2.7.1.post8": "9.1.0",
    "2.8.0": "8.3.RC1",
    "2.8.0.post2": "8.5.0",
    "2.8.0.post4": "9.0.0",
    "2.9.0": "8.5.0",
    "2.9.0.post2": "9.0.0",
    "2.9.0.post6": "9.1.0",
    "2.10.0.post2": "9.0.0",
    "2.10.0.post4": "9.1.0",
    "2.11.0": "9.1.0",
    "2.12.0": "9.1.0",
}


def check_cann() -> Result:
    """A toolkit is set up by its set_env.sh, in each shell."""
    if reason := without_torch_npu():
        return skipped(reason)
    for name in VARIABLES:
        value = os.environ.get(name)
        if not value:
            return fail(f"{name} is not set: CANN's set_env.sh was not read", fix=source())
        if not Path(value).is_dir():
            return fail(f"{name}={value} is no directory", fix=source())
    return ok(f"CANN {cann.version() or 'of unknown version'} at {cann.home()}")


def check_libraries() -> Result:
    """Those that torch_npu loads, by a process of its own: the runtime, the collectives, and the operators."""
    if reason := without_torch_npu():
        return skipped(reason)
    names = (RUNTIME, COLLECTIVES, OPERATORS, *_parts())
    said = probes.loading(names)
    if any(not said[part] for part in _parts()):  # CANN has come to split them; torch_npu takes either
        del said[OPERATORS]
    wrong = {name: reason for name, reason in said.items() if reason}
    if wrong:
        text = f"cannot be loaded: {', '.join(wrong)}"
        details = (said if said.startswith(name) else f"{name}: {said}" for name, said in wrong.items())
        return fail(text, *details, fix=_mend(wrong))
    return ok(", ".join(said))


def _parts() -> list[str]:
    """Libraries that hold the operators group by group, where CANN is split so."""
    home = cann.home()
    return sorted(path.name for path in (home / "lib64").glob("libopapi_*.so")) if home else []


def _mend(wrong: dict[str, str]) -> str:
    """What is missing for the libraries that do not load: the driver, the setup of this shell, or the operators."""
    if any(DRIVER in reason for reason in wrong.values()):
        return GIVE if probes.in_container() else INSTALL_DRIVER
    if set(wrong) <= {OPERATORS} and os.environ.get("ASCEND_OPP_PATH"):
        return f"sudo sh Ascend-cann-kernels-*_linux-{_machine()}.run --install"
    return source()


def check_pairing() -> Result:
    """Releases of torch-npu and CANN come in pairs; with another CANN an operator may be missing or wrong."""
    package, version = torch_npu(), cann.version()
    if package is None:
        return skipped(without_torch_npu())
    if not version:
        return skipped("the version of CANN is not known")
    wanted = PAIRS.get(package)
    if wanted is None:
        return skipped(f"faops does not know which CANN torch-npu {package} is made for; {version} is installed")
    text = f"torch-npu {package} with CANN {version}"
    if release(version) == release(wanted):
        return ok(text)
    return warn(f"{text}, but it is made for CANN {wanted}", fix=_pair(package, version, wanted))


def release(version: str) -> tuple[str, ...]:
    """The part of a version that has to agree: ("8", "5") of 8.5.0, 8.5.1 and 8.5.RC1."""
    return tuple(re.findall(r"\d+", version)[:2])


def _pair(package: str, version: str, wanted: str) -> str:
    """The torch-npu of the same PyTorch for this CANN where there is one, or else the CANN for this torch-npu."""
    base = re.match(r"\d+\.\d+\.\d+", package)
    same = [each for each, pair in PAIRS.items() if base and re.match(rf"{re.escape(base.group())}(\.post|$)", each)]
    fitting = next((each for each in same if release(PAIRS[each]) == release(version)), None)
    if fitting:
        return f"pip install torch-npu=={fitting}"
    return f"sudo sh Ascend-cann-toolkit_{wanted}_linux-{_machine()}.run --install"


def _machine() -> str:
    return platform.machine().lower()


def source() -> str:
    """The command that sets up CANN, with the file that is there, or else its usual place."""
    folders = (probes.ROOT / "usr/local/Ascend", Path.home() / "Ascend")
    found = [folder / name for folder in folders for name in SCRIPTS if (folder / name).is_file()]
    return f"source {found[0] if found else '/usr/local/Ascend/ascend-toolkit/set_env.sh'}"
