"""Every number that says how much effort tuning spends, in one place.

A change to what a timing means (Budget and its instances, clocks, warm-up) needs a new MEASUREMENT_POLICY, which gives
new results a cache directory of their own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

MEASUREMENT_POLICY = 2


@dataclass(frozen=True)
class Budget:
    """What one timing of one config may cost. Times in seconds."""

    warmup: float
    time_cap: float  # sampling ends here even if the relative error is not reached
    min_samples: int
    max_samples: int = 1000
    graph: bool = False  # take the host's time out altogether: on a GPU by a graph, on an NPU by the profiler


WARMUP_SECONDS = 0.2  # once a problem: clocks, caches and lazy initialisation settle
QUICK = Budget(warmup=0.01, time_cap=0.05, min_samples=3)  # every config
HALVING = Budget(warmup=0.02, time_cap=0.15, min_samples=5)  # those that survive a round
FINAL = Budget(warmup=0.02, time_cap=0.25, min_samples=5, graph=True)  # one round of one finalist
SWEEP = Budget(warmup=0.05, time_cap=0.5, min_samples=15)  # every config of an exhaustive search

RELATIVE_ERROR = 0.01  # of the median: sampling may end below it
GROUPS = 5  # the reported median is the smallest of the groups' medians: disturbances only ever add time
MIN_GROUP = 5  # samples; fewer samples make fewer groups
NOISY_SPREAD = 0.10  # a timing is noisy when (p80 - p20) / p50 is above this
FEW_SAMPLES = 3  # or when there are fewer samples than this
MIN_SAMPLE_SECONDS = 100e-6  # host clock: shorter calls are timed several at once, so that reading it costs little
MAX_CALLS_A_SAMPLE = 256
EVENT_BATCH = 10  # device clock: calls enqueued before waiting for the device
L2_FLUSH_FACTOR = 2  # device clock: this many times the L2 size is overwritten before every call
ASSUMED_NPU_L2_BYTES = 192 << 20  # of an NPU whose cache nobody published: as large as the largest known one
CLOCK_DROP = 0.05  # samples do not count that were taken at a clock lower by more than this part of the highest
DISTURBED_PATIENCE = 4.0  # of the time cap: how long to wait for samples that count
FOREIGN_RETRIES = 2  # timings taken again because another process computed on the device

MAX_CONFIGS = 32  # configs that successive halving times in its quick round
MODEL_DOUBT = 4  # one of so many of them is drawn at random instead of ranked by the cost model
COMPILE_RESERVE = 8  # configs compiled beyond those, to step in for what does not compile or spills
RANDOM_DRAWS = 59  # configs of a random search: 0.95 ** 59 < 0.05
SAMPLING_SEED = 0  # the same problem is always searched the same way
HALVING_ETA = 3  # one in three survives a round
FINALISTS = 4
HURRIED_FINALISTS = 2  # once the time budget is spent
FINAL_ROUNDS = 3  # finalists are timed A B C, A B C, A B C
WIN_MARGIN = 0.02  # a winner must be faster than the default by this part of the default's time
WIN_DEVIATIONS = 2.0  # and by this many median absolute deviations

# Largest error a finalist may have against the same computation in a wider dtype, as a part of the largest value
# of its row.
# About five units in the last place of the 16-bit types; the sums of float32 and float64 need more.
TOLERANCE = {"float64": 1e-10, "float32": 5e-5, "float16": 3e-3, "bfloat16": 2e-2, "float8_e4m3fn": 2e-1}
SMALLEST_ROW = 0.01  # a row counts as no smaller than this part of the largest: what cancels out leaves noise
GRADIENT_FACTOR = 2.0  # gradients pass through one more rounded product
LSE_TOLERANCE = 1e-3  # lse is float32 whatever the dtype, with sums of rounded products at most

NEAREST_DISTANCE = 3.0  # summed |log2| of the ratios of batch, query length and key length

BUSY_SECONDS = 0.2  # how long other programs' use of the CPU is watched before measuring there
BUSY_CORES = 0.5  # a warning is due when they keep more than this many cores busy

LOCK_TIMEOUT_SECONDS = 600.0  # two processes never measure on one device at once
LOCK_POLL_SECONDS = 0.2

# Only for saying beforehand about how long tuning will take: assumed rates, in FLOP/s, where none is published.
ASSUMED_CPU_FLOPS_A_THREAD = 20e9
ASSUMED_DEVICE_FLOPS = 20e12
ASSUMED_CALL_SECONDS = 50e-6
RECORDING_SECONDS = 5.0  # one recording of torch_npu's profiler, with the conversion of its files

# Processes of their own measure and compile, so that one config that crashes or hangs is all that is lost. The limits
# end what hangs: they are several times what the slowest config takes.
START_LIMIT_SECONDS = 120.0  # to import torch and every backend
OPEN_LIMIT_SECONDS = 60.0  # to make the inputs of a problem, and as long as CHECK_LIMIT_CALLS
REQUEST_LIMIT_SECONDS = 60.0  # what a timing or a check may take beyond its budget: the first call compiles
SAMPLE_LIMIT_CALLS = 20.0  # and as long as this many calls at the assumed rates below
CHECK_LIMIT_CALLS = 200.0  # a check computes in a wider dtype too, in some cases far from the matrix units
COMPILE_LIMIT_SECONDS = 120.0
COMPILE_PROCESSES = min(8, max(1, (os.cpu_count() or 2) - 1))  # a core is left to measure; each takes 0.5 GB
EXIT_SECONDS = 5.0  # what a process gets to end by itself
