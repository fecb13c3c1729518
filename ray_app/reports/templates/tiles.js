"use strict";
// Sort and filter the tiles of a page with the controls that it has. This script loads and stores nothing.
const shown = (() => {
  const list = document.querySelector(".tiles");
  if (!list) return () => [];
  const tiles = [...list.children];
  const place = new Map(tiles.map((tile, index) => [tile, index]));
  const number = (text) => (text === "" ? null : Number(text));
  const [order, turned, folder, why, least, said, none] = ["order", "turned", "folder", "why", "least", "said", "none"].map((id) => document.getElementById(id));
  const words = new Intl.Collator("en", { numeric: true });
  const ORDERS = {
    listed: { of: (tile) => place.get(tile) },
    score: { of: (tile) => number(tile.dataset.score), falls: true },
    folder: { of: (tile) => tile.dataset.folder, compare: words.compare },
    name: { of: (tile) => tile.dataset.name, compare: words.compare },
    size: { of: (tile) => number(tile.dataset.pixels), falls: true },
    verdict: { of: (tile) => ["fake", "abstain", "real", "none"].indexOf(tile.dataset.verdict) },
  };

  function arrange() {
    const { of, falls, compare = (a, b) => a - b } = ORDERS[order.value];
    const sign = (falls ? -1 : 1) * (turned.getAttribute("aria-pressed") === "true" ? -1 : 1);
    const sorted = [...tiles].sort((one, other) => {
      const [a, b] = [of(one), of(other)];
      if (a === null || b === null) return (a === null) - (b === null) || place.get(one) - place.get(other); // Tiles without a value are last in either direction.
      return sign * compare(a, b) || place.get(one) - place.get(other);
    });
    for (const tile of sorted) list.append(tile);
  }

  function choose() {
    const verdict = document.querySelector("[name=shown]:checked").value;
    const from = number(least?.value ?? "");
    let count = 0;
    for (const tile of tiles) {
      const of = tile.dataset;
      const isShown = (verdict === "all" || of.verdict === verdict)
        && (!folder?.value || of.folder.startsWith(folder.value))
        && (!why?.value || of.why === why.value)
        && (from === null || (of.score !== "" && Number(of.score) >= from));
      if (tile.hidden === isShown) tile.hidden = !isShown;
      count += isShown;
    }
    said.textContent = `${count === tiles.length ? "" : `${count.toLocaleString("en")} of `}${tiles.length.toLocaleString("en")} on this page`;
    none.hidden = count > 0;
  }

  if (folder) { // All folders with images, and their parent folders.
    const found = new Set();
    for (const tile of tiles) for (let at = -1; (at = tile.dataset.folder.indexOf("/", at + 1)) >= 0; ) found.add(tile.dataset.folder.slice(0, at + 1));
    folder.append(...[...found].filter((one) => !/:\/\/?$/.test(one)).sort(words.compare).slice(0, 2000).map((one) => new Option(one, one)));
    folder.closest("label").hidden = folder.length < 3;
  }
  order.addEventListener("change", arrange);
  turned.addEventListener("click", () => {
    turned.setAttribute("aria-pressed", String(turned.getAttribute("aria-pressed") !== "true"));
    arrange();
  });
  for (const one of document.querySelectorAll("[name=shown], #folder, #why")) one.addEventListener("change", choose);
  least?.addEventListener("input", choose);
  document.getElementById("tools").hidden = false;
  if (order.selectedIndex) arrange(); // A browser may restore an earlier choice.
  choose();
  return () => [...list.children].filter((tile) => !tile.hidden);
})();

// Enlarge tiles on a page that has a dialog for this.
(() => {
  const list = document.querySelector(".tiles");
  const dialog = document.getElementById("enlarged");
  if (!list || !dialog) return;
  let current = null;

  function enlarge(tile) {
    current = tile;
    const small = tile.querySelector("img");
    const frame = document.getElementById("large");
    frame.replaceChildren(small ? large(small) : tile.querySelector(".frame").cloneNode(true));
    document.getElementById("about").replaceChildren(...[...tile.children].slice(1).map((one) => one.cloneNode(true)));
    const place = shown().indexOf(tile);
    document.getElementById("which").textContent = `Image ${place + 1} of ${shown().length}`;
    document.getElementById("before").disabled = place === 0;
    document.getElementById("after").disabled = place === shown().length - 1;
    if (!dialog.open) dialog.showModal();
    else if (!dialog.contains(document.activeElement) || document.activeElement.disabled) document.getElementById("close").focus(); // Otherwise no element gets key events.
  }

  function large(small) {
    const image = document.createElement("img");
    image.src = small.src;
    image.alt = `The image ${current.dataset.name}`;
    return image;
  }

  function step(by) {
    const next = shown()[shown().indexOf(current) + by];
    if (next) enlarge(next);
  }

  list.addEventListener("click", (event) => {
    const button = event.target.closest(".frame");
    if (button?.tagName === "BUTTON") enlarge(button.closest(".tile"));
  });
  document.getElementById("before").addEventListener("click", () => step(-1));
  document.getElementById("after").addEventListener("click", () => step(1));
  document.getElementById("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    step(by);
  });
  dialog.addEventListener("close", () => current?.querySelector("button.frame")?.focus());
  for (const frame of list.querySelectorAll("span.frame:has(img)")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "frame";
    button.setAttribute("aria-label", `Enlarge ${frame.closest(".tile").dataset.name}`);
    button.append(...frame.childNodes);
    frame.replaceWith(button);
  }
})();
