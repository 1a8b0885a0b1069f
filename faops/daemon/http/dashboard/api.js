// Requests to the daemon: with the token where there is one, with a limit of time, and with failures told apart.

const LIMIT = 10_000; // milliseconds that an answer may take
const KEPT = "faops-token";

/** Why a request failed. `kind` is "gone", "slow", "token" (none, or a wrong one), "busy" or "refused". */
export class Failure extends Error {
  constructor(kind, message, field = "") {
    super(message);
    this.kind = kind;
    this.field = field;
  }
}

/** Takes the token out of the address (#token=...), so that it stays in no history, and keeps it for this tab. */
export function takeToken() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token === null) return false;
  keepToken(token);
  history.replaceState(null, "", location.pathname + location.search);
  return true;
}

export function keepToken(token) {
  sessionStorage.setItem(KEPT, token);
}

export function forgetToken() {
  sessionStorage.removeItem(KEPT);
}

export function hasToken() {
  return sessionStorage.getItem(KEPT) !== null;
}

export const get = async (path) => parsed(await ask("GET", path));
export const post = async (path, body) => parsed(await ask("POST", path, body));
export const remove = async (path) => parsed(await ask("DELETE", path));
export const text = async (path) => (await ask("GET", path)).body;

async function ask(method, path, body) {
  const headers = { Accept: "*/*" };
  const token = sessionStorage.getItem(KEPT);
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const answer = await sent(path, { method, headers, body: JSON.stringify(body), credentials: "omit" });
  if (!answer.ok) throw refusal(answer);
  return answer;
}

/** The whole answer, so that the limit of time holds for its body too. */
async function sent(path, options) {
  const limit = new AbortController();
  const timer = setTimeout(() => limit.abort(), LIMIT);
  try {
    const response = await fetch(path, { ...options, cache: "no-store", signal: limit.signal });
    return { ok: response.ok, status: response.status, body: await response.text() };
  } catch {
    if (limit.signal.aborted) throw new Failure("slow", `The daemon did not answer within ${LIMIT / 1000} s.`);
    throw new Failure("gone", "The daemon does not answer.");
  } finally {
    clearTimeout(timer);
  }
}

function parsed(answer) {
  if (answer.body === "") return {};
  try {
    return JSON.parse(answer.body);
  } catch {
    throw new Failure("busy", "The daemon gave an answer that is not JSON.");
  }
}

/** The Failure of an answer that is none of success; the daemon's own words where it gave any. */
function refusal(answer) {
  let problem = {};
  try {
    problem = JSON.parse(answer.body) ?? {};
  } catch {
    // What stands between the page and the daemon may answer in other words than JSON.
  }
  const kind = answer.status === 401 ? "token" : answer.status >= 500 ? "busy" : "refused";
  const words = problem.detail || problem.title || "no reason given";
  return new Failure(kind, `${words} (${answer.status})`, problem.field ?? "");
}
