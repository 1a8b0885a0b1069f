"""What of the suite says nothing about faops, by file: whole tests by name, and parametrisations; with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

LEFT_OUT = {
    "tests/test_rotary.py": {
        "test_compilation_count": "which counts how often flash-attn's own Triton kernel is compiled for a GPU",
    },
    "hopper/test_flash_attn.py": {
        "test_flash_attn_race_condition": "which first fills a GPU with 70 GiB, to provoke races between its threads",
        "test_flash3_bw_compatibility": "which compares the schemas of the C++ operators torch.ops.flash_attn_3",
    },
}


Parameters = dict[str, Any]


# --- parametrisations that ask for exact zeros ------------------------------------------------------------------------

# Gradients for a single key need no softmax: dq and dk are 0 and dv is the sum of dout, and what these tests allow is a
# multiple of the unfused computation's error, which is 0 there too. A fused backward takes rowsum(dout · out) from
# dout · v, two sums of the same numbers in different order, and adds up dv by tiles. PyTorch's own fused attention
# gives 1e-6 for 0 as well.


def one_key(parameters: Parameters) -> bool:
    """Version 3: no slack without softcap, and no backward with qv. The test draws a window, which may leave one key of
    the three that there are in the shortest of its other sequences.
    """
    few = parameters["seqlen_k"] <= (3 if parameters["local"] else 1)
    return few and parameters["softcap"] == 0 and not parameters["has_qv"]


def one_key_after_swap(parameters: Parameters) -> bool:
    """The split-KV test of version 2: slack for dq and dk, but less than a unit in the last place of dv."""
    return parameters["seqlen_q"] == 1 and parameters["swap_sq_sk"]


# --- parametrisations that the tests skip themselves, not worth a place in a sample -----------------------------------


def softcap_with_dropout(parameters: Parameters) -> bool:
    return parameters["softcap"] > 0 and parameters["dropout_p"] > 0


def paged_with_row_or_pad(parameters: Parameters) -> bool:
    return bool(parameters["paged_kv_block_size"]) and (parameters["has_leftpad"] or parameters["has_batch_idx"])


def rotary_without_new_keys(parameters: Parameters) -> bool:
    return parameters["rotary_fraction"] > 0 and not parameters["new_kv"]


def part_of_a_page(parameters: Parameters) -> bool:
    return parameters["page_size"] is not None and parameters["seqlen_k"] % parameters["page_size"] != 0


def qv_with_other_head_dim(parameters: Parameters) -> bool:
    return parameters["has_qv"] and parameters["d"] != 64


Rule = Callable[[Parameters], bool]
EXACT: dict[tuple[str, str], Rule] = {
    ("tests/test_flash_attn.py", "test_flash_attn_splitkv"): one_key_after_swap,
    ("hopper/test_flash_attn.py", "test_flash_attn_output"): one_key,
    ("hopper/test_flash_attn.py", "test_flash_attn_varlen_output"): one_key,
}
SKIPPED: dict[tuple[str, str], tuple[Rule, ...]] = {
    ("tests/test_flash_attn.py", "test_flash_attn_output"): (softcap_with_dropout,),
    ("tests/test_flash_attn.py", "test_flash_attn_varlen_output"): (softcap_with_dropout,),
    ("tests/test_flash_attn.py", "test_flash_attn_kvcache"): (paged_with_row_or_pad, rotary_without_new_keys),
    ("hopper/test_flash_attn.py", "test_flash_attn_output"): (qv_with_other_head_dim,),
    ("hopper/test_flash_attn.py", "test_flash_attn_varlen_output"): (qv_with_other_head_dim,),
    ("hopper/test_flash_attn.py", "test_flash_attn_kvcache"): (part_of_a_page, rotary_without_new_keys),
}


def drawn(file: str, test: str, parameters: Parameters) -> bool:
    """Whether a parametrisation may be part of a sample."""
    rules = (*SKIPPED.get((file, test), ()), *([EXACT[file, test]] if (file, test) in EXACT else []))
    return not any(rule(parameters) for rule in rules)


def notes(file: str) -> dict[str, str]:
    """What is left out of a file on purpose, by test, for the report."""
    exact = {
        test: "where a row sees one key and it asks for gradients without any rounding"
        for name, test in EXACT
        if name == file
    }
    return {**LEFT_OUT.get(file, {}), **exact}
