"""The interface of flash-attn 2 on every machine that faops runs on.

>>> from faops.adapters.flash_attn import flash_attn_func

or, for code that is not ours to change:

>>> import faops.adapters.flash_attn
>>> faops.adapters.flash_attn.install()
>>> import flash_attn  # is now this package

docs/flash_attn.md says what differs.
"""

from faops.adapters.flash_attn.flash_attn_interface import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
    flash_attn_with_kvcache,
)
from faops.adapters.flash_attn.stand_in import __version__, install, installed, uninstall

__all__ = [
    "__version__",
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
    "install",
    "installed",
    "uninstall",
]
