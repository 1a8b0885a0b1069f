"""The child of the daemon that imports torch: it knows devices and problems, and tunes.

It runs in a session of its own and lives only while there is something to do. Requests and answers are JSON, one a
line, on a socket, since kernels may print. A request is ``{"serial", "do", ...}``:

- ``prepare(threads)``: import everything; compute with so many threads on a CPU, 0 for as many as torch likes.
- ``devices()``: see :func:`faops.daemon.worker.devices.devices`.
- ``expand(request)``: see :func:`faops.daemon.worker.expanding.expand`.
- ``assess(misses)``: see :func:`faops.daemon.worker.assessing.assess`.
- ``tune(task, forced)``: see :class:`faops.daemon.worker.tuning.Tuning`; before its answer come lines
  ``{"serial", "event"}``.

An answer is ``{"serial", "value"}`` or ``{"serial", "error": {"type", "message"}}``. Three requests have no answer and
count at once, whatever is under way: ``pause`` and ``go`` between two measurements, ``exit`` after the present one.
When the connection closes, the process ends in the middle of what it does, with all that it has started.

Only the rest of this package imports torch: the connection is listened to before that takes its seconds.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

from faops.daemon.worker.connection import Connection, Json, leave
from faops.errors import FaopsError

NICENESS = 10  # what slips in between two looks at the gate has precedence
# Ends with the service, whose manager signals every process of it: a measuring process that this ended would count as
# crashed. What is ignored here, all that is started from here ignores.
NOT_MEANT = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

Answer = Callable[..., Any]


def main(descriptor: int) -> None:
    """Answer what comes through the socket ``descriptor`` until it is closed. Does not return."""
    for number in NOT_MEANT:
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable(all_threads=False)
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    os.set_inheritable(descriptor, False)  # what a kernel starts must not keep the socket open
    connection = Connection(socket.socket(fileno=descriptor))
    connection.listen()
    with contextlib.suppress(SystemExit):  # told to end in the middle of a job
        serve(connection)
    sys.stdout.flush()
    sys.stderr.flush()
    leave()


def serve(connection: Connection) -> None:
    """Answer requests until told to end."""
    answers = _answers(connection)
    while (request := connection.next()) is not None:
        connection.send(_answer(answers, request))


def _answers(connection: Connection) -> dict[str, Answer]:
    """What answers each request. Imports torch."""
    from faops.daemon.worker.assessing import assess
    from faops.daemon.worker.devices import devices, prepare
    from faops.daemon.worker.expanding import expand
    from faops.daemon.worker.tuning import Tuning

    tuning = Tuning(connection.tell, connection.wait_for_leave)
    return {"prepare": prepare, "devices": devices, "expand": expand, "assess": assess, "tune": tuning.tune}


def _answer(answers: dict[str, Answer], request: Json) -> Json:
    given = {name: value for name, value in request.items() if name not in ("serial", "do")}
    result: Json = {"serial": request["serial"]}
    try:
        result["value"] = answers[request["do"]](**given)
    except Exception as error:
        if not isinstance(error, FaopsError):  # a defect: where it is, the output tells
            traceback.print_exc()
        result["error"] = {"type": type(error).__name__, "message": str(error) or type(error).__name__}
    return result
