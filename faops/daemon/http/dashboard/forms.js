// The form that asks for tuning, and the one that asks for the token.

import * as api from "./api.js";
import { find, say } from "./rows.js";
import { counted } from "./words.js";

const PATIENCE = 60; // times, a second apart, that a submission is asked about before the page looks away

const kind = () => document.querySelector("input[name=kind]:checked").value;

/** Makes the forms work. `notice` says what came of it, `woken` asks the daemon anew. */
export function wire(notice, woken) {
  for (const radio of document.querySelectorAll("input[name=kind]")) radio.addEventListener("change", drawKind);
  drawKind(); // a browser may come back with the other one chosen
  find("submit-form").addEventListener("submit", (event) => {
    event.preventDefault();
    submit(notice, woken);
  });
  find("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    api.keepToken(find("token-value").value.trim());
    find("token-value").value = "";
    woken();
  });
}

/** Shows the form for the token in the place of everything else; gives the reason in words. */
export function askForToken() {
  const why = api.hasToken() ? "The token is not that of the daemon." : "The daemon answers only who has its token.";
  api.forgetToken();
  say(find("token-why").firstElementChild, why);
  find("token").hidden = false;
  find("panels").hidden = true;
  find("token-value").focus();
  return why;
}

/** Takes the form for the token away once the daemon has answered. */
export function letIn() {
  find("panels").hidden = false;
  if (find("token").hidden) return;
  find("token").hidden = true;
  find("main").focus({ preventScroll: true });
}

function drawKind() {
  for (const name of ["model", "shapes"]) find(`${name}-field`).hidden = kind() !== name;
}

/** What the form asks for, as the API takes it. */
function request() {
  const lines = find("shapes").value.split("\n").map((line) => line.trim()).filter(Boolean);
  const body = kind() === "model" ? { model: find("model").value.trim() } : { shapes: lines };
  if (find("device").value) body.device = find("device").value;
  if (find("force").checked) body.force = true;
  return body;
}

async function submit(notice, woken) {
  const button = find("submit");
  if (button.getAttribute("aria-disabled") === "true") return;
  const body = request();
  complain("");
  if (!(body.model ?? body.shapes).length) return complain(`Name ${kind() === "model" ? "a model" : "a shape"} first.`);
  button.setAttribute("aria-disabled", "true");
  try {
    await follow(await api.post("/v1/submissions", body), notice, woken);
  } catch (failure) {
    complain(failure.message);
  } finally {
    button.removeAttribute("aria-disabled");
  }
}

/** Says what becomes of a submission: the daemon makes its problems in a process of its own. */
async function follow(submission, notice, woken) {
  notice("Asked for; the daemon works out which problems that are.");
  for (let times = 0; submission.state === "waiting" && times < PATIENCE; times += 1) {
    await new Promise((wake) => setTimeout(wake, 1000));
    submission = await api.get(`/v1/submissions/${submission.id}`);
  }
  woken();
  const rest = submission.message ? `: ${submission.message}` : "";
  if (submission.state === "refused") complain(`Refused${rest}`);
  const found = counted(submission.jobs.length, "problem", "problems");
  if (submission.state === "expanded") notice(`${found} asked for${rest}.`);
}

/** Says at the field what is wrong with it; "" takes that back. */
function complain(message) {
  const field = find(kind());
  for (const name of ["model", "shapes"]) {
    find(name).setAttribute("aria-invalid", String(message !== "" && name === kind()));
    find(name).setAttribute("aria-describedby", message ? `submit-error ${name}-hint` : `${name}-hint`);
  }
  find("submit-error").hidden = message === "";
  say(find("submit-error"), message);
  if (message) field.focus();
}
