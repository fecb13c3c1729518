/* Send the images of this visit to the endpoint, a few at a time. This module uses no elements. It dispatches `change` when a state changed. */

import { Trouble, fitting, tooLarge } from "./endpoint.js";

/* Troubles that the next request would meet, too. They stop the run, and the user can continue it. */
const HALTING = new Set(["unauthorized", "forbidden", "unreachable", "overloaded", "not_ready", "too_many_requests"]);

/** `items`: {number, file, url, pasted, asked, state: waiting | sent | done | cancelled, answer}. `halted`: the Trouble that stopped the run. */
export class Queue extends EventTarget {
  items = [];
  running = false;
  halted = null;
  busy = null; // while it waits to retry: {seconds, trouble}
  #count = 0;
  #stop = null;

  add(files, asked, pasted = false) {
    const added = [...files].map((file) => ({
      number: ++this.#count, file, url: URL.createObjectURL(file), pasted, asked, state: "waiting", answer: null,
    }));
    this.items.push(...added);
    return added;
  }

  get open() {
    return this.items.filter((item) => !item.answer);
  }

  /** Score the waiting items. Returns when no item waits, when it was cancelled, or when it halted. Never raises for a refusal. */
  async run(endpoint, limits) {
    if (this.running) return;
    Object.assign(this, { running: true, halted: null });
    this.#stop = new AbortController();
    for (const item of this.open) item.state = "waiting";
    try {
      for (let next = this.#next(limits); next.length; next = this.#next(limits)) await this.#score(next, endpoint);
    } catch (error) {
      if (error instanceof Trouble) this.halted = error;
      else if (error.name !== "AbortError") throw error;
    } finally {
      for (const item of this.open) item.state = "cancelled";
      Object.assign(this, { running: false, busy: null });
      this.#changed();
    }
  }

  cancel() {
    this.#stop?.abort();
  }

  clear() {
    this.cancel();
    for (const item of this.items) URL.revokeObjectURL(item.url);
    this.items = [];
    this.halted = null;
  }

  #next(limits) {
    for (const item of this.items.filter(({ state }) => state === "waiting")) {
      const trouble = tooLarge(item.file, limits);
      if (trouble) settle(item, refused(item, trouble));
    }
    const waiting = this.items.filter(({ state }) => state === "waiting");
    const alike = waiting.filter(({ asked }) => asked === waiting[0].asked);
    return alike.slice(0, fitting(alike.map(({ file }) => file), limits));
  }

  async #score(items, endpoint) {
    for (const item of items) item.state = "sent";
    this.#changed();
    const waiting = (seconds, trouble) => this.#changed({ seconds, trouble });
    try {
      const answers = await endpoint.score(items.map(({ file }) => file), items[0].asked, this.#stop.signal, waiting);
      items.forEach((item, at) => settle(item, answers[at]));
    } catch (error) {
      if (!(error instanceof Trouble)) throw error;
      await this.#recover(items, endpoint, error);
    }
    this.#changed();
  }

  async #recover(items, endpoint, trouble) {
    if (trouble.code === "unreachable" && await this.#setUnreadableAside(items)) return;
    if (HALTING.has(trouble.code)) throw trouble;
    if (items.length === 1) return settle(items[0], refused(items[0], trouble));
    const half = Math.ceil(items.length / 2); // one file may have caused the refusal of all
    await this.#score(items.slice(0, half), endpoint);
    await this.#score(items.slice(half), endpoint);
  }

  /** Settle files that cannot be read, such as a moved file or a folder, which fail like a lost connection. The other files of the request wait again. */
  async #setUnreadableAside(items) {
    const readable = await Promise.all(items.map(({ file }) => file.slice(0, 1).arrayBuffer().then(() => true, () => false)));
    items.forEach((item, at) => {
      if (readable[at]) item.state = "waiting";
      else settle(item, refused(item, new Trouble({ code: "unreadable" })));
    });
    return readable.includes(false);
  }

  #changed(busy = null) {
    this.busy = busy;
    this.dispatchEvent(new Event("change"));
  }
}

function settle(item, answer) {
  item.answer = answer;
  item.state = "done";
}

function refused(item, trouble) {
  return { name: item.file.name, status: trouble.code, error: trouble.body, verdict: null };
}
