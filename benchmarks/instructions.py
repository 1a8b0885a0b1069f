"""Instructions of the Turing kernel's loop over keys, beside those of another attention kernel for Turing.

    python -m benchmarks.instructions
    python -m benchmarks.instructions --peer DIR --cutlass DIR/include

``--peer`` is a checkout of ssiu/flash-attention-turing (https://github.com/ssiu/flash-attention-turing), which needs
nvcc and the headers of CUTLASS; without it only faops is looked at. Nothing is run. One pass through the loop that
treats whole blocks of keys is disassembled and its instructions are counted for one warp. A wavefront is one pass over
the 32 banks of shared memory, 128 bytes; bank conflicts, which machine code does not show, would add to it.

A multiprocessor of Turing multiplies 512 pairs of float16 a clock (NVIDIA Turing architecture whitepaper), which makes
one m16n8k8 instruction 2 clocks; its shared memory gives 64 bytes a clock, which makes a wavefront 2 clocks (Jia et
al., Dissecting the NVidia Turing T4 GPU via Microbenchmarking, 2019). With more wavefronts than matrix instructions
shared memory is what sets the pace.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import record
from faops.backends.cuda_raw import cubin_cache, nvrtc
from faops.backends.cuda_raw.gates import sass
from faops.backends.cuda_raw.gates.cases import Case, default_configs
from faops.backends.cuda_raw.source import ENTRY
from faops.backends.cuda_raw.targets import Target

NAME = "instructions"
FOLDER = "static"
TARGET = Target("sm_75")
HEAD_DIMS = (64, 128)
WARP = 32
BANKS_BYTES = 128  # of a wavefront
MATRIX_FLOPS = 2 * 16 * 8 * 8  # of an m16n8k8 instruction
SHARED = ("LDSM", "LDS", "STS")
OTHERS = ("MUFU", "BAR", "SHFL", "LDL", "STL")
NVCC_SECONDS = 900.0
# As its setup.py has them, but for a cubin instead of an object file.
PEER_FLAGS = ("-std=c++17", "--expt-relaxed-constexpr", "-arch=sm_75", "-O3", "--use_fast_math", "-cubin")
PEER_SOURCES = "csrc/flash_attn/src"
PEER_KERNEL = re.compile(r"Flash_fwd_kernel_traitsILi(\d+)ELi(\d+)ELi(\d+)ELi(\d+)E.*Lb1ELb([01])EEvP")


class PeerError(Exception):
    """The peer cannot be compiled; the text says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.instructions", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--peer", type=Path, help="a checkout of ssiu/flash-attention-turing")
    parser.add_argument("--peer-commit", default="", help="its commit, where the folder is no git checkout")
    parser.add_argument("--cutlass", type=Path, help="CUTLASS's include folder (default: the checkout's submodule)")
    options = parser.parse_args(arguments)
    if reason := nvrtc.probe() or sass.missing():
        print(reason, file=sys.stderr)
        return 2
    result = record.header(NAME, target=str(TARGET), dtype="float16", causal=True)
    result["device"]["folder"] = FOLDER
    result["command"] = "python -m benchmarks.instructions" + (" --peer DIR --cutlass DIR" if options.peer else "")
    result["versions"] |= {"nvrtc": nvrtc.version_text(), "nvdisasm": sass.version()}
    result["kernels"] = list(ours())
    if options.peer:
        cutlass = options.cutlass or options.peer / "csrc/cutlass/include"
        try:
            result["versions"]["nvcc"] = nvcc_version()
            result["peer"] = {
                "repository": "https://github.com/ssiu/flash-attention-turing",
                "commit": options.peer_commit or _commit(options.peer),
                "flags": " ".join(PEER_FLAGS),
            }
            result["kernels"] += peers(options.peer, cutlass)
        except PeerError as error:
            print(error, file=sys.stderr)
            return 2
    print_table(result["kernels"])
    print(record.write(result, quick=options.peer is None))
    return 0


def ours() -> Iterator[dict[str, Any]]:
    """The default kernels of causal attention."""
    for head_dim in HEAD_DIMS:
        for config in default_configs(TARGET, head_dim):
            case = Case(TARGET, config, head_dim, torch.float16)
            kernel = case.kernel()
            compiled = cubin_cache.compile_cached(kernel.source, TARGET)
            tile = config.integer("tile_m"), config.integer("tile_n"), config.integer("warps")
            yield figures("faops", head_dim, *tile, sass.disassemble(compiled.image)[ENTRY], compiled.registers)


def peers(folder: Path, cutlass: Path) -> Iterator[dict[str, Any]]:
    """The peer's causal kernels, in their form for whole tiles and in that for any sequence length."""
    for head_dim in HEAD_DIMS:
        image, log = compile_peer(folder, cutlass, head_dim)
        for name, function in sorted(sass.disassemble(image).items(), reverse=True):
            if not (found := PEER_KERNEL.search(name)):
                continue
            width, tile_m, tile_n, warps, whole = map(int, found.groups())
            used = re.search(rf"entry function '{name}'.*?Used (\d+) registers", log, re.DOTALL)
            label = "peer, whole tiles" if whole else "peer"
            registers = int(used.group(1)) if used else None
            yield figures(label, width, tile_m, tile_n, warps, function, registers)


def figures(
    name: str, head_dim: int, tile_m: int, tile_n: int, warps: int, function: sass.Function, registers: int | None
) -> dict[str, Any]:
    """Counts of one warp in one pass through the loop over keys.

    Of several loops the one with the fewest instructions counts: the others treat the blocks at the edge.
    """
    loops = [loop for loop in function.loops if function.count("HMMA", loop)]
    loop = min(loops, key=lambda loop: len(function.part(loop)))
    opcodes = function.opcodes(loop)
    products = function.count("HMMA", loop)
    widths = {base: dict(sorted(function.widths(base, loop).items())) for base in SHARED}
    wavefronts = sum(WARP * size * count // BANKS_BYTES for found in widths.values() for size, count in found.items())
    flops = 4 * tile_m * tile_n * head_dim // warps  # of the two products, for this warp's rows
    return {
        "kernel": name,
        "head_dim": head_dim,
        "tile": [tile_m, tile_n],
        "warps": warps,
        "registers": registers,
        "matrix_opcodes": {opcode: count for opcode, count in sorted(opcodes.items()) if opcode.startswith("HMMA")},
        "products": products,
        "tile_flops": flops,
        "products_per_flop": products / flops,
        "shared_accesses": {
            base: {f"{8 * size} bit": count for size, count in widths[base].items()} for base in SHARED
        },
        "wavefronts": wavefronts,
        "wavefronts_per_product": wavefronts / products,
        "wavefronts_per_mflop": wavefronts / flops * 1e6,
        "other": {base: function.count(base, loop) for base in OTHERS},
        "instructions": len(function.part(loop)),
        "instructions_per_product": len(function.part(loop)) / products,
    }


def compile_peer(folder: Path, cutlass: Path, head_dim: int) -> tuple[bytes, str]:
    """The peer's causal forward for ``head_dim`` as a cubin, and what the compiler said. Raises PeerError."""
    source = folder / PEER_SOURCES / f"flash_fwd_hdim{head_dim}_fp16_causal_sm75.cu"
    for path in (source, cutlass / "cute"):
        if not path.exists():
            raise PeerError(f"the peer cannot be compiled: there is no {path}")
    with tempfile.TemporaryDirectory() as scratch:
        # The kernel's header asks for torch's extension header and takes nothing from it: an empty one spares minutes.
        (Path(scratch) / "torch").mkdir()
        (Path(scratch) / "torch" / "extension.h").touch()
        cubin = Path(scratch) / "peer.cubin"
        folders = (scratch, folder / PEER_SOURCES, folder / "csrc/flash_attn", cutlass)
        includes = [f"-I{path}" for path in folders]
        command = [_nvcc(), *PEER_FLAGS, "--ptxas-options=-v", *includes, "-o", str(cubin), str(source)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=NVCC_SECONDS)
        except subprocess.TimeoutExpired:
            raise PeerError(f"nvcc did not compile {source.name} in {NVCC_SECONDS:.0f} s") from None
        if done.returncode:
            raise PeerError(f"nvcc does not compile {source.name}:\n{done.stderr.strip()}")
        return cubin.read_bytes(), done.stderr


def nvcc_version() -> str:
    printed = subprocess.run([_nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"V(\d[\d.]*)", printed)
    return found.group(1) if found else "unknown"


def _nvcc() -> str:
    if not (path := shutil.which("nvcc")):
        raise PeerError("the peer cannot be compiled: there is no nvcc on the PATH")
    return path


def _commit(folder: Path) -> str:
    done = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerError(f"{folder} is no git checkout: say which commit it is with --peer-commit")
    return done.stdout.strip()


def print_table(kernels: Sequence[dict[str, Any]]) -> None:
    print(f"{'kernel':18} {'d':>3} {'tile':>8} {'warps':>5} {'regs':>4} {'HMMA':>5} {'wavefronts':>10} {'per HMMA':>8} "
          f"{'per MFLOP':>9} {'instructions per HMMA':>21}")  # fmt: skip
    for found in kernels:
        tile = "{}x{}".format(*found["tile"])
        print(
            f"{found['kernel']:18} {found['head_dim']:3} {tile:>8} {found['warps']:5} {found['registers']:4} "
            f"{found['products']:5} {found['wavefronts']:10} {found['wavefronts_per_product']:8.3f} "
            f"{found['wavefronts_per_mflop']:9.1f} {found['instructions_per_product']:21.2f}"
        )


if __name__ == "__main__":
    sys.exit(main())
