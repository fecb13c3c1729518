/* Send requests to the endpoint: its description, and scores for a few files at a time. This module uses no elements. URLs are relative to the page. */

import { quoted } from "./words.js";

const ATTEMPTS = 6; // attempts of a request that must be retried later
const LONGEST_WAIT_S = 60;
const NAME_LENGTH = 200; // the headers of multipart parts are limited
const PART_BYTES = 2048; // the header of one part, with a name of that length in any script
const REQUEST_BYTES = 8 * 2 ** 20; // limit for several files, so that a slow connection meets the deadline and shows progress
const TOKEN = "touchstone-token";

/** A refusal: `code` of the endpoint's closed list, or `unreachable`. */
export class Trouble extends Error {
  constructor({ code, message = "", limit = null, observed = null, request_id = null }) {
    super(message);
    Object.assign(this, { code, limit, observed, request_id });
  }

  get body() {
    return { code: this.code, message: this.message, limit: this.limit, observed: this.observed, request_id: this.request_id };
  }
}

export class Endpoint {
  get token() {
    return sessionStorage.getItem(TOKEN) ?? "";
  }

  set token(text) {
    sessionStorage.setItem(TOKEN, text.replace(/[^ -~]/g, "")); // a header cannot carry other characters
  }

  /** Ensembles, optional detectors, limits, and whether a token is needed; `detectors` by name, empty if the request for them fails. */
  async describe() {
    const [served, known] = await Promise.all([
      this.#ask("v1/ensembles"),
      this.#ask("v1/detectors").catch(() => ({ detectors: [] })),
    ]);
    return { ...served, detectors: Object.fromEntries(known.detectors.map((detector) => [detector.name, detector])) };
  }

  /** One answer per file, in order. `waiting(seconds, trouble)` is called before a retry. Raises Trouble, or AbortError. */
  async score(files, asked, signal, waiting) {
    const body = new FormData();
    for (const file of files) body.append("file", file, file.name.slice(-NAME_LENGTH).toWellFormed());
    const answer = await this.#ask(this.address(asked), { method: "POST", body, signal }, waiting);
    const answers = answer.results ?? [answer];
    if (answers.length !== files.length) throw new Trouble({ code: "internal_error", message: "answers are missing" });
    return answers;
  }

  /** The URL of a request. `asked` has the ensemble, the false-positive rate, the masks, and the optional detectors. */
  address({ ensemble, fpr, masks, besides }) {
    const address = new URL("v1/score", document.baseURI);
    if (ensemble) address.searchParams.set("ensemble", ensemble);
    if (fpr) address.searchParams.set("fpr", fpr);
    for (const name of besides) address.searchParams.append("detector", name);
    if (masks) address.searchParams.set("masks", "true");
    return address;
  }

  /** The same request for a terminal, with the file in the working directory, and without the token. */
  curl(name, asked) {
    const token = this.token ? ' \\\n  --header "Authorization: Bearer $TOUCHSTONE_TOKEN"' : "";
    return `curl --data-binary ${quoted(`@${name === "-" ? "./-" : name}`)}${token} \\\n  ${quoted(this.address(asked).href)}`;
  }

  async #ask(address, request = {}, waiting = () => {}) {
    const headers = this.token ? { Authorization: `Bearer ${this.token}` } : {};
    for (let attempt = 1; ; attempt++) {
      const response = await reached(() => fetch(address, { ...request, headers, cache: "no-store" }));
      if (response.ok) return reached(() => response.json());
      const trouble = await refusal(response);
      if (![429, 503].includes(response.status) || attempt === ATTEMPTS) throw trouble;
      await pause(secondsOf(response.headers.get("Retry-After")), request.signal, (left) => waiting(left, trouble));
    }
  }
}

/** How many of the first items fit into one request. `tooLarge` finds files that are over the limits alone. */
export function fitting(files, limits) {
  const most = Math.min(limits.max_body_bytes, REQUEST_BYTES);
  let bytes = 0;
  const over = files.findIndex((file, at) => (bytes += file.size + PART_BYTES) > most || at === limits.max_files);
  return over === -1 ? files.length : Math.max(1, over);
}

/** The trouble of a file that is too large for any request, known before it is sent; else null. */
export function tooLarge(file, limits) {
  const limit = Math.min(limits.max_file_bytes, limits.max_body_bytes - PART_BYTES);
  if (file.size <= limit) return null;
  return new Trouble({ code: "file_too_large", message: "the image has more bytes than allowed", limit, observed: file.size });
}

async function reached(asking) {
  try {
    return await asking();
  } catch (error) {
    throw error.name === "AbortError" ? error : new Trouble({ code: "unreachable" });
  }
}

async function refusal(response) {
  const body = await response.json().catch(() => null);
  if (typeof body?.code === "string") return new Trouble(body);
  const code = { 401: "unauthorized", 403: "forbidden", 404: "not_found", 413: "body_too_large", 429: "too_many_requests",
    502: "not_ready", 503: "overloaded", 408: "deadline_exceeded", 504: "deadline_exceeded" }[response.status]; // a proxy answered
  return new Trouble({ code: code ?? "internal_error", message: `HTTP ${response.status}` });
}

function secondsOf(retryAfter) {
  const seconds = /^\d+$/.test(retryAfter ?? "") ? Number(retryAfter) : (Date.parse(retryAfter) - Date.now()) / 1000;
  return Math.min(Math.max(Number.isFinite(seconds) ? Math.ceil(seconds) : 2, 1), LONGEST_WAIT_S);
}

async function pause(seconds, signal, tick) {
  for (let left = seconds; left > 0; left--) {
    tick(left);
    await new Promise((resolve, reject) => {
      const stop = () => reject(new DOMException("cancelled", "AbortError"));
      if (signal?.aborted) stop();
      signal?.addEventListener("abort", stop, { once: true });
      setTimeout(resolve, 1000);
    });
  }
}
