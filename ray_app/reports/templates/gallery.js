{% include "tiles.js" %}
// Enlargement of the tiles that are shown.
(() => {
  const list = document.querySelector(".tiles");
  if (!list) return;
  const dialog = document.getElementById("enlarged");
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
