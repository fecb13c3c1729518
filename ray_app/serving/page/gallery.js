/* Show many images in a sortable table, and as CSV. This module sends no request. */

import { element, notice } from "./elements.js";
import { DEMONSTRATION, ensembleOf, foundIn, kindOf, notices, probability, score, shortened, tally, trouble } from "./words.js";
import { headingOf } from "./verdict.js";

const ORDER = ["fake", "abstain", "real", null];
const STATES = { waiting: "waiting", sent: "scoring…", cancelled: "not scored yet" };

/* `of` returns the sort key. Numbers sort in descending order. */
const COLUMNS = [
  { key: "name", title: "Image", of: (item) => item.file.name.toLowerCase() },
  { key: "verdict", title: "Finding", of: (item) => ORDER.indexOf(item.answer?.verdict ?? null) },
  { key: "probability", title: "Probability", number: true, of: (item) => -(item.answer?.probability ?? -1) },
  { key: "score", title: "Score", number: true, of: (item) => -(item.answer?.score ?? -Infinity) },
];

/** The table of a queue's items. `open(item)` is called for the item that the user selects. */
export class Gallery {
  #rows = new Map();
  #sorting = null; // {column, back}

  constructor(open, actions) {
    this.open = open;
    this.heading = element("h2", { class: "tally" });
    this.body = element("tbody");
    this.notices = element("div", { class: "notices" });
    this.heads = COLUMNS.map((column) => element("th", { scope: "col", class: column.number ? `number ${column.key}` : null },
      element("button", { type: "button", class: "sort", text: column.title, click: () => this.sort(column) })));
    const picture = element("th", { scope: "col", class: "thumb" }, element("span", { class: "unseen", text: "Image" }));
    const table = element("table", { class: "gallery" }, element("caption", { class: "unseen", text: "Images and their verdicts. The column headers sort the table." }),
      element("thead", {}, element("tr", {}, picture, ...this.heads)), this.body);
    this.view = element("div", { class: "many", role: "region", "aria-label": "All images" }, this.heading, element("div", { class: "actions" }, ...actions), this.notices, table);
  }

  /** Update the heading and the rows. */
  show(items, ensembles = []) {
    this.heading.textContent = tally(items);
    const said = [...new Set(items.flatMap(({ answer }) => notices(answer, ensembleOf(answer, ensembles))))];
    this.notices.replaceChildren(...said.map((text) => notice(text, text === DEMONSTRATION ? {} : { class: "notice quiet" })));
    const kept = new Set(items);
    for (const item of this.#rows.keys()) if (!kept.has(item)) this.#drop(item);
    for (const item of items) this.#refresh(item);
    this.#arrange(items);
  }

  /** Sort by a column. Sorting by it again reverses the order. */
  sort(column) {
    this.#sorting = { column, back: this.#sorting?.column === column && !this.#sorting.back };
    this.#arrange([...this.#rows.keys()]);
  }

  focusRow(item) {
    this.#rows.get(item)?.row.querySelector("button").focus();
  }

  /** The items in the order of the table. */
  get order() {
    const byNumber = (a, b) => a.number - b.number;
    const items = [...this.#rows.keys()].sort(byNumber);
    if (!this.#sorting) return items;
    const { column, back } = this.#sorting;
    const compare = (a, b) => (column.of(a) < column.of(b) ? -1 : column.of(a) > column.of(b) ? 1 : 0);
    return items.sort((a, b) => (back ? -1 : 1) * compare(a, b) || byNumber(a, b));
  }

  #arrange() {
    this.heads.forEach((head, at) => {
      if (this.#sorting?.column === COLUMNS[at]) head.setAttribute("aria-sort", Boolean(this.#sorting.back) === Boolean(COLUMNS[at].number) ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
    const focused = document.activeElement;
    const rows = this.order.map((item) => this.#rows.get(item).row);
    if (rows.some((row, at) => this.body.children[at] !== row)) this.body.replaceChildren(...rows);
    if (focused !== document.activeElement && this.body.contains(focused)) focused.focus();
  }

  #drop(item) {
    this.#rows.get(item).row.remove();
    this.#rows.delete(item);
  }

  #refresh(item) {
    const shown = this.#rows.get(item);
    if (shown?.state === item.state && shown.answer === item.answer) return;
    const cells = [...rest(item)];
    if (shown) {
      while (shown.row.children.length > 2) shown.row.lastChild.remove();
      shown.row.append(...cells);
      shown.row.querySelector("button").disabled = !item.answer;
      Object.assign(shown, { state: item.state, answer: item.answer });
    } else this.#rows.set(item, { state: item.state, answer: item.answer, row: element("tr", {}, thumbnail(item), this.#name(item), ...cells) });
  }

  #name(item) {
    const button = element("button", { type: "button", class: "link", disabled: !item.answer, click: () => this.open(item) },
      element("bdi", { text: shortened(item.file.name, 60) }));
    return element("th", { scope: "row" }, button);
  }
}

function thumbnail(item) {
  const image = element("img", { src: item.url, alt: "", loading: "lazy", decoding: "async", width: 48, height: 48 });
  image.addEventListener("error", () => image.replaceWith(element("span", { class: "blank" })), { once: true });
  return element("td", { class: "thumb" }, image);
}

function rest(item) {
  const { answer } = item;
  const words = !answer ? STATES[item.state] : foundIn(answer) ?? headingOf(answer);
  return [
    element("td", {}, element("span", { class: `verdict ${kindOf(answer)}`, text: words })),
    element("td", { class: "number", text: probability(answer?.probability) }),
    element("td", { class: "number score", text: score(answer?.score) }),
  ];
}

/** The items as CSV with a header, for spreadsheets. Text that looks like a formula is prefixed with a quote. */
export function csv(items, ensembles = []) {
  const detectors = [...new Set(items.flatMap((item) => Object.keys(item.answer?.scores ?? {})))];
  const told = items.some(({ answer }) => answer?.profile) ? [["predicted_generator", ({ generator }) => generator?.name], ["predicted_prompt", ({ prompt }) => prompt?.text]] : [];
  const head = ["name", "status", "finding", "grounds", "verdict", "reason", "reason_detail", "probability", "calibrated", "demonstration", "notice", "score", ...detectors.map((name) => `score ${name}`), ...told.map(([column]) => column),
    "format", "width", "height", "size_bytes", "flags", "sha256", "ensemble", "fpr", "fingerprint", "request_id"];
  const rows = items.map(({ file, answer, state }) => [
    file.name, answer?.status ?? state, answer?.finding, answer?.grounds?.map(({ says, error }) => `${says} (${error})`).join("; "), answer?.verdict, answer?.verdict_reason ?? answer?.error?.message, answer?.verdict_detail, answer?.probability,
    answer && String(answer.calibrated ?? false), answer && String(ensembleOf(answer, ensembles)?.demonstration ?? false), notices(answer, ensembleOf(answer, ensembles)).join(" "), answer?.score, ...detectors.map((name) => answer?.scores?.[name]), ...told.map(([, of]) => answer?.profile && of(answer.profile)),
    answer?.image?.format, answer?.image?.width, answer?.image?.height, file.size, answer?.image?.flags?.join(" "), answer?.sha256,
    answer?.ensemble?.name, answer?.ensemble?.fpr, answer?.ensemble?.fingerprint, answer?.request_id ?? answer?.error?.request_id,
  ]);
  return `\ufeff${[head, ...rows].map((row) => row.map(cell).join(",")).join("\r\n")}\r\n`;
}

function cell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const guarded = /^[=+\-@\t\r\n]/.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(guarded) || guarded !== guarded.trim() ? `"${guarded.replaceAll('"', '""')}"` : guarded;
}
