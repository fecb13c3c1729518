/* Create elements. Text is added as text, never as markup, so no string of a file or of the server can become an element. */

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element. `set` has attributes, `text` for its text, and functions for its events. null children are left out. */
export function element(tag, set = {}, ...children) {
  return furnished(document.createElement(tag), set, children);
}

/** An SVG element, the same way. */
export function drawn(tag, set = {}, ...children) {
  return furnished(document.createElementNS(SVG, tag), set, children);
}

function furnished(made, set, children) {
  for (const [name, value] of Object.entries(set)) {
    if (name === "text") made.textContent = value;
    else if (typeof value === "function") made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

/** A notice, with the text before its colon in bold. */
export function notice(text, set = {}) {
  const [strong, rest] = [text.slice(0, text.indexOf(":") + 1), text.slice(text.indexOf(":") + 1)];
  return element("p", { class: "notice", role: "note", ...set }, element("strong", { text: strong }), rest);
}

/** A section with a heading at the side and a body. */
export function section(id, title, side, ...body) {
  const head = element("div", { class: "side" }, element("h3", { id, text: title }), side && element("p", { text: side }));
  return element("section", { "aria-labelledby": id }, head, element("div", { class: "body" }, ...body));
}

/** A list of terms from [term, description, wide?] triples; a description is text or a node. */
export function facts(entries) {
  const rows = entries.map(([term, said, wide]) =>
    element("div", wide ? { class: "wide" } : {}, element("dt", { text: term }), element("dd", {}, said)));
  return element("dl", { class: "facts" }, ...rows);
}

/** Move the focus to a heading, without scrolling if it is in view. */
export function focusOn(heading) {
  heading.setAttribute("tabindex", "-1");
  heading.focus({ preventScroll: true });
  const { top, bottom } = heading.getBoundingClientRect();
  if (top < 0 || bottom > window.innerHeight * 0.85) heading.scrollIntoView({ block: "start" });
}
