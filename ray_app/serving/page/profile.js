/* Show the nearest generator and the predicted prompt of an image, which are guesses. This module does not use the verdict. */

import { element, section } from "./elements.js";
import { NONE, shortened, visible } from "./words.js";

const SIDE = "The nearest of the known generators, and a guess at the prompt. Neither proves the origin of the image, and neither is part of the verdict.";
const NEXT = 3; // names after the first

/** The section of an answer's profile, or null if the profile is empty. */
export function profileView(profile) {
  const { generator, prompt } = profile ?? {};
  if (!generator && !prompt) return null;
  return section("profile", "Possible origin", SIDE, generator && named(generator), prompt && words(prompt));
}

function named(generator) {
  const { known, title, family, family_title: base, nearest, probability, ranking } = generator;
  const within = known && base && family !== generator.name && !title.startsWith(base) ? ` (${shortened(base, 60)})` : "";
  const heading = known ? `${shortened(title, 80)}${within}` : "Not like any known generator";
  const sure = known
    ? `Its probability among the known generators is ${share(probability)}.`
    : `The image differs from all of them more than their own images do. Nearest: ${shortened(nearest, 80)}.`;
  const others = ranking.slice(1, 1 + NEXT).map((name) => shortened(name, 40)).join(", ");
  return element("div", { class: "profiled" }, element("p", { class: "statement", id: "generator" }, element("strong", { text: heading })),
    element("p", { class: "remark", text: others ? `${sure} Next: ${others}.` : sure }));
}

function words({ text, likelihood }) {
  const how = Number.isFinite(likelihood) ? `Likelihood ${likelihood.toFixed(2).replace("-", "−")}, on the scale of the model that predicted it. ` : "";
  return element("div", { class: "profiled" }, element("h4", { text: "Predicted prompt" }),
    element("blockquote", { id: "words", text: visible(text || NONE) }),
    element("p", { class: "remark", text: `${how}Many prompts can lead to the same image.` }));
}

function share(probability) {
  return probability > 0.995 ? "over 99 %" : `${Math.round(100 * probability)} %`;
}
