"""Constants of the cost model that no vendor publishes: estimates, each with what it was taken from.

They decide an order among configs and a magnitude of the time; nothing is promised of either.
"""

from __future__ import annotations

# ---------------------------------------------------------------------------------------------- GPUs

# Part of a peak rate that code without any wait reaches: what large matrix products of vendors' libraries do.
MATRIX_EFFICIENCY = 0.85
VECTOR_EFFICIENCY = 0.7
MEMORY_EFFICIENCY = 0.85
L2_BYTES_A_CLOCK = 32.0  # that a multiprocessor gets; the wires carry 64

MEMORY_LATENCY = 0.8e-6  # seconds from asking memory to having, under load
L2_LATENCY = 0.3e-6  # the same of the second-level cache
STEP_CLOCKS = 250.0  # of a block in each tile, on barriers and waits that no other warp of it fills
BLOCK_CLOCKS = 2000.0  # of a block to begin and to write its result
LAUNCH_SECONDS = 4e-6  # from one kernel of a call to the next
LIBRARY_SECONDS = 8e-6  # from one operation of torch to the next: the host needs as long to start it
SCHEDULERS = 4  # of a multiprocessor; with one warp each nothing overlaps

UNEVEN = 1.1  # a longest block of more than so many times the mean: short blocks fill what long ones leave
SPILL_LIMIT = 256  # bytes a thread: what spills more lacks hundreds of registers, and never wins
L1_BYTES_A_CLOCK = 64.0  # of a multiprocessor, for spilled registers

# For devices whose rates are not published in faops.architectures.
ASSUMED_MATRIX_FLOPS = 20e12
ASSUMED_BANDWIDTH = 500e9

# ---------------------------------------------------------------------------------------------- CPUs

CPU_CLOCK = 2.5e9
CPU_EFFICIENCY = 0.6  # of products as small as attention's tiles
CPU_CACHE_BYTES = 1 << 20  # of a core, where the system does not tell
CPU_CACHE_BANDWIDTH = 40e9  # bytes/s of a thread, reading and writing what lies in its cache
CPU_SHARED_CACHE_BANDWIDTH = 22e9  # the same of what the cores share
CPU_MEMORY_BANDWIDTH = 11e9  # of all threads, reading and writing memory in pieces
CPU_EXPONENTIALS = 2.0e9  # a second and thread, vectorised
CPU_OPERATION_SECONDS = 4e-6  # of torch, to start one on one thread
CPU_FORK_SECONDS = 6e-6  # more where several threads share it
