// Numbers, times and states as people read them; the same forms as in the tuning reports.

const UNITS = [["s", 1], ["ms", 1e-3], ["us", 1e-6], ["ns", 1e-9]];
const FLAGS = new Map([[true, "True"], [false, "False"]]);
const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const rounded = (value) => String(Number(value.toPrecision(3)));

/** A time of a call, such as "1.23 ms"; "-" for none. */
export function seconds(value) {
  if (!isNumber(value)) return "-";
  if (value >= 1000) return `${Math.round(value)} s`;
  const [unit, size] = UNITS.find(([, size]) => Math.abs(value) >= size) ?? UNITS.at(-1);
  return `${rounded(value / size)} ${unit}`;
}

/** A length of time by the clock, such as "3 min 20 s"; "-" for none. */
export function duration(value) {
  if (!isNumber(value)) return "-";
  const whole = Math.max(0, Math.round(value));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor(whole / 60) % 60} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor(whole / 3600) % 24} h`;
}

/** A speed-up, such as "1.34x". */
export const ratio = (value) => (isNumber(value) ? `${value.toFixed(2)}x` : "-");

/** A size of memory, such as "61.3 MB". */
export const megabytes = (value) => (isNumber(value) ? `${rounded(value / 1e6)} MB` : "-");

/** A number with spaces between thousands. */
export const count = (value) => (isNumber(value) ? value.toLocaleString("en").replaceAll(",", "\u202f") : "-");

/** A number with its noun, such as "3 problems". */
export const counted = (value, one, many) => `${count(value)} ${value === 1 ? one : many}`;

/** Local time, with the day where it is not today; "" for none. */
export function clock(iso) {
  const date = new Date(iso ?? NaN);
  if (Number.isNaN(date.getTime())) return "";
  const today = date.toDateString() === new Date().toDateString();
  return today ? CLOCK.format(date) : `${DAY.format(date)} ${CLOCK.format(date)}`;
}

/** Whether a time lies ahead. */
export const ahead = (iso) => iso !== null && iso !== undefined && new Date(iso).getTime() > Date.now();

/** Options of a kernel as faops writes them everywhere, such as "block_q=64, upcast=False". */
export function config(value) {
  if (value === null || typeof value !== "object") return String(value ?? "");
  return Object.entries(value).map(([name, option]) => `${name}=${FLAGS.get(option) ?? option}`).join(", ");
}

/** What the daemon does, in a sentence; `due` tells whether a waiting problem may begin as far as it is concerned. */
export function sentence(status, due) {
  switch (status.state) {
    case "tuning": return `Tuning ${work(status)}.`;
    case "waiting": return `Waiting with ${work(status)}: ${obstacle(status, due)}.`;
    case "paused": return `Paused${pause(status.paused)}.`;
    case "stopping": return "Stopping.";
    default: return "Idle: nothing to tune.";
  }
}

/** What there is to do, such as "1 of 12 problems on NVIDIA H200", or "12 problems" where none is begun. */
function work(status) {
  const { running } = status;
  const all = counted(running.length + (status.jobs.waiting ?? 0), "problem", "problems");
  if (running.length === 0) return all;
  const names = new Map(status.devices.map((device) => [device.device, device.name]));
  const where = [...new Set(running.map(({ job }) => names.get(job.device) ?? job.device))].join(" and ");
  return `${running.length} of ${all} on ${where}`;
}

/** Why nothing is measured although something waits. */
function obstacle(status, due) {
  const busy = new Set(status.running.map(({ job }) => job.device));
  const wanted = status.devices.filter((device) => device.waiting > 0 || busy.has(device.device));
  const closed = wanted.filter((device) => !device.gate.open);
  const reasons = [...new Set(closed.map((device) => device.gate.reason))];
  if (reasons.length) return reasons.join("; ");
  if (status.devices.length === 0) return "the devices of this machine are looked up";
  return due ? "the next one is about to begin" : "those that failed are tried again later";
}

function pause(paused) {
  const until = clock(paused?.until);
  return (until ? ` until ${until}` : "") + (paused?.reason ? `: ${paused.reason}` : "");
}

/** Why a waiting job is not running. */
export function whyItWaits(job, place, status) {
  if (status.paused) return "the daemon is paused";
  if (ahead(job.not_before)) return retry(job);
  const device = status.devices.find((item) => item.device === job.device);
  if (device && !device.gate.open) return device.gate.reason;
  return place === 0 ? "it is next" : `${count(place)} before it`;
}

function retry(job) {
  const failed = job.attempts > 0 ? ` after ${counted(job.attempts, "failed attempt", "failed attempts")}` : "";
  return `tried again at ${clock(job.not_before)}${failed}${job.message ? `: ${job.message}` : ""}`;
}
