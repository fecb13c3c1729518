"use strict";
// Sorts the systems of each list by a column. Loads nothing and keeps nothing; without it the lists stand by rank.
(() => {
  for (const table of document.querySelectorAll(".ranks")) {
    const heads = [...table.tHead.rows[0].cells];
    const chosen = table.closest(".body").querySelector("select");
    const bodies = [...table.tBodies].map((body) => ({ body, rows: [...body.rows].filter((row) => !row.classList.contains("head")) }));

    function arrange(column, falls) {
      for (const { body, rows } of bodies) {
        const value = (row) => row.cells[column].dataset.sort ?? "";
        const numeric = rows.every((row) => value(row) === "" || !Number.isNaN(Number(value(row))));
        body.append(...[...rows].sort((one, other) => {
          const [a, b] = [value(one), value(other)];
          if (a === "" || b === "") return (a === "") - (b === ""); // what has none comes last, either way
          return (falls ? -1 : 1) * (numeric ? a - b : a.localeCompare(b, "en", { numeric: true }));
        }));
      }
      heads.forEach((head, place) => {
        if (place === column) head.setAttribute("aria-sort", falls ? "descending" : "ascending");
        else head.removeAttribute("aria-sort");
      });
      chosen.value = String(column);
    }

    heads.forEach((head, place) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      const first = head.dataset.falls !== undefined; // the best first
      button.addEventListener("click", () => arrange(place, head.hasAttribute("aria-sort") ? head.getAttribute("aria-sort") !== "descending" : first));
      chosen.append(new Option(head.textContent.trim(), String(place)));
    });
    chosen.addEventListener("change", () => arrange(Number(chosen.value), heads[Number(chosen.value)].dataset.falls !== undefined));
    heads[0].setAttribute("aria-sort", "ascending");
    chosen.closest(".tools").hidden = false;
  }
})();
