"""A program in place of the daemon: holds the lock, answers /readyz, ends at SIGTERM. Started as COMMAND with words:

``fail``: ends with an error; ``crash``: is killed; ``unready``: is never ready; ``deaf``: SIGTERM does not end it;
``hold``: holds the lock and prints "held", and nothing else.
"""

from __future__ import annotations

import http.server
import os
import signal
import socketserver
import sys
import threading
import time

from faops.daemon import lock, log, paths, start
from faops.errors import DaemonError

COMMAND = ("-I", __file__)  # isolated, so that the directory of this file, with its `queue`, is no place for modules


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        ready = "unready" not in sys.argv
        body = b'{"ready": true, "reason": ""}' if ready else b'{"ready": false, "reason": "the queue is repaired"}'
        self.send_response(200 if ready else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def get_request(self):  # type: ignore[no-untyped-def]
        connection, _ = super().get_request()
        return connection, ("client", 0)


def main() -> None:
    if "fail" in sys.argv:
        sys.exit("error: nothing works today")
    log.setup(paths.log_path())
    log.get("stand_in").info("started", detached=start.is_detached())
    if "crash" in sys.argv:
        os.kill(os.getpid(), signal.SIGKILL)
    with lock.Instance.acquire():
        if "hold" in sys.argv:
            print("held", flush=True)
            time.sleep(600)
        paths.socket_path().unlink(missing_ok=True)
        with Server(str(paths.socket_path()), Answers) as server:
            signal.signal(signal.SIGTERM, lambda number, frame: end(server))
            server.serve_forever(poll_interval=0.02)


def end(server: Server) -> None:
    if "deaf" not in sys.argv:
        threading.Thread(target=server.shutdown).start()


if __name__ == "__main__":
    try:
        main()
    except DaemonError as error:
        sys.exit(f"error: {error}")
