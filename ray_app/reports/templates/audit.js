"use strict";
// Labels of the cards, by keys or buttons: kept in this browser, saved as a file. Knows nothing of scores.
(() => {
  const WORDS = { r: "real", f: "fake", u: "unsure" };
  const MOVES = { arrowleft: -1, k: -1, arrowright: 1, j: 1 };
  const list = document.querySelector(".cards");
  const cards = [...list.querySelectorAll(".card")];
  const labels = kept();
  let current = -1;

  function kept() {
    try {
      return new Map(JSON.parse(localStorage.getItem(list.dataset.key) || "[]"));
    } catch {
      return new Map(); // a browser that keeps nothing for files: labels last as long as the page is open
    }
  }

  function keep() {
    try {
      localStorage.setItem(list.dataset.key, JSON.stringify([...labels]));
    } catch {
      // as above
    }
  }

  function show(card) {
    const word = labels.get(card.dataset.id);
    for (const button of card.querySelectorAll("[data-label]")) {
      button.setAttribute("aria-pressed", String(button.dataset.label === word));
    }
  }

  function tell() {
    const counts = Object.values(WORDS).map((word) => [word, [...labels.values()].filter((one) => one === word).length]);
    const done = labels.size;
    const parts = counts.filter(([, count]) => count).map(([word, count]) => `${count} ${word}`);
    document.getElementById("said").textContent = `${done} of ${cards.length} labelled${parts.length ? ": " + parts.join(", ") : ""}`;
    document.getElementById("progress").value = done;
    document.getElementById("next").disabled = done === cards.length;
  }

  function label(card, word) {
    if (labels.get(card.dataset.id) === word) labels.delete(card.dataset.id);
    else labels.set(card.dataset.id, word);
    show(card);
    keep();
    tell();
  }

  function select(place) {
    if (current >= 0) cards[current].classList.remove("current");
    current = place;
    cards[place].classList.add("current");
  }

  function go(place) {
    select(place);
    cards[place].focus({ preventScroll: true });
    cards[place].scrollIntoView({ block: "nearest" });
  }

  function unlabelled(from) {
    const turn = cards.map((_, step) => (from + step) % cards.length);
    return turn.find((place) => !labels.has(cards[place].dataset.id));
  }

  function next() {
    const place = unlabelled(current + 1);
    if (place !== undefined) go(place);
  }

  function quoted(text) {
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }

  function csv() {
    const rows = cards.map((card) => {
      const { id, uri, member = "", stratum } = card.dataset;
      return [id, uri, member, stratum, labels.get(id) || ""].map(quoted).join(",");
    });
    return ["image_id,uri,member,stratum,label", ...rows].join("\n") + "\n";
  }

  function save() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
    link.download = "labels.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000); // some browsers read it after this returns
  }

  list.addEventListener("click", (event) => {
    const card = event.target.closest(".card");
    if (!card) return;
    select(cards.indexOf(card));
    const button = event.target.closest("[data-label]");
    if (button) label(card, button.dataset.label);
  });
  list.addEventListener("focusin", (event) => select(cards.indexOf(event.target.closest(".card"))));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.toLowerCase();
    if (key in MOVES) {
      event.preventDefault();
      go(Math.min(Math.max(current + MOVES[key], 0), cards.length - 1));
    } else if (key in WORDS && current >= 0) {
      const card = cards[current];
      if (labels.get(card.dataset.id) !== WORDS[key]) label(card, WORDS[key]);
      next();
    }
  });
  document.getElementById("next").addEventListener("click", next);
  document.getElementById("save").addEventListener("click", save);

  cards.forEach(show);
  tell();
  if (cards.length) select(unlabelled(0) ?? 0);
})();
