// Small helpers to build and update the page. Everything foreign enters as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Make an element; children are nodes or text. */
export function el(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Make an element of an SVG picture. */
export function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

export function byId(id) {
  return document.getElementById(id);
}

/** Set text only when it differs, so that selections and screen readers are left in peace. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function setAttribute(node, name, value) {
  if (value === null || value === undefined || value === false) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, String(value));
}

/** A name from outside: its own direction of writing, and cut by the style sheet when long. */
export function nameOf(text, className = "name") {
  return el("bdi", { class: className, title: text }, text);
}

export function setName(node, text) {
  setText(node, text);
  setAttribute(node, "title", text);
}

/**
 * Make the children of `parent` those of `items`, in order, reusing nodes by key.
 *
 * `known` is a Map of key to view that the caller keeps; `make(item)` returns a view
 * `{node, update(item)}`.
 */
export function reconcile(parent, known, items, keyOf, make) {
  const wanted = new Set();
  let before = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    if (wanted.has(key)) continue;
    wanted.add(key);
    let view = known.get(key);
    if (!view) {
      view = make(item);
      known.set(key, view);
    }
    view.update(item);
    if (view.node === before) before = before.nextElementSibling;
    else parent.insertBefore(view.node, before);
  }
  for (const [key, view] of known) {
    if (!wanted.has(key)) {
      view.node.remove();
      known.delete(key);
    }
  }
}
