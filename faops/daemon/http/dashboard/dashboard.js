// Keeps the page true: asks the daemon once a second, draws what it says, and says so when it does not answer.

import * as api from "./api.js";
import * as dialog from "./dialog.js";
import { askForToken, letIn, wire } from "./forms.js";
import { drawLists, fetchLists, isDue, jobOf, showMore, signature } from "./jobs.js";
import { find, say } from "./rows.js";
import { drawStatus } from "./status.js";
import { clock, duration, sentence } from "./words.js";

const BEAT = 1000; // milliseconds between two looks
const HIDDEN = 15_000; // while nobody sees the page
const SLOWEST = 15_000; // while the daemon does not answer
const OLD = 5000; // what is older is marked as stale
const LISTS = 30_000; // lists are fetched anew after this long even where nothing seems to have changed

let status = null;
let answered = 0; // when the status came
let listed = { signature: "", when: 0 };
let doubted = false; // the lists may be out of date for a reason that the status does not tell
let failures = 0; // in a row
let trouble = null; // the last Failure, null once the daemon answers again
let next = 0; // when it is asked again
let timer = 0;
let beating = false;
let again = false; // asked to look again while a look goes on

// --- looking ---------------------------------------------------------------------------------------------------------

/** Looks at the daemon now, whatever was planned. */
function wake() {
  again = beating;
  if (!beating) beat();
}

async function beat() {
  clearTimeout(timer);
  beating = true;
  try {
    await look();
    failures = 0;
    trouble = null;
  } catch (failure) {
    failures += 1;
    trouble = understood(failure);
    doubted = true;
    if (trouble.kind === "token") drawTokenTrouble();
  }
  beating = false;
  const wait = again ? 0 : delay();
  again = false;
  next = Date.now() + wait;
  if (wait === 0 || trouble?.kind !== "token") timer = setTimeout(beat, wait);
  drawTrouble();
}

async function look() {
  const news = await api.get("/v1/status");
  status = news;
  answered = Date.now();
  const mark = signature(news);
  if (doubted || mark !== listed.signature || answered - listed.when > LISTS) {
    doubted = false;
    await fetchLists();
    listed = { signature: mark, when: answered };
  }
  draw();
}

function understood(failure) {
  if (failure instanceof api.Failure) return failure;
  console.error(failure);
  return new api.Failure("busy", "The daemon's answer is not what this page expects; reload the page.");
}

function delay() {
  if (failures > 0) return Math.min(BEAT * 2 ** (failures - 1), SLOWEST);
  return document.hidden ? HIDDEN : BEAT;
}

// --- drawing ---------------------------------------------------------------------------------------------------------

function draw() {
  letIn();
  find("pause-form").hidden = status.state === "stopping";
  drawStatus(status);
  drawLists(status);
  say(find("pause"), status.paused ? "Resume" : "Pause");
  find("pause-choice").hidden = Boolean(status.paused);
  const words = sentence(status, isDue());
  say(find("state"), words);
  announce(`state ${status.state}`, words);
}

let announced = "";

/** Tells those who listen, but only once for each state: numbers that change every second are not news. */
function announce(state, words) {
  if (state === announced) return;
  announced = state;
  say(find("announcer"), words);
}

/** Says what is wrong and how old the rest of the page is. */
function drawTrouble() {
  const age = Date.now() - answered;
  const stale = status !== null && (trouble !== null || age > Math.max(OLD, delay() + OLD));
  find("panels").classList.toggle("stale", stale);
  find("trouble").hidden = trouble?.kind === "token" || (!trouble && !stale);
  if (find("trouble").hidden) return;
  const what = trouble?.message ?? "The daemon takes long to answer.";
  const old = status === null ? "" : ` What stands below is ${duration(age / 1000)} old, of ${clock(answered)}.`;
  const then = beating ? "Asking now." : `Asking again in ${duration((next - Date.now()) / 1000)}.`;
  say(find("trouble"), `${what}${old} ${then}${hint()}`);
  say(find("state"), "What the daemon does is not known.");
  document.title = "No answer · faops daemon";
  announce(`trouble ${trouble?.kind}`, what);
}

function hint() {
  if (trouble?.kind !== "gone" || failures < 3) return "";
  return " In a terminal, faops daemon start starts it and faops daemon logs tells what it did last.";
}

function drawTokenTrouble() {
  const why = askForToken();
  find("pause-form").hidden = true;
  say(find("state"), "Waiting for the token.");
  document.title = "Token · faops daemon";
  announce(`token ${why}`, why);
}

function notice(words) {
  say(find("notice"), words);
}

// --- doing -----------------------------------------------------------------------------------------------------------

/** Does what a button asks for; what goes wrong is said and leaves the page as it is. */
async function attempt(work) {
  try {
    await work();
  } catch (failure) {
    notice(failure.message);
  }
  doubted = true;
  wake();
}

const ACTS = {
  cancel: async (job) => {
    await api.remove(`/v1/jobs/${job.id}`);
    notice(`Cancelled: ${job.problem}`);
  },
  retry: async (job) => {
    await api.post(`/v1/jobs/${job.id}/retry`);
    notice(`Waits again: ${job.problem}`);
  },
  map: async (job) => {
    dialog.open(`Tile map of ${job.problem}`);
    try {
      dialog.showMap(await api.text(`/v1/jobs/${job.id}/heat-map`));
    } catch (failure) {
      dialog.showText(failure.message);
    }
  },
};

function pressed(event) {
  const button = event.target.closest("button[data-act]");
  if (!button) return;
  const id = button.closest("[data-key]").dataset.key;
  const job = jobOf(id) ?? status.running.map((item) => item.job).find((item) => String(item.id) === id);
  if (job) attempt(() => ACTS[button.dataset.act](job));
}

async function pauseOrResume() {
  if (status.paused) {
    await api.post("/v1/resume");
    return notice("Resumed.");
  }
  const seconds = find("pause-seconds").value;
  await api.post("/v1/pause", { reason: "from the dashboard", ...(seconds && { seconds: Number(seconds) }) });
  return notice("Paused.");
}

/** A link cannot carry the token: where there is one, the page fetches the text and shows it. */
function followLink(event) {
  const link = event.target.closest("a[data-text]");
  if (!link || !api.hasToken()) return;
  event.preventDefault();
  dialog.open(link.dataset.text);
  api.text(link.pathname).then(dialog.showText, (failure) => dialog.showText(failure.message));
}

document.addEventListener("click", pressed);
document.addEventListener("click", followLink);
document.addEventListener("visibilitychange", () => document.hidden || wake());
addEventListener("hashchange", () => api.takeToken() && wake());
find("pause-form").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(pauseOrResume);
});
for (const name of ["queue", "aside", "winners"]) {
  find(`${name}-more`).addEventListener("click", () => attempt(async () => showMore(name)));
}
wire(notice, wake);
setInterval(drawTrouble, 1000); // the age of what stands on the page
api.takeToken();
beat();
