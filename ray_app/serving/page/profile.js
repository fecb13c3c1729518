/* Which generator an image is nearest to and from what words it may have been made: guesses, worded as such. Knows no verdict. */

import { element, section } from "./elements.js";
import { NONE, shortened, visible } from "./words.js";

const SIDE = "The nearest of the generators that were learnt, and a guess at the prompt. Neither proves where the image came from, and neither enters the verdict.";
const NEXT = 3; // names after the first

/** The section of an answer's profile; null where there is nothing to say. */
export function profileView(profile) {
  const { generator, prompt } = profile ?? {};
  if (!generator && !prompt) return null;
  return section("profile", "Where it may come from", SIDE, generator && named(generator), prompt && words(prompt));
}

function named(generator) {
  const { known, title, family, family_title: base, nearest, probability, ranking } = generator;
  const within = known && base && family !== generator.name && !title.startsWith(base) ? ` (${shortened(base, 60)})` : "";
  const heading = known ? `${shortened(title, 80)}${within}` : "Like no generator that was learnt";
  const sure = known
    ? `Among the generators that were learnt it has ${share(probability)} of the probability.`
    : `It differs from all of them more than their own images do. Nearest of them: ${shortened(nearest, 80)}.`;
  const others = ranking.slice(1, 1 + NEXT).map((name) => shortened(name, 40)).join(", ");
  return element("div", { class: "profiled" }, element("p", { class: "statement", id: "generator" }, element("strong", { text: heading })),
    element("p", { class: "remark", text: others ? `${sure} Next: ${others}.` : sure }));
}

function words({ text, likelihood }) {
  const how = Number.isFinite(likelihood) ? `Likelihood ${likelihood.toFixed(2).replace("-", "−")}, on the scale of the model that found them. ` : "";
  return element("div", { class: "profiled" }, element("h4", { text: "Words it may have been made from" }),
    element("blockquote", { id: "words", text: visible(text || NONE) }),
    element("p", { class: "remark", text: `${how}Many prompts lead to one image.` }));
}

function share(probability) {
  return probability > 0.995 ? "over 99 %" : `${Math.round(100 * probability)} %`;
}
