"""What a daemon might say: an empty one, one at work, jobs of every state."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from typing import Any

H200 = {"device": "cuda:0", "name": "NVIDIA H200", "identity": "nvidia-sm90-h200"}
XEON = {"device": "cpu", "name": "Intel Xeon 8481C", "identity": "cpu-x86-64-avx512-8u"}

FORWARD = "forward bfloat16 b1 4096x4096 h32/8 d128 causal"
DECODE = "decode bfloat16 b8 1x8192 h32/8 d128 paged page_size=16"
PREFILL = "forward bfloat16 b1 512x512 h32/8 d128 causal"
BACKWARD = "backward bfloat16 b4 2048x2048 h32/8 d128 causal"
SOFTCAP = "forward float32 b1 1024x1024 h8/8 d64 causal softcap"


def moment(minutes: float = 0.0) -> str:
    """So many minutes from now, in UTC."""
    time = datetime.now(timezone.utc) + timedelta(minutes=minutes)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def gate(is_open: bool = True, reason: str = "", idle_seconds: float = 42.0) -> dict[str, Any]:
    return {"open": is_open, "reason": reason, "idle_seconds": idle_seconds, "figures": {"busy_cores": 0.1}}


def device(known: dict[str, str], **changes: Any) -> dict[str, Any]:
    return {**known, "gate": gate(), "worker": None, "waiting": 0, **changes}


def job(number: int, problem: str = FORWARD, state: str = "waiting", **changes: Any) -> dict[str, Any]:
    """A job of the GPU; of one that is done the winner is faster."""
    ended = state in ("done", "quarantined", "cancelled")
    return {
        "id": number, "device": "cuda:0", "identity": H200["identity"], "key": f"key-{number}", "problem": problem,
        "shape": {"op": problem.partition(" ")[0]}, "source": "miss", "state": state, "hits": 1200, "priority": 1.5,
        "forced": False, "attempts": 0, "not_before": None, "created": moment(-60), "begun": None,
        "finished": moment(-10) if ended else None, "message": "", "call_seconds": 0.00125, "tuning_seconds": 95.0,
        "has_heat_map": state == "done", "result": winner() if state == "done" else None, **changes,
    }  # fmt: skip


def winner(**changes: Any) -> dict[str, Any]:
    return {
        "status": "tuned", "message": "1.25x over the default", "measurements": 61, "seconds": 88.4,
        "kernel": "cuda_raw.sm90_forward", "config": {"block_q": 128, "block_k": 64, "stages": 2}, "p50": 0.0008,
        "default_kernel": "cuda_raw.sm90_forward", "default_config": {"block_q": 64, "block_k": 64, "stages": 2},
        "default_p50": 0.001, "speedup": 1.25, "is_default": False, "rejected": 3, "path": "/home/ada/entry.json",
        **changes,
    }  # fmt: skip


def running(problem: str = FORWARD, **changes: Any) -> dict[str, Any]:
    return {
        "job": job(90, problem, "running", begun=moment(-1)), "done": 34, "planned": 61, "best_seconds": 0.00081,
        "doing": "timed cuda_raw.sm90_forward [block_q=128, block_k=64, stages=2]", "elapsed_seconds": 47.0,
        "remaining_seconds": 39.0, "yielding": False, **changes,
    }  # fmt: skip


def status(state: str = "idle", **changes: Any) -> dict[str, Any]:
    return {
        "version": "0.9.0", "pid": 4711, "started": moment(-90), "uptime_seconds": 5400.0, "state": state,
        "paused": None, "jobs": {}, "memory_bytes": 54_300_000, "http": None, "devices": [], "running": [],
        "totals": {"tuned": 0, "won": 0, "seconds_tuning": 0.0, "rejected_samples": 0, "errors": 0},
        "settings": {"daemon_idle_seconds": 30.0}, **changes,
    }  # fmt: skip


def busy() -> dict[str, Any]:
    """At work on a GPU while the CPU is in use by others."""
    worker = {"pid": 4750, "memory_bytes": 812_000_000}
    other = gate(False, "other programs use 5.2 of 8 cores", 0.0)
    devices = [device(H200, worker=worker, waiting=2), device(XEON, gate=other, waiting=1)]
    totals = {"tuned": 128, "won": 71, "seconds_tuning": 8121.0, "rejected_samples": 412, "errors": 1}
    jobs = {"waiting": 3, "running": 1, "done": 128, "quarantined": 1, "cancelled": 1}
    return status("tuning", devices=devices, running=[running()], totals=totals, jobs=jobs)


def queue() -> list[dict[str, Any]]:
    """What waits in `busy`, in the order in which it will run."""
    later = moment(9)
    return [
        job(91, PREFILL, source="submission", hits=0, priority=0.0),
        job(92, DECODE, not_before=later, attempts=1, message="the worker was ended by SIGSEGV"),
        job(93, SOFTCAP, device="cpu", hits=31, priority=0.62),
    ]


def aside() -> list[dict[str, Any]]:
    message = "the worker was ended by SIGSEGV"
    return [job(80, BACKWARD, "quarantined", attempts=3, message=message), job(79, SOFTCAP, "cancelled", hits=1)]


def winners() -> list[dict[str, Any]]:
    stays = winner(is_default=True, speedup=1.0, p50=0.001, config=winner()["default_config"])
    return [job(70, FORWARD, "done"), job(69, PREFILL, "done", result=stays, has_heat_map=False)]


def many(count: int) -> Iterable[dict[str, Any]]:
    """So many waiting jobs."""
    return (job(number, f"forward float32 b1 {number}x{number} h8/8 d64") for number in range(1, count + 1))
