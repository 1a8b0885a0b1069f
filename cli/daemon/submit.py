"""`faops daemon submit`: problems to be tuned in the background."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from ..output import json_option, print_json, print_line
from ..tune.options import model_options, source_options
from ..tune.workload import chosen_source
from .follow import follow, tell_results
from .reach import client
from .requests import request_of
from .words import Data, problems

if TYPE_CHECKING:
    from faops.daemon.client import Client

EXPANSION_SECONDS = 60.0  # the daemon reads a submission in a process of its own, which first has to start
POLL_SECONDS = 0.2


@click.command("submit", short_help="Ask for problems to be tuned.")
@source_options
@model_options
@click.option("--device", help="The device of this machine to tune for (default: cuda, npu or cpu).")
@click.option("--force", is_flag=True, help="Measure again what has been tuned before.")
@click.option("--wait", is_flag=True, help="Wait until all of it is done, and say what was found.")
@json_option
def command(
    model: str | None,
    hf_config: str | None,
    shapes: tuple[str, ...],
    plan: str | None,
    device: str | None,
    force: bool,
    wait: bool,
    as_json: bool,
    **model_options: Any,
) -> None:
    """Ask the daemon to tune a workload, by the same options as `faops tune`. It comes before all that programs ran
    untuned. A name or a shape that is wrong is told at once. With --wait, exits with 1 when a problem failed; Ctrl-C
    ends only the waiting.

    \b
    Examples:
      faops daemon submit --model smollm2-135m
      faops daemon submit --shape b=1,sq=1024,h=8,d=64,causal=1 --wait
      faops daemon submit --plan tune.yaml --device cuda:1 --force
    """
    sources = {"--model": model, "--hf-config": hf_config, "--shape": list(shapes), "--plan": plan}
    options = {name: value for name, value in model_options.items() if value}
    source, value = chosen_source(sources, options)
    request = request_of(source, value, options, device, force)
    daemon = client()
    submission = _expanded(daemon, daemon.submit(request))
    if not as_json:
        _tell(submission)
    jobs = follow(daemon, submission["jobs"], quiet=as_json) if wait else []
    if as_json:
        print_json("daemon submit", submission=submission, jobs=jobs)
    elif wait:
        tell_results(jobs)
    if submission["state"] == "expanded" and any(job["state"] != "done" for job in jobs):
        raise click.exceptions.Exit(1)


def _expanded(daemon: Client, submission: dict[str, Any]) -> dict[str, Any]:
    """The submission once it was made into jobs, or as it is when that takes too long. Raises DaemonError for one that
    was refused."""
    from faops.errors import DaemonError

    number = submission["id"]
    end = time.monotonic() + EXPANSION_SECONDS
    while submission["state"] == "waiting" and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
        submission = daemon.submission(number)
    if submission["state"] == "refused":
        raise DaemonError(submission["message"])
    return submission


def _tell(submission: Data) -> None:
    number, jobs = submission["id"], submission["jobs"]
    if submission["state"] == "waiting":
        print_line(f"submission {number} is kept, and made into jobs soon; `faops daemon jobs` shows them then")
    elif jobs:
        print_line(f"{problems(len(jobs))}: {_numbers(jobs)}")
    else:
        print_line("nothing to tune")
    if submission["message"]:
        print_line(submission["message"])


def _numbers(jobs: list[int]) -> str:
    if len(jobs) == 1:
        return f"job {jobs[0]}"
    in_a_row = jobs == list(range(jobs[0], jobs[0] + len(jobs)))
    return f"jobs {jobs[0]} to {jobs[-1]}" if in_a_row else f"jobs {', '.join(map(str, jobs))}"
