/* The view of one image: the verdict, the reasons, what it does not mean, the file, and the answer for programs. This module sends no request. */

import { element, facts, notice, section } from "./elements.js";
import { originView } from "./origin.js";
import { picture } from "./picture.js";
import { profileView } from "./profile.js";
import { bar, reach, verdictScale } from "./scales.js";
import { DEMONSTRATION, NONE, UNCALIBRATED, counted, ensembleOf, flag, foundIn, json, kindOf, percent, probability, reason, score, sentence, shortened, size, trouble, visible } from "./words.js";

const CLOSE = 0.5; // log-odds to a threshold: recompressing an image can move a score by that much

const CAVEATS = {
  fake: [
    "It is not proof. Real photographs are flagged too, especially edited, shrunk or heavily compressed photographs.",
    "It does not show who made the image, with which tool, or why. A retouched corner and a fully generated scene can both have this result.",
  ],
  real: [
    "It does not show that the image is genuine. A generator that the detectors have not learnt leaves no traces that they can find.",
    "Traces fade: a screenshot or a copy from a messenger can lose them although the image looks the same.",
  ],
  abstain: [
    "It means neither half fake nor probably real. The evidence or the image did not allow either answer.",
    "Get the original file: a copy of a copy has lost many of the traces that would decide.",
  ],
};
const ALWAYS = "It is not about the content of the image. A real photograph can mislead under a false caption.";

/** The view of the answer for one image. `about`: {ensembles, detectors, curl(item), copy(text, button), keep(item)}. */
export function verdictView(item, about) {
  const { answer } = item;
  const ensemble = ensembleOf(answer, about.ensembles);
  const view = answer.verdict ? [caveats(answer, ensemble), why(answer, ensemble, about.detectors), answer.verdict === "real" ? null : profileView(answer.profile), originView(answer.image?.provenance), file(answer)] : answer.image ? [file(answer)] : [];
  return element("article", { class: "one", "aria-labelledby": "finding" },
    element("div", { class: "lead" }, picture(item), finding(item, ensemble, about)), ...view.filter(Boolean), programs(item, about));
}

/** The heading of an answer. */
export function headingOf(answer) {
  return foundIn(answer)?.replace(/^./u, (first) => first.toUpperCase()) ?? trouble(answer.status, answer.error?.message)[0];
}

function finding(item, ensemble, about) {
  const { answer } = item;
  const heading = element("h2", { id: "finding", class: `verdict ${kindOf(answer)}`, text: headingOf(answer) });
  const name = element("p", { class: "name" }, element("bdi", { text: shortened(item.file.name, 90) }));
  return element("div", { class: "finding" }, name, heading, ...(answer.verdict ? said(answer, ensemble) : refused(answer)),
    item.pasted && element("p", { class: "remark", text: "The image came from the clipboard, which often saves images again. If you have the file, send the file: it has more traces." }),
    element("p", { class: "report" }, element("button", { type: "button", class: "quiet", text: "Save report", click: () => about.keep(item) }), " ", element("small", { text: "a page with the image" })));
}

function refused(answer) {
  const { message, limit, observed, request_id: id } = answer.error ?? {};
  return [
    element("p", { class: "statement", text: trouble(answer.status, message)[1] }),
    element("dl", { class: "facts" }, ...[["Message of the endpoint", message && sentence(shortened(message, 300))], ["Code", answer.status], ["Limit", limit], ["Observed", observed], ["Request id", id]]
      .filter(([, value]) => value !== null && value !== undefined && value !== "")
      .map(([term, value]) => element("div", {}, element("dt", { text: term }), element("dd", { text: typeof value === "number" ? value.toLocaleString("en") : visible(value) })))),
  ];
}

function said(answer, ensemble) {
  const scored = Number.isFinite(answer.score);
  const calibrated = answer.calibrated ? "calibrated" : "not calibrated";
  const figure = (term, value, unit) => element("div", {}, element("dt", { text: term }), element("dd", {}, value, " ", element("small", { text: unit })));
  return [
    grounds(answer),
    answer.error_rates && element("p", { class: "remark", text: visible(answer.error_rates) }),
    element("p", { class: "statement", text: statement(answer, ensemble) }),
    scored && ensemble && verdictScale(answer, ensemble, reach(answer, ensemble)),
    scored && element("dl", { class: "figures" }, figure("Probability of fake", probability(answer.probability), calibrated), figure("Score", score(answer.score), "log-odds")),
    scored && !answer.calibrated && element("p", { class: "remark", text: UNCALIBRATED }),
    answer.verdict === "fake" && ensemble?.guarantee && element("p", { class: "remark", text: promise(ensemble.guarantee) }),
    ensemble?.demonstration && notice(DEMONSTRATION),
  ];
}

/** The grounds of the finding, the strongest first, each with its error rate. The error rate of the detectors is shown below. */
function grounds(answer) {
  const rate = ({ source, error }) => !(source === "detectors" && answer.error_rates) && element("small", { text: sentence(shortened(error, 120)) });
  const lines = (answer.grounds ?? []).map((one) => element("li", {}, sentence(shortened(one.says, 300)), " ", rate(one)));
  return lines.length > 0 && element("ol", { class: "grounds", "aria-label": "Grounds, the strongest first" }, ...lines);
}

/** The guarantee of the ensemble's card for verdicts of fake, and its limits. */
function promise({ target_fpr, upper_bound, confidence, n_real, population, holds, why }) {
  const alike = population ? ` like those of “${shortened(population, 120)}”` : "";
  const isGuaranteed = upper_bound <= target_fpr;
  const known = `${isGuaranteed ? "guaranteed" : "measured"} with ${percent(confidence)} confidence on ${counted(n_real, "image")}`;
  const promised = `At most ${percent(isGuaranteed ? target_fpr : upper_bound)} of real images${alike} are called fake (${known}).`;
  return holds ? `${promised} It was not checked whether this image is like them.` : `This guarantee of the card does not hold on this endpoint (${visible(why ?? "")}): ${promised}`;
}

function statement(answer, ensemble) {
  const value = score(answer.score);
  if (!ensemble) return answer.verdict_reason ? sentence(reason(answer)) : `The ensemble’s score is ${value}.`;
  const [low, high] = [score(ensemble.real_below), score(ensemble.fake_above)];
  if (answer.verdict === "abstain" && answer.verdict_reason !== "inside_band") return sentence(reason(answer) ?? "No reason was given");
  if (answer.verdict === "abstain") return `The evidence is too weak for an answer: the score ${value} is between ${low} and ${high}, the range in which this ensemble does not decide.`;
  const cut = answer.verdict === "fake" ? ensemble.fake_above : ensemble.real_below;
  const rule = answer.verdict === "fake" ? `The score ${value} is above ${high}, the threshold of this ensemble for fake.` : `The score ${value} is below ${low}, the threshold of this ensemble for no evidence.`;
  return Math.abs(answer.score - cut) < CLOSE ? `${rule} It is close to the threshold: a small change to the file could change the verdict.` : rule;
}

function caveats(answer, ensemble) {
  const blind = (ensemble?.blind_to ?? []).map((text) => sentence(shortened(text, 300)));
  const lines = [...CAVEATS[answer.verdict], ...blind, ALWAYS].map((text) => element("li", { text }));
  return section("caveats", "What this does not mean", null, element("ul", { class: "caveats" }, ...lines));
}

function why(answer, ensemble, known) {
  const end = reach(answer, ensemble);
  const rows = Object.entries(answer.detectors).map(([name, one]) => detector(name, one, known[name], end));
  const rule = ensemble && rows.length > 1 ? `Combined by the rule ${visible(ensemble.rule)}.` : "";
  return section("why", "Why", `The score of each detector in log-odds: right of the middle for fake, left against it. ${rule}`,
    element("div", {}, element("p", { class: "ends", "aria-hidden": "true" }, element("span", { text: "against" }), element("span", { text: "for fake" })),
      element("ul", { class: "detectors" }, ...rows)));
}

function detector(name, one, known, end) {
  const counts = !one.abstained && !one.beside;
  const remarks = [
    one.score !== null && `Probability ${probability(one.probability)}, ${one.calibrated ? "calibrated" : "not calibrated"}.`,
    one.abstained && (one.abstained.startsWith("not used") ? sentence(one.abstained) : `Abstained: ${sentence(one.abstained)}`),
    one.beside && "Optional detector: not part of the verdict.",
  ].filter(Boolean).join(" ");
  return element("li", { class: "detector" },
    element("p", { class: "who" }, element("strong", { text: visible(name) }), known && element("small", { text: visible(known.title) })),
    element("p", { class: "amount" }, score(one.score), element("span", { class: "unseen", text: one.score === null ? " no score" : " log-odds" })),
    bar(one.score, counts, end),
    element("div", { class: "note remark" }, one.reply && element("blockquote", { text: visible(one.reply) }), element("p", { text: remarks })));
}

function file(answer) {
  const { image } = answer;
  if (!image) return null;
  const list = facts([
    ["Format", visible(image.format ?? NONE)],
    ["Pixels", image.width === null ? NONE : `${image.width} × ${image.height}`],
    ["Size", size(image.size_bytes)],
    ["Colour", image.mode === null ? NONE : visible(image.mode) + (image.icc ? ", with a profile" : "")],
    ...(image.frames > 1 ? [["Frames", String(image.frames)]] : []),
    ...(image.flags.length ? [["Irregularities", sentence(image.flags.map(flag).join("; ")), true]] : []),
    ["SHA-256", element("span", { class: "code", text: visible(answer.sha256) }), true],
  ]);
  return section("file", "The file", null, list);
}

function programs(item, about) {
  const { answer } = item;
  const brief = json(answer).replace(/("png": ")([^"]{60})[^"]+/g, "$1$2…");
  const curl = about.curl(item);
  const copied = (label, text) => element("button", { type: "button", class: "quiet", text: label, click: (event) => about.copy(text, event.target) });
  const { timings, ensemble } = answer;
  const source = ensemble && `Ensemble ${visible(ensemble.name)}, fingerprint ${visible(ensemble.fingerprint).slice(0, 12)}; ${timings ? `${timings.total.toFixed(2)} s: decoding ${timings.decode.toFixed(2)}, waiting ${timings.wait.toFixed(2)}, scoring ${timings.score.toFixed(2)}. ` : ""}Request ${visible(answer.request_id)}.`;
  return section("programs", "For programs", "The same request from a terminal, in the folder of the file, and the answer of the endpoint.",
    element("div", {},
      element("pre", { class: "snippet", id: "curl", text: curl }),
      element("div", { class: "copying" }, copied("Copy curl", curl), copied("Copy JSON", json(answer))),
      element("details", { class: "answer" }, element("summary", { text: "Answer as JSON" }), element("pre", { class: "snippet", id: "json", text: brief })),
      source && element("p", { class: "remark source", text: source })));
}
