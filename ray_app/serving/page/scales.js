/* Drawings of scores in log-odds around zero, with fake on the right. Text next to them has the same content, so screen readers skip them. */

import { drawn } from "./elements.js";
import { score } from "./words.js";

const [LEAST, MOST] = [4, 12]; // the smallest and largest log-odds at the ends; a larger score fills its side

/** The log-odds at either end of the drawings of one answer. */
export function reach(answer, ensemble) {
  const scores = [answer.score, ensemble?.fake_above, ensemble?.real_below, ...Object.values(answer.scores ?? {})];
  return Math.min(MOST, Math.max(LEAST, ...scores.filter(Number.isFinite).map((value) => Math.ceil(Math.abs(value) * 1.1))));
}

/** The ensemble's score between its thresholds. */
export function verdictScale(answer, ensemble, end) {
  const { real_below: low, fake_above: high } = ensemble;
  const label = (x, text, set = {}) => drawn("text", { x, y: "100%", text, ...set });
  const cuts = [...new Set([low, high])].map((cut) => drawn("line", { x1: at(cut, end), x2: at(cut, end), y1: 6, y2: 34, class: "cut" }));
  const marker = Number.isFinite(answer.score) ? drawn("circle", { cx: at(answer.score, end), cy: 20, r: 7, class: `marker fill-${answer.verdict}` }) : null;
  return drawn("svg", { class: "scale", "aria-hidden": "true" },
    drawn("rect", { x: at(low, end), y: 6, width: `${50 * (clamp(high, end) - clamp(low, end)) / end}%`, height: 28, class: "band" }),
    drawn("line", { x1: 0, x2: "100%", y1: 20, y2: 20, class: "rail" }), ...cuts, marker,
    label(0, "no evidence found"), high > low && label(at((high + low) / 2, end), "left open", { "text-anchor": "middle" }),
    label("100%", "fake", { "text-anchor": "end" }));
}

/** The score of one detector as a bar from zero. Without a score there is only the rail. */
export function bar(value, counts, end) {
  const has = Number.isFinite(value);
  const [from, to] = has ? [Math.min(0, clamp(value, end)), Math.max(0, clamp(value, end))] : [0, 0];
  const fill = !counts ? "none" : value > 0 ? "fake" : "real";
  return drawn("svg", { class: "bar-scale", "aria-hidden": "true", "data-score": has ? score(value) : null },
    drawn("rect", { x: 0, y: "38%", width: "100%", height: "24%", rx: 1.5, class: "trough" }),
    has && drawn("rect", { x: at(from, end), y: "15%", width: `${50 * (to - from) / end}%`, height: "70%", rx: 1.5, class: `fill-${fill}` }),
    drawn("line", { x1: "50%", x2: "50%", y1: 0, y2: "100%", class: "axis" }));
}

function clamp(value, end) {
  return Math.min(end, Math.max(-end, value));
}

function at(value, end) {
  return `${50 + 50 * clamp(value, end) / end}%`;
}
