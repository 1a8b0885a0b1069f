"""The environment variables that a daemon needs from whoever starts or installs it."""

from __future__ import annotations

import os

from faops.settings import SETTINGS

# Where things are: a relative one means something else in the daemon's working directory.
_PATHS = ("FAOPS_CONFIG", *(SETTINGS[name].variable for name in ("cache_dir", "state_dir", "runtime_dir")))
_SEARCH_PATHS = ("PYTHONPATH", "LD_LIBRARY_PATH")
_HOMES = ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "CUDA_HOME", "CUDA_PATH")
_FAMILIES = ("ASCEND_",)  # what CANN's set_env.sh sets besides the search paths

# Between a service manager and the one process that it started.
_SERVICE = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_JOURNAL = ("JOURNAL_STREAM", "INVOCATION_ID")


def detached() -> dict[str, str]:
    """This process's environment for one that runs in another directory and is nobody's service."""
    kept = {name: value for name, value in os.environ.items() if name not in (*_SERVICE, *_JOURNAL)}
    return {name: _absolute(name, value) for name, value in kept.items()}


def for_units() -> dict[str, str]:
    """What a service needs of this environment to find the same settings, caches and libraries, sorted by name."""
    wanted = {"FAOPS_CONFIG", *(setting.variable for setting in SETTINGS.values()), *_SEARCH_PATHS, *_HOMES}
    names = sorted(name for name in os.environ if name in wanted or name.startswith(_FAMILIES))
    return {name: _absolute(name, os.environ[name]) for name in names}


def _absolute(name: str, value: str) -> str:
    if name in _PATHS and value:
        return os.path.abspath(os.path.expanduser(value))
    if name in _SEARCH_PATHS and value:
        return os.pathsep.join(os.path.abspath(part) for part in value.split(os.pathsep))
    return value
