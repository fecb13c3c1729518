/* Picture after picture a guess and then the truth, at last how people and the detectors did. Nothing of it outlives the page. */

import { element, focusOn, notice } from "./elements.js";
import { Endpoint } from "./endpoint.js";
import { DEMONSTRATION, VERDICTS, counted, score, trouble, visible } from "./words.js";

const KEYS = { ArrowLeft: "real", ArrowRight: "fake", r: "real", m: "fake" };
const WAYS = [["Next picture", next], ["How people did", standings]];
const endpoint = new Endpoint();
const game = document.getElementById("game");
const line = (text) => element("p", { text });
let round = { pictures: [], place: 0, right: 0, known: 0 };
let choose = null; // takes a guess, while one is wanted

game.addEventListener("keydown", (event) => {
  if (KEYS[event.key] && !event.ctrlKey && !event.metaKey && !event.altKey && !event.repeat) choose?.(KEYS[event.key]);
});
attempt(start);

async function start() {
  if ((await endpoint.describe()).ensembles[0].demonstration) game.before(notice(DEMONSTRATION));
  await attempt(begin);
}

async function begin() {
  round = { ...(await endpoint.ask("arena/round")), place: -1, right: 0, known: 0 };
  await next();
}

async function next() {
  round.place += 1;
  await (round.place < round.pictures.length ? attempt(picture, ...WAYS) : standings());
}

async function picture() {
  const name = round.pictures[round.place];
  const image = element("img", { src: URL.createObjectURL(await endpoint.ask(`arena/pictures/${name}`, {}, () => {}, "blob")), alt: "The picture to judge" });
  await image.decode();
  URL.revokeObjectURL(image.src);
  const guess = (said) => attempt(() => tell(name, said, image), ...WAYS);
  show(element("h2", { text: `Picture ${round.place + 1} of ${round.pictures.length}` }), element("div", { class: "frame" }, image),
    buttons(["← Real", () => guess("real")], ["Made →", () => guess("fake")]));
  choose = guess;
}

async function tell(name, guess, image) {
  const { label, generator, verdict, score: found } = await endpoint.ask(`arena/guesses/${name}?guess=${guess}`, { method: "POST" });
  round.known += label !== null;
  round.right += label === guess;
  const is = label === "real" ? "real" : generator === "unknown" ? "made" : `made, by ${visible(generator)}`;
  const truth = label === null ? "Nobody here knows: your guess helps to label it." : `${label === guess ? "Right" : "No"}: it is ${is}.`;
  const said = `The detectors: ${VERDICTS[verdict]}, score ${score(found)}.`;
  show(element("h2", { text: truth }), element("div", { class: "frame" }, image), line(said), buttons(...WAYS));
  game.querySelector("button").focus(); // Enter goes on
  document.getElementById("live").textContent = `${truth} ${said}`;
}

async function standings() {
  const { ensemble, rows } = await endpoint.ask("arena/standings");
  const share = (one) => `${Math.round(100 * one)} %`;
  const cell = (text, small) => element("td", { class: "number" }, String(text), small && element("small", { text: small }));
  const figure = ({ value, interval: [low, high] }) => cell(share(value), `${Math.round(100 * low)}–${share(high)}`);
  const head = ["Pictures of", "Pictures", "Guesses", "People", "Detectors"].map((text, at) => element("th", { scope: "col", class: at > 0 && "number", text }));
  const body = rows.map(({ generator, guesses, people, ensemble: machine }) =>
    element("tr", {}, element("th", { scope: "row", text: visible(generator) }), cell(people.n), cell(guesses), figure(people), figure(machine)));
  const caption = element("caption", { text: "Shares of pictures that were right, with 95 % intervals; what detectors leave open is not right" });
  const table = element("table", { class: "standings" }, caption, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body));
  show(element("h2", { text: `People against ${visible(ensemble)}` }), rows.length ? table : line("Nobody has guessed yet."),
    round.known > 0 && line(`This round you were right ${round.right} of ${counted(round.known, "time")}.`), buttons(["New round", begin]));
}

/** Does something; where that fails, says why, and offers it again or one of other `ways`. */
async function attempt(action, ...ways) {
  [choose, game.inert] = [null, true];
  try {
    await action();
  } catch (failed) {
    const token = failed.code === "unauthorized" && element("input", { type: "password", autocomplete: "off", "aria-label": "Access token", change: () => { endpoint.token = token.value.trim(); } });
    show(element("p", { class: "notice", role: "alert", text: `${trouble(failed.code ?? "unreadable", failed.message)[0]}.` }), token, buttons(["Try again", () => attempt(action, ...ways)], ...ways));
  }
}

function buttons(...ways) {
  return element("div", { class: "choices" }, ...ways.map(([text, act]) => element("button", { type: "button", class: act === standings && "quiet", text, click: () => attempt(act) })));
}

function show(...parts) {
  game.inert = false;
  game.replaceChildren(element("div", { class: "turn" }, ...parts.filter(Boolean)));
  focusOn(game.querySelector("h2, input, button"));
}
