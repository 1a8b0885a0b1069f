// The dialog: the heat map of a job, or a text. A heat map comes as HTML and is built anew from what it may hold.

import { find, say } from "./rows.js";

const TAGS = new Set(["H3", "P", "DIV", "TABLE", "CAPTION", "THEAD", "TBODY", "TR", "TH", "TD", "SPAN", "SMALL", "BR"]);
const ATTRIBUTES = ["scope", "title"]; // kept as they are
const CLASSES = new Set(["facets", "map", "scale", "soft", "empty", "failed", "untimed", "timed", "winner"]);
const COLOURS = /^background: (#[0-9a-f]{6}); color: (#[0-9a-f]{6})$/;

/** Opens the dialog with a heading; the content follows with `showText` or `showMap`. */
export function open(heading) {
  say(find("dialog-heading"), heading);
  showText("Asking the daemon …");
  if (!find("dialog").open) find("dialog").showModal();
  find("dialog-heading").focus();
}

/** Shows lines as they are. */
export function showText(text) {
  const lines = document.createElement("pre");
  lines.textContent = text;
  find("dialog-content").replaceChildren(lines);
}

/** Shows a heat map. */
export function showMap(html) {
  // The page's security policy forbids style attributes, even in a document that is only parsed; as data they pass.
  const parsed = new DOMParser().parseFromString(html.replaceAll(' style="', ' data-style="'), "text/html");
  find("dialog-content").replaceChildren(...rebuilt(parsed.body));
}

/** Copies of what is below a node, less every element and attribute that is not of a heat map. */
function rebuilt(node) {
  return [...node.childNodes].flatMap((child) => {
    if (child.nodeType === Node.TEXT_NODE) return [document.createTextNode(child.data)];
    return TAGS.has(child.nodeName) ? [copied(child)] : [];
  });
}

function copied(source) {
  const element = document.createElement(source.localName);
  for (const name of ATTRIBUTES) if (source.hasAttribute(name)) element.setAttribute(name, source.getAttribute(name));
  const classes = [...source.classList].filter((name) => CLASSES.has(name));
  if (classes.length) element.className = classes.join(" ");
  const colours = COLOURS.exec(source.dataset.style ?? "");
  if (colours) [, element.style.backgroundColor, element.style.color] = colours;
  element.append(...rebuilt(source));
  return element;
}
