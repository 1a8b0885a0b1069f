"""What a config would cost, worked out without running it: to leave out what cannot win, and to try the best first.

- ``predict(kernel, problem, device, config, resources=None) -> Prediction | None``: time, occupancy, what bounds it,
  and what stands in the way. None where the kernel has no footprint. ``resources`` are those of the compiled kernel,
  which replace the estimates.
- ``rank(candidates, problem, device, resources={}) -> (ranked, pruned)``, two lists of (candidate, prediction):
  ``ranked`` has every candidate that may run, the most promising first, and those that nobody can predict (prediction
  None) in turns among them, in their own order; ``pruned`` those whose prediction has an ``obstacle``, in their own
  order. A candidate is anything hashable with ``kernel`` and ``config``; ``resources`` maps candidates to what was
  compiled. A kernel's default is pruned like any other config: who must have it among the measured keeps it.

The formulas and the constants are told in docs/cost-model.md. Nothing here is ever called by ``faops.attention()``.
"""

from __future__ import annotations

from faops.autotune.model.predict import Prediction, predict
from faops.autotune.model.rank import rank

__all__ = ["Prediction", "predict", "rank"]
