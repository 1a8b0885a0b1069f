"""What the settings tell the daemon, read as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from faops import settings
from faops.daemon.gate.window import Window

PREFIX = "daemon_"


@dataclass(frozen=True)
class Config:
    """The settings whose names begin with ``daemon_``, under the rest of their names.

    ``idle_seconds`` and ``yield_seconds`` are seconds, ``busy_percent`` is 0 to 100. ``window`` is None where the
    daemon may tune at any hour, and ``http`` is (host, port), or None where it answers on its socket alone.
    """

    idle_gate: bool = True
    idle_seconds: float = 30.0
    window: Window | None = None
    busy_cores: float = 0.5
    busy_percent: float = 5.0
    yield_seconds: float = 10.0
    attempts: int = 3
    http: tuple[str, int] | None = None

    def as_dict(self) -> dict[str, bool | int | float | str]:
        """JSON-able form, as one would write it in faops.yaml."""
        host, port = self.http or ("", 0)
        return {
            "idle_gate": self.idle_gate,
            "idle_seconds": self.idle_seconds,
            "window": str(self.window or ""),
            "busy_cores": self.busy_cores,
            "busy_percent": self.busy_percent,
            "yield_seconds": self.yield_seconds,
            "attempts": self.attempts,
            "http": (f"[{host}]:{port}" if ":" in host else f"{host}:{port}") if host else "",
        }


def load() -> Config:
    """The settings as they are now. Raises SettingsError for the first that has an impossible value."""
    window, http = _told("window"), _told("http")
    return Config(
        idle_gate=_told("idle_gate"),
        idle_seconds=_told("idle_seconds"),
        window=Window.parse(window) if window else None,
        busy_cores=_told("busy_cores"),
        busy_percent=_told("busy_percent"),
        yield_seconds=_told("yield_seconds"),
        attempts=_told("attempts"),
        http=settings.split_address(http) if http else None,
    )


def _told(name: str) -> Any:
    return settings.get(PREFIX + name)
