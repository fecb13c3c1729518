/* Connect the elements of the page with the queue of images. */

import { filesOf } from "./dropping.js";
import { element, focusOn, notice } from "./elements.js";
import { Endpoint } from "./endpoint.js";
import { Gallery, csv } from "./gallery.js";
import { Queue } from "./queue.js";
import { reportName, reportOf } from "./report.js";
import { headingOf, verdictView } from "./verdict.js";
import { DEMONSTRATION, counted, pointsOf, sentence, shortened, size, tally, trouble, visible } from "./words.js";

const at = (id) => document.getElementById(id);
const endpoint = new Endpoint();
const queue = new Queue();
let served = null; // the ensembles and limits of the endpoint, when they are known
let asked = null; // the options for the next files
let fresh = []; // the items added since the last run started
let current = null; // the item in view; null = the gallery, or nothing

const clearing = element("button", { type: "button", class: "quiet", text: "Clear all", click: clear });
const gallery = new Gallery(open, [element("button", { type: "button", text: "Download CSV", click: download }), clearing]);

start();

async function start() {
  history.replaceState(null, "");
  document.documentElement.classList.add("ready");
  at("files").addEventListener("change", (event) => { take([...event.target.files]); event.target.value = ""; });
  at("drop").addEventListener("click", (event) => event.target === at("drop") && at("files").click());
  at("cancel").addEventListener("click", () => queue.cancel());
  at("options").addEventListener("change", choose);
  at("entry").addEventListener("submit", admit);
  addEventListener("paste", (event) => take([...event.clipboardData.files], true));
  addEventListener("dragover", (event) => { event.preventDefault(); at("drop").classList.add("over"); });
  addEventListener("dragleave", (event) => event.relatedTarget ?? at("drop").classList.remove("over"));
  addEventListener("drop", dropped);
  addEventListener("popstate", (event) => show(queue.items.find(({ number }) => number === event.state?.image) ?? null));
  queue.addEventListener("change", progress);
  await introduce();
}

/** Request the description of the endpoint. Files that were chosen before wait for it. */
async function introduce() {
  try {
    served = await endpoint.describe();
  } catch (failed) {
    return halted(failed);
  }
  at("notices").replaceChildren();
  at("entry").hidden = !served.token_needed || Boolean(endpoint.token);
  const { limits } = served;
  at("drop-note").textContent = `${limits.formats.join(", ")}; up to ${size(limits.max_file_bytes)} each. They are sent only to ${location.host}, which stores no image.`;
  at("ensemble").replaceChildren(...served.ensembles.map(({ name, title, default: first }) => element("option", { value: name, text: visible(title || name), selected: first })));
  at("which").hidden = served.ensembles.length < 2;
  at("besides").hidden = !served.optional_detectors.length;
  at("besides").append(...served.optional_detectors.map((name) => element("label", { class: "tick" }, element("input", { type: "checkbox", name: "beside", value: name }), ` ${visible(name)}`)));
  choose({ target: at("ensemble") });
  run();
}

function choose({ target }) {
  const ensemble = served.ensembles.find(({ name }) => name === at("ensemble").value) ?? served.ensembles[0];
  if (target === at("ensemble")) offerPoints(ensemble);
  const besides = [...document.querySelectorAll("[name=beside]:checked")].map(({ value }) => value);
  const localizes = (names) => names.some((name) => served.detectors[name]?.localizes ?? !Object.keys(served.detectors).length);
  at("localizing").hidden = !localizes([...served.ensembles.flatMap(({ detectors }) => detectors), ...served.optional_detectors]);
  if (target !== at("masks")) at("masks").checked = Object.keys(served.detectors).length > 0 && localizes([...ensemble.detectors, ...besides]);
  at("options").hidden = at("which").hidden && at("points").hidden && at("besides").hidden && at("localizing").hidden;
  asked = { ensemble: served.ensembles.length > 1 ? ensemble.name : null, fpr: Number(at("point").value) || null, besides, masks: at("masks").checked };
  if (queue.items.length) return offerAgain();
  at("notices").replaceChildren(...(ensemble.demonstration ? [notice(DEMONSTRATION)] : []));
}

/** Offer the operating points of the selected ensemble. */
function offerPoints(ensemble) {
  const points = pointsOf(ensemble);
  at("points").hidden = !points.length;
  at("point").replaceChildren(...points.map(({ fpr, text }) => element("option", { value: fpr ?? "", text })));
}

/** Offer to score the images in view again if the options have changed since. */
function offerAgain() {
  const items = (current ? [current] : queue.items).filter((item) => item.answer && JSON.stringify(item.asked) !== JSON.stringify(asked));
  if (queue.running || queue.halted) return;
  const again = () => {
    for (const item of items) Object.assign(item, { answer: null, state: "waiting", asked });
    fresh = items;
    run();
  };
  offer(items.length && "These options apply to the next images.", current ? "Score this image again" : "Score all again", again);
}

/** Show a quiet notice with one button, or nothing without a text. */
function offer(text, label, act) {
  const button = element("button", { type: "button", class: "quiet", text: label, click: act });
  at("notices").replaceChildren(...(text ? [element("p", { class: "notice quiet" }, `${text} `, button)] : []));
}

function admit(event) {
  event.preventDefault();
  endpoint.token = at("token").value.trim();
  at("token").value = "";
  introduce();
}

async function dropped(event) {
  event.preventDefault();
  at("drop").classList.remove("over");
  take(await filesOf(event.dataTransfer));
}

function take(files, pasted = false) {
  if (!files.length) return;
  fresh.push(...queue.add(files, asked, pasted));
  run();
}

async function run() {
  if (!served || queue.running || !queue.open.length) return;
  for (const item of queue.items) item.asked ??= asked;
  document.documentElement.classList.add("working");
  at("notices").replaceChildren();
  if (current) history.replaceState(null, ""); // show the new images
  current = null;
  say(`Scoring ${counted(queue.open.length, "image")}.`);
  await queue.run(endpoint, served.limits);
  const items = fresh;
  fresh = items.filter(({ answer }) => !answer);
  if (queue.halted) halted(queue.halted);
  if (!queue.items.length) return;
  if (items.length === 1 && items[0].answer) open(items[0]);
  else if (!current && (queue.items.length > 1 || !queue.halted)) show(null, !queue.halted);
  if (!queue.halted) say(items.length === 1 && items[0].answer ? `${shortened(items[0].file.name, 60)}: ${headingOf(items[0].answer)}.` : tally(queue.items));
  offerRest();
}

function progress() {
  const open = queue.open.length;
  at("progress").hidden = !queue.running;
  clearing.disabled = queue.running;
  at("meter").max = queue.items.length;
  at("meter").value = queue.items.length - open;
  const wait = queue.busy && `${trouble(queue.busy.trouble.code)[0]}; trying again in ${queue.busy.seconds} s.`;
  at("state").textContent = wait ?? `${queue.items.length - open} of ${counted(queue.items.length, "image")} scored.`;
  if (wait && !at("live").textContent.startsWith(trouble(queue.busy.trouble.code)[0])) say(wait);
  if (queue.items.length > 1 && !current) show(null, false);
}

/** Show the trouble that stopped the queue, what to do, and a button to continue. */
function halted(failed) {
  if (failed.code === "unauthorized") return tokenNeeded(failed);
  const [title, advice] = trouble(failed.code, failed.message);
  const again = element("button", { type: "button", class: "quiet", text: "Continue", click: () => (served ? run() : introduce()) });
  at("notices").replaceChildren(element("p", { class: "notice", role: "alert" }, element("strong", { text: `${title}.` }), ` ${advice} `, again));
}

function tokenNeeded({ message }) {
  const [, usual] = trouble("unauthorized");
  const own = message && !message.startsWith("the request has no valid token") ? sentence(message) : usual; // an endpoint without tokens explains how to set them
  at("notices").replaceChildren();
  at("token-note").textContent = endpoint.token ? `This token is not valid. ${own}` : own;
  at("token").toggleAttribute("aria-invalid", Boolean(endpoint.token));
  at("entry").hidden = false;
  at("token").focus();
  say(at("token-note").textContent);
}

function offerRest() {
  const open = queue.open.length;
  if (open && !queue.halted && !queue.running) offer(`${counted(open, "image")} not scored.`, "Continue", run);
}

function open(item) {
  if (queue.items.length > 1) history[history.state?.image ? "replaceState" : "pushState"]({ image: item.number }, ""); // the back button leads to the table
  show(item, true);
}

/** Show one item, or with null the gallery. */
function show(item, focus = true) {
  const before = current;
  current = item;
  document.title = item?.answer ? `${headingOf(item.answer)} · Touchstone` : "Touchstone";
  if (item) {
    const about = { ...served, curl: ({ file, asked: how }) => endpoint.curl(file.name, how), copy, keep };
    at("results").replaceChildren(...[among(item), verdictView(item, about)].filter(Boolean));
    if (focus) focusOn(at("finding"));
  } else if (queue.items.length) {
    gallery.show(queue.items, served?.ensembles);
    if (gallery.view.parentNode !== at("results")) at("results").replaceChildren(gallery.view);
    if (before && queue.items.length > 1) gallery.focusRow(before);
    else if (focus) focusOn(gallery.heading);
  }
}

function among(item) {
  if (queue.items.length < 2) return null;
  gallery.show(queue.items, served.ensembles);
  const answered = gallery.order.filter(({ answer }) => answer);
  const here = answered.indexOf(item);
  const step = (text, to) => element("button", { type: "button", class: "quiet", text, disabled: !answered[to], click: () => open(answered[to]) });
  return element("nav", { class: "among", "aria-label": "Images" },
    element("button", { type: "button", class: "quiet", text: `All ${counted(queue.items.length, "image")}`, click: () => history.back() }),
    element("span", { class: "steps" }, step("Previous", here - 1), step("Next", here + 1)));
}

function download() {
  save("touchstone.csv", "text/csv", csv(gallery.order, served.ensembles));
}

function keep(item) {
  save(reportName(item), "text/html", reportOf(at("results").querySelector(".one"), item, location.host));
  say("The report is saved.");
}

function save(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

function clear() {
  queue.clear();
  current = null;
  at("results").replaceChildren();
  at("notices").replaceChildren();
  document.documentElement.classList.remove("working");
  say("All images are removed from this page.");
  at("files").focus();
}

async function copy(text, button) {
  const done = await navigator.clipboard?.writeText(text).then(() => true, () => false) || copiedByHand(text);
  const label = button.textContent;
  button.textContent = done ? "Copied" : "Could not copy";
  say(button.textContent);
  setTimeout(() => { button.textContent = label; }, 1500);
}

/** Copy text on pages without https, on which browsers do not offer the clipboard. */
function copiedByHand(text) {
  const field = element("textarea", { class: "unseen", "aria-hidden": "true" });
  field.value = text;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  return done;
}

function say(text) {
  at("live").textContent = text;
}
