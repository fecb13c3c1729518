"use strict";
// Order, choice and enlargement of a page's tiles. Loads nothing and keeps nothing.
(() => {
  const list = document.querySelector(".tiles");
  const tools = document.getElementById("tools");
  if (!list) return;
  const tiles = [...list.children];
  const order = document.getElementById("order");
  const turned = document.getElementById("turned");
  const said = document.getElementById("said");
  const dialog = document.getElementById("enlarged");
  const ORDERS = {
    archive: { of: (tile) => Number(tile.dataset.place) },
    score: { of: (tile) => number(tile.dataset.score), falls: true },
    name: { of: (tile) => tile.dataset.name, words: true },
    size: { of: (tile) => number(tile.dataset.pixels), falls: true },
    verdict: { of: (tile) => ["fake", "abstain", "real", "none"].indexOf(tile.dataset.verdict) },
  };
  let current = null;

  function number(text) {
    return text === "" ? null : Number(text);
  }

  function arrange() {
    const { of, falls, words } = ORDERS[order.value];
    const sign = (falls ? -1 : 1) * (turned.getAttribute("aria-pressed") === "true" ? -1 : 1);
    const place = (tile) => Number(tile.dataset.place);
    const compare = (a, b) => (words ? a.localeCompare(b, "en", { numeric: true }) : a - b);
    list.append(...[...tiles].sort((one, other) => {
      const [a, b] = [of(one), of(other)];
      if (a === null || b === null) return (a === null) - (b === null) || place(one) - place(other); // what has none comes last, either way
      return sign * compare(a, b) || place(one) - place(other);
    }));
  }

  function choose() {
    const wanted = document.querySelector("[name=shown]:checked").value;
    for (const tile of tiles) tile.hidden = wanted !== "all" && tile.dataset.verdict !== wanted;
    const count = shown().length;
    said.textContent = count === tiles.length ? `${count} on this page` : `${count} of ${tiles.length} on this page`;
    document.getElementById("none").hidden = count > 0;
  }

  function shown() {
    return [...list.children].filter((tile) => !tile.hidden);
  }

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
    else if (!dialog.contains(document.activeElement) || document.activeElement.disabled) document.getElementById("close").focus(); // or keys would reach nobody
  }

  function large(small) {
    const image = document.createElement("img");
    image.src = small.src;
    image.alt = `The picture of ${current.dataset.name}`;
    return image;
  }

  function step(by) {
    const next = shown()[shown().indexOf(current) + by];
    if (next) enlarge(next);
  }

  order.addEventListener("change", arrange);
  turned.addEventListener("click", () => {
    turned.setAttribute("aria-pressed", String(turned.getAttribute("aria-pressed") !== "true"));
    arrange();
  });
  for (const one of document.querySelectorAll("[name=shown]")) one.addEventListener("change", choose);
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
  tools.hidden = false;
  choose();
})();
