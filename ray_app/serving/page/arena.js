/* Picture after picture a guess and then the truth, at last how people and the detectors did. Nothing of it outlives the page. */

import { element, focusOn, notice } from "./elements.js";
import { Endpoint } from "./endpoint.js";
import { DEMONSTRATION, VERDICTS, counted, score, trouble, visible } from "./words.js";

const KEYS = { arrowleft: "real", r: "real", arrowright: "fake", m: "fake" };
const WAYS = [["Next picture", next], ["How people did", standings]];
const [endpoint, game] = [new Endpoint(), document.getElementById("game")];
const line = (text) => element("p", { text });
let [round, demonstration, choose] = [null, null, null]; // `choose` takes a guess, while one is wanted

game.addEventListener("keydown", (event) => {
  const said = KEYS[event.key.toLowerCase()];
  if (said && !event.ctrlKey && !event.metaKey && !event.altKey && !event.repeat) choose?.(said);
});
attempt(begin);

async function begin() {
  demonstration ??= (await endpoint.describe()).ensembles[0].demonstration;
  round = { pictures: await endpoint.ask("arena/round"), place: -1, right: 0, known: 0 };
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
  round = { ...round, known: round.known + (label !== null), right: round.right + (label === guess) };
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
  const figure = ([value, low, high]) => cell(share(value), `${Math.round(100 * low)}–${share(high)}`);
  const head = ["Pictures of", "Pictures", "Guesses", "People", "Detectors"].map((text, at) => element("th", { scope: "col", class: at > 0 && "number", text }));
  const body = rows.map((row) => element("tr", {}, element("th", { scope: "row", text: visible(row.generator) }), cell(row.pictures), cell(row.guesses), figure(row.people), figure(row.ensemble)));
  const table = element("table", { class: "standings" }, element("caption", { text: "Shares of pictures that were right, with 95 % intervals; left open is not right" }),
    element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body));
  show(element("h2", { text: `People against ${visible(ensemble)}` }), rows.length ? table : line("Nobody has guessed yet."),
    round?.known > 0 && line(`This round you were right ${round.right} of ${counted(round.known, "time")}.`), buttons(["New round", begin]));
}

/** Does something; where that fails, says why, and offers it again or one of other `ways`. */
async function attempt(action, ...ways) {
  [choose, game.inert] = [null, true];
  try {
    await action();
  } catch (failed) {
    const [again, use] = [() => attempt(action, ...ways), ({ target }) => { endpoint.token = target.value.trim(); again(); }];
    show(element("p", { class: "notice", role: "alert", text: `${trouble(failed.code || "unreadable", failed.message)[0]}.` }),
      failed.code === "unauthorized" && element("input", { type: "password", autocomplete: "off", "aria-label": "Access token", change: use }), buttons(["Try again", again], ...ways));
  }
}

function buttons(...ways) {
  return element("div", { class: "choices" }, ...ways.map(([text, act]) => element("button", { type: "button", class: act === standings && "quiet", text, click: () => attempt(act) })));
}

function show(...parts) {
  game.inert = false;
  game.replaceChildren(element("div", { class: "turn" }, ...[...parts, demonstration && notice(DEMONSTRATION)].filter(Boolean)));
  focusOn(game.querySelector("h2, input, button"));
}
