// Rows made from <template>s and patched in place, so that focus, scroll and selection outlive every update. Data
// reaches the page as text only.

export const find = (id) => document.getElementById(id);

/** Sets a text only where it differs: a node that is not touched keeps what a reader has selected in it. */
export function say(node, text) {
  const words = String(text ?? "");
  if (node.textContent !== words) node.textContent = words;
}

/** The part of a row that is named so in its template. */
export const part = (row, name) => row.querySelector(`[data-field="${name}"]`);

/** Sets the texts of a row's parts. */
export function fill(row, texts) {
  for (const [name, text] of Object.entries(texts)) say(part(row, name), text);
}

/** Makes `parent` hold a row for each item in their order; `name` is that of the template, `draw` fills a row. */
export function patch(parent, name, items, keyOf, draw) {
  const focused = document.activeElement;
  const inside = parent.contains(focused);
  const keys = new Set(items.map((item) => String(keyOf(item))));
  const known = new Map([...parent.children].map((row) => [row.dataset.key, row]));
  for (const [key, row] of known) if (!keys.has(key)) row.remove();
  let place = parent.firstElementChild;
  items.forEach((item, index) => {
    const key = String(keyOf(item));
    const row = known.get(key) ?? made(name, key);
    draw(row, item, index);
    if (row === place) place = place.nextElementSibling;
    else parent.insertBefore(row, place);
  });
  if (inside) refocus(parent, focused);
}

function made(name, key) {
  const row = find(`${name}-row`).content.firstElementChild.cloneNode(true);
  row.dataset.key = key;
  return row;
}

/** After a move the element gets its focus back. If it is gone the section's heading gets it, not another row's
 * button: whoever is about to press Enter must not hit what they did not choose. */
function refocus(parent, focused) {
  if (document.activeElement === focused) return;
  const target = focused.isConnected ? focused : parent.closest("section").querySelector("h2");
  target.focus({ preventScroll: true });
}
