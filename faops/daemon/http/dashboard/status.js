// Draws what /v1/status says: the title, devices, running jobs, totals.

import { fill, find, part, patch, say } from "./rows.js";
import { clock, count, counted, duration, megabytes, seconds } from "./words.js";

/** Draws everything but the lists of jobs. */
export function drawStatus(status) {
  document.title = `${title(status)} · faops daemon`;
  drawRunning(status);
  drawDevices(status);
  drawTotals(status);
}

function title(status) {
  if (status.state === "tuning") return `Tuning, ${count(status.jobs.waiting ?? 0)} waiting`;
  return status.state[0].toUpperCase() + status.state.slice(1);
}

function drawRunning(status) {
  const nothing = { idle: "Nothing runs, because nothing waits.", paused: "Nothing runs while the daemon is paused." };
  say(find("running-empty"), nothing[status.state] ?? "Nothing runs right now.");
  find("running-empty").hidden = status.running.length > 0;
  const held = status.paused ? "held back while the daemon is paused" : "held back while other programs work";
  patch(find("running"), "running", status.running, (item) => item.job.id, (row, item) => drawOne(row, item, held));
}

function drawOne(row, running, held) {
  const { job, done, planned } = running;
  fill(row, {
    problem: job.problem,
    doing: running.yielding ? held : running.doing,
    count: planned ? `${count(done)} of about ${counted(planned, "measurement", "measurements")}` : "getting ready",
    best: seconds(running.best_seconds),
    left: running.remaining_seconds === null ? "not known yet" : `about ${duration(running.remaining_seconds)}`,
    elapsed: duration(running.elapsed_seconds),
    device: job.device,
  });
  drawProgress(part(row, "progress"), done, planned);
  named(row, "cancel", `Cancel ${job.problem}`);
}

function drawProgress(bar, done, planned) {
  if (!planned) {
    bar.removeAttribute("value");
    return;
  }
  bar.max = planned;
  bar.value = Math.min(done, planned);
}

function drawDevices(status) {
  find("devices-table").hidden = status.devices.length === 0;
  find("devices-empty").hidden = status.devices.length > 0;
  patch(find("devices"), "devices", status.devices, (device) => device.device, drawDevice);
  offerDevices(status.devices);
}

function drawDevice(row, device) {
  const { gate, worker } = device;
  fill(row, {
    device: device.device,
    name: device.name,
    gate: gate.open ? "yes" : "no",
    reason: gate.reason || `idle for ${duration(gate.idle_seconds)}`,
    waiting: count(device.waiting),
    worker: worker ? `process ${worker.pid}, ${megabytes(worker.memory_bytes)}` : "none",
  });
  part(row, "gate").classList.toggle("closed", !gate.open);
}

/** The devices that the form for submissions offers, after the default one. */
function offerDevices(devices) {
  const select = find("device");
  const offered = [...select.options].slice(1).map((option) => option.value);
  const names = devices.map((device) => device.device);
  if (offered.join() === names.join()) return;
  const chosen = select.value;
  select.replaceChildren(select.options[0], ...names.map((name) => new Option(name, name)));
  select.value = names.includes(chosen) ? chosen : "";
}

function drawTotals(status) {
  const { totals } = status;
  fill(find("totals"), {
    tuned: count(totals.tuned),
    won: count(totals.won),
    seconds_tuning: duration(totals.seconds_tuning),
    rejected_samples: count(totals.rejected_samples),
    errors: count(totals.errors),
    daemon: `faops ${status.version}, process ${status.pid}, since ${clock(status.started)}`,
    memory: megabytes(status.memory_bytes),
  });
}

/** What a row's button is called by those who do not see the row around it. */
export function named(row, act, name) {
  const button = row.querySelector(`[data-act="${act}"]`);
  if (button.getAttribute("aria-label") !== name) button.setAttribute("aria-label", name);
}
