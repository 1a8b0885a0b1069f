// The lists of jobs: the queue, what was set aside, recent winners. Each shows its beginning and more when asked to.

import * as api from "./api.js";
import { fill, find, part, patch, say } from "./rows.js";
import { named } from "./status.js";
import { ahead, clock, config, count, counted, duration, ratio, seconds, whyItWaits } from "./words.js";

const FIRST = 20; // rows of a list at first
const STEP = 80; // and this many more each time
const MOST = 500; // that the page shows; `faops daemon jobs` lists them all

const limits = { queue: FIRST, aside: FIRST, winners: FIRST };
let lists = { queue: [], aside: [], winners: [] };

/** Fetches the lists anew. Raises Failure. */
export async function fetchLists() {
  const [queue, aside, winners] = await Promise.all([
    api.get(`/v1/jobs?state=waiting&limit=${limits.queue}`),
    api.get(`/v1/jobs?state=quarantined&state=cancelled&limit=${limits.aside}`),
    api.get(`/v1/winners?limit=${limits.winners}`),
  ]);
  lists = { queue: queue.jobs, aside: aside.jobs, winners: winners.winners };
}

/** What the lists depend on: while this stays, they need not be fetched again. */
export function signature(status) {
  return JSON.stringify([status.started, status.jobs, status.totals.tuned, status.running.map(({ job }) => job.id)]);
}

/** Whether a job waits for nothing but its turn. */
export function isDue() {
  return lists.queue.some((job) => !ahead(job.not_before));
}

/** The job of a row in one of the lists, or undefined. */
export function jobOf(id) {
  return Object.values(lists).flat().find((job) => String(job.id) === id);
}

/** Draws the lists; why a job waits depends on the newest status too. */
export function drawLists(status) {
  const { waiting = 0, quarantined = 0, cancelled = 0 } = status.jobs;
  draw("queue", waiting, (row, job, place) => drawWaiting(row, job, place, status));
  draw("aside", quarantined + cancelled, drawAside);
  draw("winners", lists.winners.length === limits.winners ? Infinity : 0, drawWinner);
}

/** Makes a list longer: what its button does. */
export function showMore(name) {
  limits[name] = Math.min(limits[name] + STEP, MOST);
}

function draw(name, total, drawRow) {
  const shown = lists[name].length;
  find(`${name}-table`).hidden = shown === 0;
  find(`${name}-empty`).hidden = shown > 0 || total > 0;
  patch(find(name), name, lists[name], (job) => job.id, drawRow);
  const rest = total - shown;
  offerMore(name, rest > 0 && shown > 0 && limits[name] < MOST);
  say(find(`${name}-rest`), rest > 0 && Number.isFinite(rest) ? left(rest, limits[name]) : "");
}

/** Shows the button that makes a list longer, or hides it; its focus then goes to the heading. */
function offerMore(name, offered) {
  const button = find(`${name}-more`);
  if (!offered && document.activeElement === button) find(`${name}-heading`).focus({ preventScroll: true });
  button.hidden = !offered;
}

function left(rest, limit) {
  return `${count(rest)} more${limit < MOST ? "" : "; faops daemon jobs lists them all"}`;
}

const asked = (job) => job.source === "submission";
const whose = (job) => `${job.device}${asked(job) ? ", asked for" : ""}${job.forced ? ", anew" : ""}`;
const hits = (job) => (asked(job) ? "" : `, ${counted(job.hits, "hit", "hits")}`);

function drawWaiting(row, job, place, status) {
  fill(row, {
    problem: job.problem,
    device: whose(job),
    hits: asked(job) ? "-" : count(job.hits),
    priority: asked(job) ? "asked for" : seconds(job.priority),
    about: duration(job.tuning_seconds),
    why: whyItWaits(job, place, status),
  });
  named(row, "cancel", `Cancel ${job.problem}`);
}

function drawAside(row, job) {
  const failed = `failed ${job.attempts === 1 ? "once" : `${count(job.attempts)} times`}`;
  const why = job.state === "cancelled" ? "cancelled" : failed;
  fill(row, {
    problem: job.problem,
    device: whose(job) + hits(job),
    since: clock(job.finished),
    why: job.message ? `${why}: ${job.message}` : why,
  });
  part(row, "since").dateTime = job.finished ?? "";
  named(row, "retry", `Retry ${job.problem}`);
}

function drawWinner(row, job) {
  const result = job.result ?? {};
  const faster = !result.is_default;
  fill(row, {
    problem: job.problem,
    device: `${job.device}, ${clock(job.finished)}`,
    winner: faster ? result.kernel : "the default",
    config: faster ? config(result.config) : `${result.default_kernel ?? ""} ${config(result.default_config)}`,
    times: faster ? `${seconds(result.default_p50)} → ${seconds(result.p50)}` : seconds(result.p50),
    speedup: faster ? ratio(result.speedup) : "-",
    verdict: faster ? "above the noise" : "nothing faster: the default stays",
  });
  part(row, "bar").style.width = `${faster ? 100 * Math.max(0, 1 - 1 / result.speedup) : 0}%`;
  const button = row.querySelector('[data-act="map"]');
  button.hidden = !job.has_heat_map;
  say(part(row, "none"), job.has_heat_map ? "" : "none");
  named(row, "map", `Show the tile map of ${job.problem}`);
}
