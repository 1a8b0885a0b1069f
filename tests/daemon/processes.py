"""The real daemon in a process of its own, and programs beside it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from faops import processes
from faops.daemon.client import Client
from faops.errors import DaemonError

LIMIT = 120.0  # seconds for what takes a few on an idle machine
METADATA = "Metadata-Version: 2.1\nName: slow-kernel\nVersion: 1.0\n"
ENTRY_POINTS = "[faops.backends]\nslow = slow_kernel:register\n"


def install_slow_kernel(site: Path) -> None:
    """Make `site`, put on PYTHONPATH, hold the backend of slow_kernel.py as if pip had installed it."""
    information = site / "slow_kernel-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(METADATA)
    (information / "entry_points.txt").write_text(ENTRY_POINTS)
    shutil.copy(Path(__file__).with_name("slow_kernel.py"), site)


def wait_until(condition: Callable[[], object], limit: float = LIMIT) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)


class Daemon:
    """`faops daemon run` in a process."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "faops_cli", "daemon", "run", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self.client = Client()

    def wait_until_ready(self) -> None:
        wait_until(self.is_ready)

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.process.stderr and self.process.stderr.read().decode()
        try:
            return self.client.ready()[0]
        except DaemonError:
            return False

    def descendants(self) -> list[int]:
        return processes.descendants(self.process.pid)

    def kill(self) -> None:
        """End it as nothing else can, and wait until nothing that it started is left."""
        descendants = self.descendants()
        self.process.kill()
        self.process.communicate()
        wait_until(lambda: not any(map(processes.alive, descendants)))

    def stop(self) -> int:
        """Its exit code after SIGTERM."""
        descendants = self.descendants()
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=LIMIT)
        wait_until(lambda: not any(map(processes.alive, descendants)))
        return self.process.returncode

    def end(self) -> None:
        """Clean up, whatever has happened."""
        if self.process.poll() is None:
            self.kill()
