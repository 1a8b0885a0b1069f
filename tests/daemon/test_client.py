"""The client against a real application on a real socket, and against what is none."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from faops.daemon import paths
from faops.daemon.client import Client, RefusedError
from faops.daemon.http.app import build
from faops.daemon.http.server import serve_unix
from faops.errors import DaemonError, NotRunningError
from tests.daemon.http.support import RESULT, Served, task


@pytest.fixture
def served(private_daemon: Path) -> Iterator[Served]:
    served = Served(private_daemon)
    yield served
    served.close()


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with Client(served.path) as client:
        yield client


def test_all_that_it_can_ask(client: Client, served: Served) -> None:
    first, second = served.control.queue.missed([(task(1), 5), (task(2), 1)])
    assert client.status()["state"] == "idle"
    assert client.ready() == (True, "")
    assert [job["id"] for job in client.jobs(["waiting"], limit=1)["jobs"]] == [first.id]
    page = client.jobs(limit=1)
    assert client.jobs(before=page["next"])["jobs"][0]["id"] != page["jobs"][0]["id"]
    assert client.jobs(["done", "cancelled"])["jobs"] == []
    assert client.cancel(second.id)["state"] == "cancelled" == client.job(second.id)["state"]
    assert client.retry(second.id)["state"] == "waiting"
    served.control.queue.begin(first.id)
    served.control.queue.finish(first.id, RESULT, "")
    assert [job["id"] for job in client.winners(5)] == [first.id]
    assert client.heat_map(first.id) == "<table>é</table>"
    submission = client.submit({"model": "smollm2-135m"})
    assert client.submission(submission["id"]) == submission
    assert client.pause("lunch", 60)["state"] == "paused"
    assert client.pause()["paused"]["reason"] == ""
    assert client.resume()["state"] == "idle"
    assert client.open_http("127.0.0.1:9").startswith("http://127.0.0.1:9/")
    assert client.open_http().startswith("http://127.0.0.1:8741/")
    assert "faops_jobs" in client.metrics()
    client.stop()
    assert ("pause", "lunch", 60.0) in served.control.told and served.control.told[-1] == ("stop",)
    served.control.trouble = "looking"
    assert client.ready() == (False, "looking")


def test_refusals_say_why(client: Client, served: Served) -> None:
    with pytest.raises(RefusedError, match="there is no job 9") as caught:
        client.job(9)
    assert (caught.value.status, caught.value.field) == (404, None)
    with pytest.raises(RefusedError, match="got 5, expected a string") as caught:
        client.submit({"model": 5})
    assert (caught.value.status, caught.value.field) == (422, "model")
    with pytest.raises(DaemonError):
        client.jobs(limit=0)


def test_it_goes_on_after_the_daemon_was_started_again(served: Served, client: Client) -> None:
    assert client.status()["state"] == "idle"
    served.run(served.listener.stop())
    with pytest.raises(NotRunningError, match="faops daemon start"):
        client.status()
    served.listener = served.run(serve_unix(build(served.control), served.path, served.doorman))
    assert client.status()["state"] == "idle"


def test_without_a_daemon_it_says_what_starts_one(private_daemon: Path) -> None:
    with pytest.raises(NotRunningError, match=r"no daemon answers at .*; `faops daemon start` starts one"):
        Client().status()
    assert not paths.runtime_directory(create=False).exists()  # asking makes nothing
    dead = private_daemon / "dead"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(dead))
    with pytest.raises(NotRunningError):
        Client(dead).status()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_a_closed_socket_is_no_missing_daemon(served: Served, client: Client) -> None:
    served.path.chmod(0)
    with pytest.raises(DaemonError, match="another user") as caught:
        client.status()
    assert not isinstance(caught.value, NotRunningError)


ANSWERS = {
    b"": "closed the connection",
    b"nonsense\r\n\r\n": "closed the connection",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]": "no JSON object",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{": "no JSON object",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}": "",
    b"HTTP/1.1 500 No\r\nContent-Length: 4\r\n\r\noops": "answered with 500: 'oops'",
    b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n[]": "answered with 500",
    b"HTTP/1.1 302 No\r\nLocation: http://elsewhere/\r\nContent-Length: 0\r\n\r\n": "answered with 302",
}


@pytest.mark.parametrize(("answer", "expected"), ANSWERS.items(), ids=range(len(ANSWERS)))
def test_what_is_no_daemon_is_told(private_daemon: Path, answer: bytes, expected: str) -> None:
    with listening(private_daemon / "s") as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with Client(private_daemon / "s") as client:
            if expected:
                with pytest.raises(DaemonError, match=expected):
                    client.status()
            else:
                assert client.status() == {}
        thread.join()


def test_one_that_does_not_answer_is_not_waited_for(private_daemon: Path) -> None:
    refused = pytest.raises(DaemonError, match=r"does not answer within 0\.05 s")
    with listening(private_daemon / "s"), Client(private_daemon / "s", timeout=0.05) as client, refused:
        client.status()


def test_fields_of_another_version(private_daemon: Path) -> None:
    with listening(private_daemon / "s") as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                for body in (b'{"state":"idle","new":[1]}', b"{}"):
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

        thread = threading.Thread(target=serve)
        thread.start()
        with Client(private_daemon / "s") as client:
            assert client.status() == {"state": "idle", "new": [1]}
            with pytest.raises(DaemonError, match="lacks 'winners': it may be of another version"):
                client.winners()
        thread.join()


def listening(path: Path) -> socket.socket:
    found = socket.socket(socket.AF_UNIX)
    found.settimeout(30)
    found.bind(str(path))
    found.listen()
    return found


def test_proxies_of_the_environment_are_not_for_it(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert client.status()["state"] == "idle"


def test_importing_it_needs_nothing_and_using_it_says_what(private_daemon: Path) -> None:
    program = (
        "import sys; sys.modules['httpx'] = None\n"
        "from faops.daemon.client import Client\n"
        "assert 'torch' not in sys.modules and 'starlette' not in sys.modules\n"
        "Client().status()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (
        "DaemonError: the daemon's packages are missing; install them with: pip install 'faops[daemon]'" in done.stderr
    )
