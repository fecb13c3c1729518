/* Numbers, names, and answers as text, as in the run report. This module uses no elements and no requests. */

export const VERDICTS = { fake: "flagged as fake", abstain: "left open", real: "no evidence found" };
export const NONE = "–";

const FLAGS = {
  alpha: "has transparency; it was scored on white",
  animated: "an animation; its first frame that is not empty was scored",
  broken_exif: "its EXIF cannot be read",
  broken_icc: "its colour profile cannot be used",
  cmyk: "printing colours, converted to RGB",
  grayscale: "grey only",
  irregular_jpeg: "broken metadata or a few stray bytes in the JPEG; every pixel was decoded",
  irregular_png: "a chunk without pixels is broken, such as a wrong checksum; every pixel was decoded",
  metadata_unread: "its metadata exceeds a limit; the part over the limit was not read",
  multipage: "several pages or images; the first was scored",
  no_content: "one colour, or nearly: nothing to judge",
  oriented: "its metadata asks to rotate it; it was scored as stored",
  preview: "the preview that a camera put into its raw file was scored",
  sixteen_bit: "more than 8 bits per sample; the high 8 that are used were scored",
  trailing_bytes: "bytes follow the end of the image",
};

/* Notices for every answer of a demonstration ensemble, and of an ensemble without a calibration. */
export const DEMONSTRATION = "Demonstration ensemble: it only shows that the software works. Do not use it for decisions about any image.";
export const UNCALIBRATED = "Not calibrated: the plain sigmoid of the score. It ranks images, but does not show how often such a verdict is right.";

/** The ensemble that gave an answer, with the thresholds and the guarantee of the operating point that decided. */
export function ensembleOf(answer, ensembles) {
  const ensemble = ensembles.find(({ name }) => name === answer?.ensemble?.name);
  const point = ensemble?.operating_points?.find(({ fpr }) => fpr === answer.ensemble.fpr);
  if (!point) return ensemble;
  return { ...ensemble, ...point, guarantee: ensemble.guarantee && { ...ensemble.guarantee, target_fpr: point.fpr, upper_bound: point.upper_bound } };
}

/** The operating points of an ensemble as {fpr, text}, first that of requests without `fpr`. Empty if there is no choice. */
export function pointsOf(ensemble) {
  const others = (ensemble.operating_points ?? []).filter(({ fpr }) => fpr !== ensemble.fpr).sort((a, b) => a.fpr - b.fpr);
  if (!others.length) return [];
  const said = ({ fpr, recall }) => `${percent(fpr)}${Number.isFinite(recall) ? `: finds ${percent(recall, 2)} of generated images` : " of real images"}`;
  const usual = ensemble.fpr ? `${said(ensemble)} (default)` : "default";
  return [{ fpr: null, text: usual }, ...others.map((point) => ({ fpr: point.fpr, text: said(point) }))];
}

/** The notices for an answer, as a list of sentences. */
export function notices(answer, ensemble) {
  if (!Number.isFinite(answer?.score)) return [];
  return [ensemble?.demonstration && DEMONSTRATION, answer.error_rates && visible(answer.error_rates), !answer.calibrated && UNCALIBRATED].filter(Boolean);
}

/* Why a verdict is `abstain`. */
export const REASONS = {
  no_content: "the image has one colour, or nearly so: there is nothing to judge",
  no_score: "a detector that the ensemble needs gave no score",
  out_of_range: "the image is outside the range for which a detector was made",
  unlike_calibration: "the image is outside the range of the ensemble's calibration",
  inside_band: "the score is between the two thresholds",
  unstable: "the image gets another verdict after it is saved once more (runs before 1.0)",
  unlike_archive: "the archive is unlike the images on which the ensemble was calibrated",
};

/** Why an answer abstains, with the details of this image. */
export function reason({ verdict_reason: word, verdict_detail: detail }) {
  const said = REASONS[word] ?? word;
  return detail ? `${said}: ${detail}` : said;
}

/* For each code, what happened and what the user can do. */
export const TROUBLES = {
  empty_file: ["The file is empty", "Choose the original again; this copy has no bytes."],
  unsupported_format: ["Not an image format that this endpoint reads", "Send the original as JPEG, PNG, WebP or another supported format. A screenshot loses most traces."],
  corrupt_image: ["The image does not decode", "It is damaged. Use another copy of it."],
  truncated_image: ["The file ends before the image does", "The download or copy is incomplete. Download or copy it again."],
  image_too_large: ["The image is over the limits", "Send a copy with fewer pixels. Shrinking can weaken the traces, so trust its verdict less."],
  metadata_too_large: ["The colour profile is over the limits", "Send a copy in RGB, without the profile."],
  unsafe_member: ["The file is not accepted", "Send the image by itself."],
  encrypted_member: ["The file is encrypted", "Decrypt it and send the image by itself."],
  decode_timeout: ["Decoding took too long", "The file is unusually slow to decode. Save it again and send that copy."],
  decoder_crashed: ["The image could not be decoded", "It is damaged or malicious."],
  source_missing: ["The image does not exist", "Send the file itself."],
  source_denied: ["Access to the image is denied", "Send the file itself."],
  source_throttled: ["The image’s server is busy", "Send the file itself."],
  source_timeout: ["The image’s server did not answer", "Send the file itself."],
  source_changed: ["The image changed while it was read", "Send it again."],
  detector_failed: ["A detector failed on the image", "Try again. If the error persists, send the request id to the operator of this endpoint."],
  malformed_request: ["The request is invalid", "Reload this page: it may be older than the endpoint."],
  unauthorized: ["A token is required", "This endpoint answers only requests with a token. The token is kept in this tab until you close it."],
  forbidden: ["This endpoint does not answer this page", "Open the page at the endpoint’s own address."],
  not_found: ["The endpoint has no such address", "Reload this page: it may be older than the endpoint."],
  method_not_allowed: ["The endpoint has no such method", "Reload this page: it may be older than the endpoint."],
  header_timeout: ["The request arrived too slowly", "Check your connection, then continue."],
  body_too_large: ["The file is too large for one request", "Send a smaller file."],
  file_too_large: ["The file is too large", "Send a smaller file, with the same pixels if you can."],
  too_many_files: ["Too many files in one request", "Send fewer files at a time."],
  unsupported_encoding: ["The request was compressed", "A proxy between this page and the endpoint alters requests. Inform the operator of the endpoint."],
  too_many_requests: ["More requests than this endpoint allows you", "Wait a minute, then continue."],
  headers_too_large: ["The headers of the request are too large", "Delete the cookies of this site, then reload this page."],
  internal_error: ["Internal error of the endpoint", "Try again. If the error persists, send the request id to the operator of the endpoint."],
  overloaded: ["The endpoint is busy", "Wait a little, then continue."],
  not_ready: ["The detectors are still loading", "Wait a little, then continue."],
  deadline_exceeded: ["The request took longer than allowed", "Try again, or send a smaller file."],
  unreachable: ["The endpoint cannot be reached", "Check your connection and that the endpoint runs, then continue."],
  unreadable: ["Your browser could not read the file", "It was moved or changed, or it is a folder. Choose it again."],
  cancelled: ["Not scored yet", "Continue to score it."],
};

/** What happened and what to do, for a code. An unknown code gets the message of the server. */
export function trouble(code, message) {
  return TROUBLES[code] ?? [sentence(message || code), "If the error persists, inform the operator of this endpoint."];
}

/** The text for a flag. A flag of a later version stays as it is. */
export function flag(name) {
  return FLAGS[name] ?? visible(name);
}

/** Text with escapes for characters that hide, reorder, or overflow text: controls, bidi marks, zero width, lone surrogates, piles of marks. */
export function visible(text) {
  return String(text)
    .replace(/[\p{Mn}\p{Me}]{5,}/gu, (pile) => [...pile].slice(0, 4).join("") + [...pile].slice(4).map(escaped).join(""))
    .replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/gu, escaped);
}

function escaped(character) {
  const short = { "\n": "\\n", "\r": "\\r", "\t": "\\t" }[character];
  const hex = character.codePointAt(0).toString(16);
  return short ?? (hex.length < 3 ? `\\x${hex.padStart(2, "0")}` : hex.length < 5 ? `\\u${hex.padStart(4, "0")}` : `\\U${hex.padStart(8, "0")}`);
}

/** The visible text in at most `limit` characters. The middle is left out, because the end of a name is the most informative part. */
export function shortened(text, limit) {
  const characters = [...visible(String(text).length > 4 * limit ? `${text.slice(0, 2 * limit)}…${text.slice(-2 * limit)}` : text)];
  if (characters.length <= limit) return characters.join("");
  const tail = Math.floor((limit - 1) * 2 / 3);
  return `${characters.slice(0, limit - 1 - tail).join("")}…${characters.slice(-tail).join("")}`;
}

/** A score in log-odds with its sign. */
export function score(value) {
  return Number.isFinite(value) ? `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}` : NONE;
}

/** A probability with three digits, never rounded to 0 or 1. */
export function probability(value) {
  if (!Number.isFinite(value)) return NONE;
  return value < 0.001 ? "< 0.001" : value > 0.999 ? "> 0.999" : value.toFixed(3);
}

/** A fraction in percent, without trailing zeros. */
export function percent(share, digits = 3) {
  return `${Number((100 * share).toPrecision(digits))} %`;
}

/** A size in decimal units. */
export function size(bytes) {
  const unit = bytes < 999.5 ? 0 : bytes < 999950 ? 1 : bytes < 999950000 ? 2 : 3;
  return `${(bytes / 1000 ** unit).toFixed(unit ? 1 : 0)} ${["bytes", "kB", "MB", "GB"][unit]}`;
}

/** A number with its regular noun. */
export function counted(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

/** The text with a full stop, and with a capital unless it begins with a name and a colon. */
export function sentence(text) {
  const said = visible(text).trim();
  const begun = /^[\w.-]+:/.test(said) ? said : said.replace(/^./u, (first) => first.toUpperCase());
  return !begun || /[.!?…]$/.test(begun) ? begun : `${begun}.`;
}

/** The finding of an answer, or its verdict if there is no finding. */
export function foundIn({ finding, verdict }) {
  return finding ? shortened(finding, 120) : (VERDICTS[verdict] ?? null);
}

/** The verdict whose colour the answer is shown in. */
export function kindOf(answer) {
  const said = answer?.finding;
  if (!said) return answer?.verdict ?? "none";
  return said === "left open" ? "abstain" : /^(camera|no evidence)/.test(said) ? "real" : "fake";
}

/** Several verdicts in one sentence. */
export function tally(items) {
  const of = (kind) => items.filter((item) => item.answer?.verdict === kind).length;
  const [fake, undecided, real] = ["fake", "abstain", "real"].map(of);
  const without = items.filter((item) => item.answer && !item.answer.verdict).length;
  const open = items.filter((item) => !item.answer).length;
  const parts = [`${fake || "none"} flagged as fake`];
  if (undecided) parts.push(`${undecided} left open`);
  if (real) parts.push(`${real} with no evidence found`);
  if (without) parts.push(`${without} could not be scored`);
  if (open) parts.push(`${open} not scored yet`);
  return `${counted(items.length, "image")}: ${parts.join(", ")}.`;
}

/** A quoted word for a POSIX shell. Invisible characters are escaped, so that the pasted text is the text that was read. */
export function quoted(text) {
  if (visible(text) === text) return `'${text.replaceAll("'", "'\\''")}'`;
  const bytes = [...new TextEncoder().encode(text)];
  const plain = (byte) => byte > 31 && byte < 127 && byte !== 39 && byte !== 92;
  return `$'${bytes.map((byte) => (plain(byte) ? String.fromCharCode(byte) : `\\x${byte.toString(16).padStart(2, "0")}`)).join("")}'`;
}

/** JSON without invisible characters. */
export function json(value) {
  return JSON.stringify(value, null, 2).replace(/[\p{Cf}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/gu, (character) =>
    [...Array(character.length).keys()].map((at) => `\\u${character.charCodeAt(at).toString(16).padStart(4, "0")}`).join(""));
}
