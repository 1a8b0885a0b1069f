"""What the daemon and systemd tell each other (the protocol), and the units that make systemd start it.

None of it needs systemd or a library of it: without the variables that systemd sets, nothing is done.
"""

from faops.daemon.systemd.protocol import inherited_sockets, notify, watchdog_seconds
from faops.daemon.systemd.units import UnitFile, install, look, service_unit, socket_unit, uninstall, unit_directory

__all__ = [
    "UnitFile",
    "inherited_sockets",
    "install",
    "look",
    "notify",
    "service_unit",
    "socket_unit",
    "uninstall",
    "unit_directory",
    "watchdog_seconds",
]
