"""Two hundred clients at once."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest

from tests.daemon.http.support import Served, task

CLIENTS = 200
EACH = 1  # rounds of requests


async def client(path: Path, number: int) -> Counter[str]:
    """Several requests over one connection; every one is checked against what this very client has asked."""
    seen: Counter[str] = Counter()
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        shape = f"sq={number + 1},h=1,d=64"
        status, submission = await ask(reader, writer, "POST", "/v1/submissions", {"shapes": [shape]})
        assert status == 202
        for turn in range(EACH):
            status, job = await ask(reader, writer, "GET", f"/v1/jobs/{number + 1}")
            assert status == 200 and job["key"] == f"key-{number}"
            status, found = await ask(reader, writer, "GET", f"/v1/submissions/{submission['id']}")
            assert status == 200 and found["id"] == submission["id"]
            status, problem = await ask(reader, writer, "GET", f"/v1/jobs/{100_000 + number * EACH + turn}")
            assert status == 404 and problem["detail"].endswith(str(100_000 + number * EACH + turn))
            seen["requests"] += 3
        status, _ = await ask(reader, writer, "GET", "/v1/status")
        seen[f"status {status}"] += 1
    finally:
        writer.close()
    return seen


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, path: str, body: object = None
) -> tuple[int, dict[str, object]]:
    content = b"" if body is None else json.dumps(body).encode()
    headers = ("Host: f", "Content-Type: application/json", f"Content-Length: {len(content)}")
    head = "\r\n".join([f"{method} {path} HTTP/1.1", *headers, "", ""])
    writer.write(head.encode() + content)
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
    length = next(int(line.split(b":")[1]) for line in answer.split(b"\r\n") if line.startswith(b"content-length"))
    return int(answer.split()[1]), json.loads(await reader.readexactly(length))


def test_all_are_answered_right(served: Served) -> None:
    served.control.queue.missed([(task(number), 1) for number in range(CLIENTS)])

    async def together() -> Counter[str]:
        return sum(await asyncio.gather(*(client(served.path, number) for number in range(CLIENTS))), Counter())

    seen = asyncio.run(together())
    assert seen == {"requests": CLIENTS * EACH * 3, "status 200": CLIENTS}
    assert served.count("faops_http_requests_total", method="POST", path="/v1/submissions", status="202") == CLIENTS
    assert served.count("faops_errors_total", kind="defect") == 0
    kept = served.control.queue.submissions(1000)
    assert sorted(found.request["shapes"][0] for found in kept) == sorted(
        f"sq={number + 1},h=1,d=64" for number in range(CLIENTS)
    )


@pytest.mark.full
def test_all_are_answered_while_others_misbehave(served: Served) -> None:
    served.control.queue.missed([(task(number), 1) for number in range(CLIENTS)])

    async def nuisance(number: int) -> None:
        for _ in range(20):
            _, writer = await asyncio.open_unix_connection(str(served.path))
            writer.write([b"GET /", b"\xff" * 100, b"POST /v1/pause HTTP/1.1\r\nHost: f\r\n\r\n{", b""][number % 4])
            await asyncio.sleep(0.005)
            writer.close()

    async def together() -> Counter[str]:
        nuisances = asyncio.gather(*(nuisance(number) for number in range(40)))
        found = sum(await asyncio.gather(*(client(served.path, number) for number in range(CLIENTS))), Counter())
        await nuisances
        return found

    assert asyncio.run(together())["status 200"] == CLIENTS
