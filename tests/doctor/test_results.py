"""What the group cache says of tuning results, beyond what :mod:`tests.doctor.breakages_of_results` breaks."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import filelock
import pytest

from faops import registry
from faops.autotune.cache import TuningCache, environment, misses
from faops.autotune.tuner import pending
from faops.autotune.tuner.locking import LOCK_NAME
from faops.device import detect
from faops.doctor import cache, results, shapes
from faops.doctor.check import perform
from faops.problem import AttentionProblem, Band, parse_shape
from tests.autotune.support import PROBLEM, make_entry, untuned


def store(**changes: object) -> Path:
    """An entry of this machine's CPU and of a kernel that is here; the directory of its environment."""
    kernel = registry.get("torch.sdpa_forward")
    assert kernel is not None
    same = {"kernel": kernel.id, "default_kernel": kernel.id, "source_hash": kernel.source_hash()}
    entry = replace(make_entry(detect("cpu")), **{**same, **changes})  # type: ignore[arg-type]
    path = TuningCache().put(entry, None).path
    assert path is not None
    return path.parents[1]


def test_results_of_other_versions_are_told_beside_present_ones() -> None:
    store()
    store(environment={**environment.versions(), "torch": "2.6.0"})
    result = results.check_stale()
    assert (result.status, result.details) == ("ok", ("kept for torch 2.6.0",))


def test_what_crashed_or_hung_is_told() -> None:
    dropped = ({"config": "a [block=1]", "reason": "killed by SIGSEGV", "kind": "crashed"},
               {"config": "a [block=2]", "reason": "wrong", "kind": "wrong"})  # fmt: skip
    store(dropped=dropped)
    result = results.check_entries()
    assert (result.status, result.summary) == ("ok", "1 tuning result")
    assert result.details == ("left out: a [block=1] crashed: killed by SIGSEGV",)


def test_a_run_that_is_under_way_is_not_interrupted() -> None:
    directory = store()
    pending.Pending(directory / pending.FILE_NAME, [PROBLEM]).save()
    lock = directory.parent / LOCK_NAME
    with filelock.FileLock(lock):
        # A lock of this process would be had again; another process is played by another lock object.
        assert results.check_unfinished().summary == "a process is tuning now"
    result = results.check_unfinished()
    assert (result.status, result.fix) == ("warn", "faops tune --resume")
    assert result.details == (str(PROBLEM),)


def test_an_interrupted_run_of_other_software_is_of_no_concern() -> None:
    directory = store(environment={**environment.versions(), "torch": "2.6.0"})
    pending.Pending(directory / pending.FILE_NAME, [PROBLEM]).save()
    assert results.check_unfinished().summary == "none"


def test_misses_that_wait_are_told_and_no_fault() -> None:
    untuned(PROBLEM, detect("cpu"))
    assert misses.counts(TuningCache())
    result = results.check_misses()
    assert result.status == "ok"
    assert result.summary == "1 problem ran untuned; `faops tune --from-misses` tunes them"


def test_looking_changes_nothing() -> None:
    directory = store()
    (directory / "entries" / "broken.json").write_text("{")
    pending.Pending(directory / pending.FILE_NAME, [PROBLEM]).save()
    before = _state(Path(os.environ["FAOPS_CACHE_DIR"]))
    assert len(list(perform(cache.checks()))) == len(cache.checks())
    assert _state(Path(os.environ["FAOPS_CACHE_DIR"])) == before


def _state(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_missing_cache_is_no_fault_and_stays_missing(tmp_path: Path) -> None:
    assert {check.run().status for check in cache.checks()} == {"ok"}
    assert not (tmp_path / "faops-cache").exists()


def test_results_of_other_devices_are_of_no_concern() -> None:
    store(device="nvidia_sm_90_132u_NVIDIA-H200", source_hash="of another version")
    assert results.check_stale().status == "ok"


def test_what_has_changed_is_tuned_again_by_its_shape() -> None:
    store(source_hash="of another version")
    shape = "dtype=float32,sq=128,sk=128,h=4,hk=2,d=64,dv=64"
    assert results.check_stale().fix == f"faops tune --device cpu --shape {shape}"
    assert parse_shape(shape) == PROBLEM


@pytest.mark.parametrize(
    "problem",
    [
        replace(PROBLEM, band=Band(right=0)),
        replace(PROBLEM, band=Band(left=64, right=3), softcap=True, bias=".h..", layout="varlen", need_lse=True),
        AttentionProblem(
            op="decode", batch=8, seqlen_k=4096, heads_q=32, heads_kv=8, layout="paged", page_size=16, append=True
        ),
        AttentionProblem(op="decode", seqlen_k=512, heads_q=8, heads_kv=8, rotary="half", leftpad=True),
        AttentionProblem(op="backward", dtype="bfloat16", seqlen_q=512, seqlen_k=512, head_dim_v=128, dropout=True),
    ],
    ids=str,
)
def test_problems_as_shapes(problem: AttentionProblem) -> None:
    assert parse_shape(shapes.shape(problem)) == problem


def test_problems_that_no_shape_can_say() -> None:
    unsaid = replace(PROBLEM, need_lse=True, lse_grad=True)
    assert shapes.shape(unsaid) == ""
    assert shapes.tune_command([unsaid], "cpu_x") == ""
    assert shapes.tune_command([unsaid, PROBLEM], "nvidia_x").startswith("faops tune --device cuda --shape dtype=")
    assert shapes.tune_command([PROBLEM] * 20, "ascend_x").count("--shape") == shapes.LIMIT
