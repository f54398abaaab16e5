// Making elements. Text is always text: nothing that came from the server is ever parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(4).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** h("p", {class: "note", onclick: f}, "text", child, [more]): an HTML element. */
export const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);

/** The same in SVG. */
export const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

/** Put these in place of what `parent` holds. */
export const put = (parent, ...children) => {
  parent.replaceChildren(...children.flat(4).filter((child) => child !== null && child !== undefined && child !== false));
  return parent;
};

/** A table from heads and rows of cells; a cell is text or a node, a head is text or {text, number: true}. */
export function table(caption, heads, rows, attributes = {}) {
  const isNumber = heads.map((head) => typeof head === "object" && head.number);
  const cell = (tag, content, place) => h(tag, { class: isNumber[place] ? "number" : null, scope: tag === "th" ? "col" : null }, content);
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", attributes,
      h("caption", { class: "hidden" }, caption),
      h("thead", {}, h("tr", {}, heads.map((head, place) => cell("th", head.text ?? head, place)))),
      h("tbody", {}, rows.map((row) => (row instanceof Node ? row : h("tr", {}, row.map((content, place) => cell("td", content ?? "–", place))))))));
}

/** What a page shows while it waits, when there is nothing, when something failed. */
export const loading = (text = "Loading …") => h("p", { class: "state loading", role: "status" }, h("span", { class: "spinner", "aria-hidden": "true" }), text);
export const empty = (title, text) => h("div", { class: "state empty" }, h("strong", {}, title), h("p", {}, text));
export const failed = (error, retry) => h("div", { class: "state failed", role: "alert" },
  h("strong", {}, error.title ?? "Something went wrong"), h("p", {}, error.detail ?? error.message),
  retry && h("button", { type: "button", class: "button", onclick: retry }, "Try again"));

export const badge = (text, tone = "") => h("span", { class: `badge ${tone}` }, text);
export const card = (title, ...children) => h("section", { class: "card" }, title && h("h2", {}, title), children);
