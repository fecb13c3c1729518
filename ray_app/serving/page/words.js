/* Numbers, names and answers in words, as the run report has them. Knows no element and no request. */

export const VERDICTS = { fake: "flagged as fake", abstain: "abstained", real: "no evidence found" };
export const NONE = "–";

const FLAGS = {
  alpha: "has transparency; it was scored on white",
  animated: "an animation; its first frame was scored",
  broken_exif: "its EXIF cannot be read",
  broken_icc: "its colour profile cannot be used",
  cmyk: "printing colours, converted to RGB",
  grayscale: "grey only",
  irregular_jpeg: "broken metadata or a few stray bytes in the JPEG; every pixel was decoded",
  irregular_png: "a chunk without pixels is broken, such as a wrong checksum; every pixel was decoded",
  metadata_unread: "its metadata is over a limit; what is over it was not read",
  multipage: "several pages or pictures; the first was scored",
  no_content: "one colour, or nearly: nothing to judge",
  oriented: "the camera asks to turn it; it was scored as stored",
  preview: "the preview that a camera put into its raw file was scored",
  sixteen_bit: "more than 8 bits per sample; the high 8 were scored",
  trailing_bytes: "bytes follow the end of the image",
};

/* What must be known of every answer of an ensemble, by what holds of it. */
export const DEMONSTRATION = "Demonstration ensemble: it shows that the machinery works and is not for decisions about any image.";
export const UNCALIBRATED = "Not calibrated: the plain sigmoid of the score. It ranks images; it does not say how often such a verdict is right.";

/** The ensemble that gave an answer, with the thresholds and the guarantee of the operating point that decided. */
export function ensembleOf(answer, ensembles) {
  const ensemble = ensembles.find(({ name }) => name === answer?.ensemble?.name);
  const point = ensemble?.operating_points?.find(({ fpr }) => fpr === answer.ensemble.fpr);
  if (!point) return ensemble;
  return { ...ensemble, ...point, guarantee: ensemble.guarantee && { ...ensemble.guarantee, target_fpr: point.fpr, upper_bound: point.upper_bound } };
}

/** The operating points of an ensemble to choose from, as {fpr, text}: first that of requests that choose none. Empty where there is no choice. */
export function pointsOf(ensemble) {
  const others = (ensemble.operating_points ?? []).filter(({ fpr }) => fpr !== ensemble.fpr).sort((a, b) => a.fpr - b.fpr);
  if (!others.length) return [];
  const said = ({ fpr, recall }) => `${percent(fpr)}${Number.isFinite(recall) ? `: finds ${percent(recall, 2)} of generated images` : " of real images"}`;
  const usual = ensemble.fpr ? `${said(ensemble)} (default)` : "default";
  return [{ fpr: null, text: usual }, ...others.map((point) => ({ fpr: point.fpr, text: said(point) }))];
}

/** What must be known of an answer beside its verdict: a list of sentences. */
export function notices(answer, ensemble) {
  if (!Number.isFinite(answer?.score)) return [];
  return [ensemble?.demonstration && DEMONSTRATION, answer.error_rates && visible(answer.error_rates), !answer.calibrated && UNCALIBRATED].filter(Boolean);
}

/* Why a verdict is `abstain`. */
export const REASONS = {
  no_content: "the picture is one colour, or nearly: there is nothing to judge, and the score means nothing",
  no_score: "a detector that the ensemble needs gave no score",
  out_of_range: "the picture is outside what a detector was made for",
  unlike_calibration: "the picture is outside what the ensemble was calibrated on",
  inside_band: "the score lies between the two thresholds",
  unstable: "saved once more, the picture gets another verdict",
  unlike_archive: "the archive is not like what the ensemble was calibrated on",
};

/** Why an answer abstains, with what varies in it. */
export function reason({ verdict_reason: word, verdict_detail: detail }) {
  const said = REASONS[word] ?? word;
  return detail ? `${said}: ${detail}` : said;
}

/* Per code: what happened, and what a person can do. */
export const TROUBLES = {
  empty_file: ["The file is empty", "Choose the original again; this copy has no bytes."],
  unsupported_format: ["Not an image format that this endpoint reads", "Send the original as JPEG, PNG, WebP or another format it takes. A screenshot loses most traces."],
  corrupt_image: ["The image does not decode", "It is damaged. Take another copy of it."],
  truncated_image: ["The file ends before the image does", "The download or copy was cut short. Take it anew."],
  image_too_large: ["The image is over the limits", "Send a copy with fewer pixels: shrinking can weaken the traces, so read its verdict with more doubt."],
  metadata_too_large: ["Its colour profile is over the limits", "Send a copy in RGB, without the profile."],
  unsafe_member: ["The file is not accepted", "Send the image by itself."],
  encrypted_member: ["The file is encrypted", "Decrypt it and send the image by itself."],
  decode_timeout: ["Decoding took too long", "The file is unusually costly. Save it anew and send that copy."],
  decoder_crashed: ["The image could not be decoded", "It is damaged, or made to do harm."],
  source_missing: ["The image is gone", "Send the file itself."],
  source_denied: ["The image may not be read", "Send the file itself."],
  source_throttled: ["The image’s server is busy", "Send the file itself."],
  source_timeout: ["The image’s server did not answer", "Send the file itself."],
  source_changed: ["The image changed while it was read", "Send it again."],
  detector_failed: ["A detector failed on it", "Try once more. If it stays, tell whoever runs this endpoint, with the request id."],
  malformed_request: ["The request was not understood", "Load this page anew: it may be older than the endpoint."],
  unauthorized: ["A token is needed", "This endpoint answers with a token only. It is kept in this tab until you close it."],
  forbidden: ["This endpoint does not answer this page", "Open the page at the endpoint’s own address."],
  not_found: ["The endpoint has no such address", "Load this page anew: it may be older than the endpoint."],
  method_not_allowed: ["The endpoint has no such method", "Load this page anew: it may be older than the endpoint."],
  header_timeout: ["The request came too slowly", "Check your connection, then go on."],
  body_too_large: ["The file is too large for one request", "Send a smaller file."],
  file_too_large: ["The file is too large", "Send a smaller file, with the same pixels if you can."],
  too_many_files: ["Too many files in one request", "Send fewer at once."],
  unsupported_encoding: ["The request was compressed", "Something between this page and the endpoint alters requests. Tell whoever runs it."],
  too_many_requests: ["More requests than this endpoint allows you", "Wait a minute, then go on."],
  headers_too_large: ["The request’s headers are too large", "Delete this site’s cookies, then load this page anew."],
  internal_error: ["A fault of the endpoint", "Try once more. If it stays, tell whoever runs it, with the request id."],
  overloaded: ["The endpoint is busy", "Wait a little, then go on."],
  not_ready: ["The detectors are still loading", "Wait a little, then go on."],
  deadline_exceeded: ["It took longer than one request may take", "Try once more, or send a smaller file."],
  unreachable: ["The endpoint cannot be reached", "Check your connection, or whether the endpoint still runs; then go on."],
  unreadable: ["Your browser could not read the file", "It was moved, changed or is a folder. Choose it again."],
  cancelled: ["Not scored yet", "Go on, and it gets its turn."],
};

/** What happened and what to do, for a code; the server's own sentence for one that this page does not know. */
export function trouble(code, message) {
  return TROUBLES[code] ?? [sentence(message || code), "If it stays, tell whoever runs this endpoint."];
}

/** A flag in words; the bare word for a flag of a later version. */
export function flag(name) {
  return FLAGS[name] ?? visible(name);
}

/** Text with escapes for what would hide, reorder or overflow: controls, bidi marks, zero width, lone surrogates, piles of marks. */
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

/** The visible text in at most `limit` characters; the middle goes, because the end of a name says most. */
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

/** A probability with three digits; never 0 or 1 by rounding. */
export function probability(value) {
  if (!Number.isFinite(value)) return NONE;
  return value < 0.001 ? "< 0.001" : value > 0.999 ? "> 0.999" : value.toFixed(3);
}

/** A share in percent, with no digit more than it has. */
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

/** With a full stop, and a capital unless it begins with a name and a colon. */
export function sentence(text) {
  const said = visible(text).trim();
  const begun = /^[\w.-]+:/.test(said) ? said : said.replace(/^./u, (first) => first.toUpperCase());
  return !begun || /[.!?…]$/.test(begun) ? begun : `${begun}.`;
}

/** What an answer's finding is called; where it has none, its verdict. */
export function foundIn({ finding, verdict }) {
  return finding ? shortened(finding, 120) : (VERDICTS[verdict] ?? null);
}

/** The verdict in whose colour it is shown. */
export function kindOf(answer) {
  const said = answer?.finding;
  if (!said) return answer?.verdict ?? "none";
  return said === "left open" ? "abstain" : /^(camera|no evidence)/.test(said) ? "real" : "fake";
}

/** Several verdicts in one sentence. */
export function tally(items) {
  const of = (kind) => items.filter((item) => item.answer?.verdict === kind).length;
  const [fake, abstained, real] = ["fake", "abstain", "real"].map(of);
  const without = items.filter((item) => item.answer && !item.answer.verdict).length;
  const open = items.filter((item) => !item.answer).length;
  const parts = [`${fake || "none"} flagged as fake`];
  if (abstained) parts.push(`${abstained} abstained`);
  if (real) parts.push(`${real} with no evidence found`);
  if (without) parts.push(`${without} could not be scored`);
  if (open) parts.push(`${open} not scored yet`);
  return `${counted(items.length, "image")}: ${parts.join(", ")}.`;
}

/** A word for a POSIX shell. Names with invisible characters are spelt out, so that what is pasted is what was read. */
export function quoted(text) {
  if (visible(text) === text) return `'${text.replaceAll("'", "'\\''")}'`;
  const bytes = [...new TextEncoder().encode(text)];
  const plain = (byte) => byte > 31 && byte < 127 && byte !== 39 && byte !== 92;
  return `$'${bytes.map((byte) => (plain(byte) ? String.fromCharCode(byte) : `\\x${byte.toString(16).padStart(2, "0")}`)).join("")}'`;
}

/** JSON in which nothing is invisible. */
export function json(value) {
  return JSON.stringify(value, null, 2).replace(/[\p{Cf}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/gu, (character) =>
    [...Array(character.length).keys()].map((at) => `\\u${character.charCodeAt(at).toString(16).padStart(4, "0")}`).join(""));
}
