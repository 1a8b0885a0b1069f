"""Compiling a launch to linalg with triton-ascend: no NPU, no driver and no CANN are needed.

triton-ascend goes from a kernel to Triton's own representation, then to linalg on tensors and buffers by its tool
triton-adapter-opt, which is in its wheel. What comes after, bishengir-compile, is a part of CANN: it lays out the
buffers and makes machine code, and has the last word.
"""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from typing import Any

from faops.backends.triton import versions as any_triton
from faops.backends.triton.ascend import versions
from faops.backends.triton.launch import Launch, Tensors
from faops.errors import CompileError, UnavailableError

TARGET = "Ascend910B3"


@dataclass(frozen=True)
class Linalg:
    """What the compiler made of a launch."""

    text: str
    arguments: tuple[str, ...]  # the kernel's parameters that are left: neither absent nor constant
    seconds: float  # that compiling took


def unavailable() -> str:
    """Why nothing can be compiled in this process; "" if it can."""
    if reason := next(versions.absent(), ""):
        return reason
    if any_triton.interpreted():
        return "Triton interprets its kernels in this process (TRITON_INTERPRET=1) and compiles none"
    return ""


def compile_launch(launch: Launch, tensors: Tensors) -> Linalg:
    """Compile for a 910B, specialised as a launch with these tensors is; of them only dtypes and alignment matter.

    Raises UnavailableError where `import triton` does not give triton-ascend or interprets, and CompileError.
    """
    if reason := unavailable():
        raise UnavailableError(reason)
    start = time.perf_counter()
    try:
        text, arguments = _linalg(launch, tensors)
    except subprocess.CalledProcessError as error:
        log = (error.stderr or b"").decode(errors="replace").strip()
        first = log.splitlines()[0] if log else str(error)
        raise CompileError(f"{launch.kernel} does not become linalg: {first}", log=log) from error
    except Exception as error:  # the compiler raises errors of many classes
        raise CompileError(
            f"{launch.kernel} does not compile: {type(error).__name__}: {error}", log=str(error)
        ) from error
    return Linalg(text, arguments, time.perf_counter() - start)


def _linalg(launch: Launch, tensors: Tensors) -> tuple[str, tuple[str, ...]]:
    """The compiler's own steps up to linalg, as triton.compile takes them on the way to a binary; and what they leave
    of the parameters.
    """
    from triton._C.libtriton import ir
    from triton.backends.ascend import compiler
    from triton.backends.compiler import GPUTarget

    target = GPUTarget("npu", TARGET, 0)
    backend = compiler.AscendBackend(target)
    options = backend.parse_options(dict(launch.options))
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    source = _source(launch, tensors, backend)
    module = source.make_ir(options, backend.get_codegen_implementation(), backend.get_module_map(), context)
    metadata = {"target": target, **vars(options)}
    module = compiler.make_ttir(module, metadata, options)
    left = tuple(name for name in source.signature if name not in source.constants)
    return str(compiler.ttir_to_linalg(module, metadata, options, named_ops=True)), left


def _source(launch: Launch, tensors: Tensors, backend: Any) -> Any:
    """The kernel and the types and constants of its arguments, found out as at a launch."""
    from triton.compiler.compiler import ASTSource

    function = launch.function()
    if function.binder is None:
        function.create_binder(backend)
    bound, types, *_ = function.binder(*launch.arguments(tensors), debug=False, **launch.options)
    names = [function.params[index].name for index in function.non_constexpr_indices]
    # An absent tensor is a null pointer to bytes.
    signature = {name: "*i8" if kind == "none" else kind for name, kind in zip(names, types)}
    values = tuple(bound.values())
    attributes = backend.get_attrs_descriptor(function.params, values)
    ones = attributes.get_constants()
    constants = {
        parameter.name: value
        for parameter, value in zip(function.params, values)
        if parameter.is_constexpr or parameter.num in ones or value is None
    }
    return ASTSource(function, signature, constants, attributes)
