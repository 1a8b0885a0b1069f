"""xFormers' attention on every machine that faops runs on.

>>> import faops.adapters.xformers.ops as xops
>>> out = xops.memory_efficient_attention(q, k, v, attn_bias=xops.LowerTriangularMask())

The modules ``ops``, ``ops.fmha`` and ``ops.fmha.attn_bias`` have the names of xFormers that are about attention;
:func:`install` makes ``import xformers.ops`` find them. docs/xformers.md says where biases go, and what is missing.
"""

from faops.adapters.xformers import ops
from faops.adapters.xformers.stand_in import __version__, install, uninstall

__all__ = ["__version__", "install", "ops", "uninstall"]
