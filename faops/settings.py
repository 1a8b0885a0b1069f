"""Settings: argument > environment (``FAOPS_*``) > ``faops.yaml`` in the user config directory > default."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faops.errors import SettingsError

TRUE = {"1", "true", "yes", "on"}
FALSE = {"0", "false", "no", "off", ""}
ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[\w.-]+):(?P<port>[0-9]{1,5})", re.ASCII)


@dataclass(frozen=True)
class Setting:
    """One setting: its name in faops.yaml, its environment variable, default and meaning."""

    name: str
    variable: str
    default: Any
    parse: Callable[[str], Any]
    meaning: str


def _parse_bool(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in TRUE:
        return True
    if lowered in FALSE:
        return False
    raise ValueError("expected 0 or 1")


def _parse_card(text: str) -> str:
    """Short name of an NVIDIA card; "1" is an A100, "" and "0" none."""
    from faops.architectures import KNOWN_DEVICES

    named = text.strip().lower()
    if named in FALSE:
        return ""
    if named in TRUE:
        return "a100"
    cards = [name for name, device in KNOWN_DEVICES.items() if device.arch.startswith("sm_")]
    if named not in cards:
        raise ValueError(f"expected 1 (an A100) or one of {', '.join(cards)}")
    return named


def _parse_size(text: str) -> int:
    if not text.strip().isdecimal():
        raise ValueError("expected a whole number, 0 or more")
    return int(text)


def _parse_count(text: str) -> int:
    if not text.strip().isdecimal() or not int(text):
        raise ValueError("expected a whole number, 1 or more")
    return int(text)


def _parse_amount(text: str) -> float:
    value = _number(text)
    if not 0 <= value < math.inf:
        raise ValueError("expected a number, 0 or more")
    return value


def _parse_percent(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 100:
        raise ValueError("expected a percentage, 0 to 100")
    return value


def _number(text: str) -> float:
    """NaN for what is no number, which no limits hold."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _parse_window(text: str) -> str:
    """Hours of the day such as "22:00-06:00"; "" is always."""
    from faops.daemon.gate.window import Window

    return str(Window.parse(text)) if text.strip().lower() not in FALSE else ""


def _parse_address(text: str) -> str:
    """host:port; "" is none."""
    if text.strip().lower() in FALSE:
        return ""
    split_address(text)
    return text.strip()


def split_address(text: str) -> tuple[str, int]:
    """Host and port of "127.0.0.1:8080" or "[::1]:8080"; port 0 is any free one. Raises ValueError."""
    found = ADDRESS.fullmatch(text.strip())
    if not found:
        raise ValueError("expected host:port, such as 127.0.0.1:8080 or [::1]:8080")
    host, port = found["host"].strip("[]"), int(found["port"])
    if port > 65535:
        raise ValueError(f"expected a port from 0 to 65535 after the host, got {port}")
    return host, port


SETTINGS: dict[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting("backend", "FAOPS_BACKEND", "", str, "backend forced for every call without backend=; empty chooses"),
        Setting(
            "cache_dir", "FAOPS_CACHE_DIR", "", str, "directory of tuning results; empty is the user cache directory"
        ),
        Setting("tuning", "FAOPS_TUNING", True, _parse_bool, "whether tuned winners are used at call time"),
        Setting(
            "record_misses",
            "FAOPS_RECORD_MISSES",
            True,
            _parse_bool,
            "whether a problem that runs untuned is written down, for `faops tune --from-misses`",
        ),
        Setting(
            "check_values",
            "FAOPS_CHECK_VALUES",
            False,
            _parse_bool,
            "check the contents of cu_seqlens, block_table and lengths on accelerators too, which synchronises",
        ),
        Setting(
            "emulate",
            "FAOPS_EMULATE",
            "",
            _parse_card,
            "run the cuda_raw kernels of this card on CPU tensors in the emulator, slowly; 1 is an A100, empty is off",
        ),
        Setting(
            "cubin_cache_mb",
            "FAOPS_CUBIN_CACHE_MB",
            512,
            _parse_size,
            "MiB that compiled CUDA kernels may take on disk; 0 keeps none",
        ),
        Setting(
            "state_dir",
            "FAOPS_STATE_DIR",
            "",
            str,
            "directory of the daemon's queue and log; empty is the user state directory",
        ),
        Setting(
            "runtime_dir",
            "FAOPS_RUNTIME_DIR",
            "",
            str,
            "directory of the daemon's socket; empty is the user runtime directory",
        ),
        Setting(
            "daemon_idle_gate",
            "FAOPS_DAEMON_IDLE_GATE",
            True,
            _parse_bool,
            "whether the daemon waits until a device is idle",
        ),
        Setting(
            "daemon_idle_seconds",
            "FAOPS_DAEMON_IDLE_SECONDS",
            30.0,
            _parse_amount,
            "seconds that a device must have been idle before the daemon tunes on it",
        ),
        Setting(
            "daemon_window",
            "FAOPS_DAEMON_WINDOW",
            "",
            _parse_window,
            "hours in which the daemon tunes, local time, such as 22:00-06:00; empty is always",
        ),
        Setting(
            "daemon_busy_cores",
            "FAOPS_DAEMON_BUSY_CORES",
            0.5,
            _parse_amount,
            "cores that other programs may keep busy on a CPU that counts as idle",
        ),
        Setting(
            "daemon_busy_percent",
            "FAOPS_DAEMON_BUSY_PERCENT",
            5.0,
            _parse_percent,
            "per cent that other programs may use of a GPU or NPU that counts as idle",
        ),
        Setting(
            "daemon_yield_seconds",
            "FAOPS_DAEMON_YIELD_SECONDS",
            10.0,
            _parse_amount,
            "seconds that tuning is paused for other work before it is ended and queued again",
        ),
        Setting(
            "daemon_attempts",
            "FAOPS_DAEMON_ATTEMPTS",
            3,
            _parse_count,
            "times that tuning a problem may fail before the daemon leaves it alone",
        ),
        Setting(
            "daemon_http",
            "FAOPS_DAEMON_HTTP",
            "",
            _parse_address,
            "host:port at which the daemon also answers over TCP, with a token; empty is not at all",
        ),
    )
}


@dataclass(frozen=True)
class Value:
    """A setting's value and where it came from: "argument", "environment", "file" or "default"."""

    value: Any
    source: str


def config_path() -> Path:
    """Path of faops.yaml; FAOPS_CONFIG names another file."""
    if named := os.environ.get("FAOPS_CONFIG"):
        return Path(named)
    import platformdirs

    return Path(platformdirs.user_config_dir("faops", appauthor=False)) / "faops.yaml"


def cache_root() -> Path:
    """Directory that holds everything faops keeps between runs; it may not exist yet."""
    if named := get("cache_dir"):
        return Path(str(named)).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("faops", appauthor=False))


def get(name: str) -> Any:
    """The effective value of a setting. Raises SettingsError when the environment or the file holds nonsense."""
    return resolve(name).value


def resolve(name: str) -> Value:
    """The effective value of a setting together with its source."""
    setting = SETTINGS[name]
    raw = os.environ.get(setting.variable)
    if raw is not None:
        try:
            return Value(setting.parse(raw), "environment")
        except ValueError as error:
            raise SettingsError(f"{setting.variable}={raw!r}: {error}") from None
    written = _file_values().get(name)
    if written is not None:
        try:
            return Value(setting.parse(str(written)), "file")
        except ValueError as error:
            raise SettingsError(f"{config_path()}: {name}: {written!r}: {error}") from None
    return Value(setting.default, "default")


_file_cache: tuple[Path, float, dict[str, Any]] | None = None


def _file_values() -> dict[str, Any]:
    """Contents of faops.yaml, read again when the file changes; {} where there is none."""
    global _file_cache
    path = config_path()
    try:
        modified = path.stat().st_mtime
    except OSError:
        return {}
    if _file_cache and _file_cache[:2] == (path, modified):
        return _file_cache[2]
    import yaml

    try:
        loaded = yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from None
    if not isinstance(loaded, dict):
        raise SettingsError(f"{path}: expected a mapping of setting names to values, got {type(loaded).__name__}")
    unknown = sorted(set(loaded) - set(SETTINGS))
    if unknown:
        raise SettingsError(f"{path}: unknown setting {unknown[0]!r}, expected one of {', '.join(SETTINGS)}")
    _file_cache = (path, modified, loaded)
    return loaded
