/* What a file says of its own origin, in words that say how far each can be believed. Knows no verdict. */

import { element, section } from "./elements.js";
import { sentence, shortened, visible } from "./words.js";

const FOLDED = 280; // characters of a value before it folds
const SIDE = "Anybody can write or remove what a file says of itself; only a signed manifest can be checked. None of it enters the score or the verdict.";
const NOTHING = "The file says nothing of its origin. Most copies do not: that is no sign either way.";

/* https://cv.iptc.org/newscodes/digitalsourcetype */
const SOURCES = {
  trainedAlgorithmicMedia: "made by a trained model",
  compositeWithTrainedAlgorithmicMedia: "edited with a trained model",
  compositeSynthetic: "composed of parts, at least one made by a trained model",
  trainedAlgorithmicData: "data made by a trained model",
  algorithmicMedia: "made by a program without a trained model",
  digitalCapture: "taken by a camera",
  digitalCreation: "drawn by a person with software",
  compositeCapture: "composed of camera pictures",
  composite: "composed of parts",
  humanEdits: "edited by a person",
  screenCapture: "a screenshot",
};

/** The section on a file's origin. */
export function originView(provenance) {
  if (!provenance) return section("origin", "Origin", null, element("p", { class: "remark", text: NOTHING }));
  const rows = [...manifest(provenance.c2pa), ...generated(provenance), ...captured(provenance)]
    .filter(([, value]) => value)
    .map(([term, value]) => element("tr", {}, element("th", { scope: "row", text: term }), element("td", {}, typeof value === "string" ? folded(value) : value)));
  const caption = element("caption", { text: "What the file says of its origin" });
  return section("origin", "Origin", SIDE, element("table", {}, caption, element("tbody", {}, ...rows)));
}

function manifest(c2pa) {
  if (!c2pa) return [];
  const claimed = c2pa.state === "invalid" ? "Claimed to be made with" : "Made with";
  return [
    ["Content Credentials", element("span", { class: `credentials ${c2pa.state}` }, element("strong", { text: named(c2pa) }), ` ${meaning(c2pa)}`)],
    [claimed, c2pa.claim_generator],
    ["Says of the picture", sources(c2pa.source_types)],
    ["Checks that failed", c2pa.problems.join(", ")],
  ];
}

function named({ state, remote, trust_lists: [list] }) {
  if (remote) return "Kept elsewhere.";
  return { trusted: list?.startsWith("interim") ? "Trusted (interim list)." : "Trusted.", intact: "Intact, signer unknown.", invalid: "Invalid.", unreadable: "Not readable." }[state] ?? sentence(state);
}

function meaning({ state, signer, remote, trust_lists: lists }) {
  const who = signer ? shortened(signer, 80) : "somebody without a name";
  if (remote) return "The file only names a manifest on the web. It was not fetched.";
  if (state === "trusted") return `Unchanged since it was signed by ${who}, whose certificate leads to the ${lists[0]}.`;
  const unknown = lists.length ? `who signed is not on the ${lists.join(", nor on the ")}` : "this endpoint has no trust list to look the signer up (touchstone config trust update)";
  if (state === "intact") return `Unchanged since it was signed, but ${unknown}. The signer calls itself ${who}; anybody can.`;
  if (state === "invalid") return "The picture or the manifest was changed after it was signed, or the manifest belongs to another file. What it says does not count.";
  return "There is a manifest, but it could not be checked.";
}

function generated({ generator, digital_source_type: types }) {
  const made = generator ?? {};
  const settings = [made.steps !== null && made.steps !== undefined && `${made.steps} steps`, made.sampler, made.seed !== null && made.seed !== undefined && `seed ${made.seed}`];
  const models = [made.model && made.model + (made.model_hash ? ` (${made.model_hash})` : ""), ...(made.models ?? [])].filter(Boolean);
  return [
    ["Source type", sources(types)],
    ["Generator", [made.tool, made.version].filter(Boolean).join(" ")],
    ["Model", models.join(", ")],
    ["Prompt", made.prompt],
    ["Negative prompt", made.negative_prompt],
    ["Settings", settings.filter(Boolean).join(", ")],
    ["Graph", (made.nodes ?? []).join(", ")],
  ];
}

function captured({ camera, software, unread }) {
  return [
    ["Camera", camera && [camera.make, camera.model].filter(Boolean).join(" ")],
    ["Taken", camera?.taken],
    ["Software", software],
    ["Not read", (unread ?? []).join("; ")],
  ];
}

function sources(types) {
  return types.map((type) => (SOURCES[type] ? `${SOURCES[type]} (${type})` : type)).join("; ");
}

function folded(value) {
  const text = visible(value);
  if (text.length <= FOLDED) return text;
  return element("details", {}, element("summary", { text: shortened(value, 120) }), element("p", { text }));
}
