/* Save the finding in view as one HTML page with its image, which loads and runs nothing. This module sends no request. */

import { element, facts } from "./elements.js";
import { NONE, percent, shortened, visible } from "./words.js";

const MOST_PX = 1024; // of the picture's longer side
const POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'";
const LEFT_OUT = "button, select, .slider, .copying, #curl, .report";

/** The text of a page with an article of `verdictView`. */
export function reportOf(article, { file, answer }, host) {
  const copy = article.cloneNode(true);
  const drawn = still(article.querySelector(".frame"));
  if (drawn) copy.querySelector(".frame").replaceChildren(drawn);
  for (const one of copy.querySelectorAll(LEFT_OUT)) one.remove();
  for (const one of copy.querySelectorAll("details")) one.open = true;
  const name = shortened(file.name, 90);
  const page = document.implementation.createHTMLDocument(`${name} · Touchstone`);
  page.documentElement.lang = "en";
  page.head.prepend(element("meta", { charset: "utf-8" }), element("meta", { "http-equiv": "Content-Security-Policy", content: POLICY }),
    element("meta", { name: "viewport", content: "width=device-width, initial-scale=1" }), element("meta", { name: "color-scheme", content: "light dark" }),
    element("meta", { name: "referrer", content: "no-referrer" }));
  const { ensemble, request_id: request } = answer;
  const list = facts([
    ["Checked", `${new Date().toISOString().slice(0, 19).replace("T", " ")} UTC`], ["Endpoint", visible(host)], ["Ensemble", visible(ensemble?.name ?? NONE)],
    ...(ensemble?.fpr ? [["Operating point", `${percent(ensemble.fpr)} false positives`]] : []),
    ["SHA-256 of the file", element("span", { class: "code", text: visible(answer.sha256 || NONE) }), true],
    ["Fingerprint of the ensemble", element("span", { class: "code", text: visible(ensemble?.fingerprint ?? NONE) }), true],
    ["Request", element("span", { class: "code", text: visible(request ?? NONE) }), true],
  ]);
  const head = element("header", {}, document.querySelector(".brand").cloneNode(true), element("h1", { text: `Verdict on ${name}` }), list);
  const foot = element("footer", {}, element("p", { text: "Saved from the page of an endpoint. This page loads nothing and runs nothing. Its image is a smaller copy without the metadata of the file. Keep the file itself, too." }));
  page.body.append(element("div", { class: "page saved" }, head, element("main", {}, copy), foot));
  const text = page.documentElement.outerHTML.replace("</head>", () => `<style>${styles()}</style></head>`); // the policy of this page forbids adding it as an element
  return `<!doctype html>\n${text}\n`;
}

/** The displayed image with its overlay as one JPEG, or null if the browser cannot show it. */
function still(frame) {
  const image = frame?.querySelector("img");
  if (!image?.complete || !image.naturalWidth) return null;
  const scale = Math.min(1, MOST_PX / Math.max(image.naturalWidth, image.naturalHeight));
  const canvas = element("canvas", { width: Math.max(1, Math.round(image.naturalWidth * scale)), height: Math.max(1, Math.round(image.naturalHeight * scale)) });
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.filter = image.style.filter || "none";
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  pen.filter = "none";
  const over = frame.querySelector(".overlay");
  if (over) {
    pen.globalAlpha = Number(over.style.opacity || 1);
    pen.drawImage(over, 0, 0, canvas.width, canvas.height);
  }
  return element("img", { src: canvas.toDataURL("image/jpeg", 0.85), alt: "The image" });
}

function styles() {
  return [...document.styleSheets].flatMap((sheet) => [...sheet.cssRules]).map((rule) => rule.cssText).join("\n");
}

/** The name of the file. */
export function reportName({ file }) {
  const plain = file.name.replace(/\.[^.]*$/, "").normalize("NFKD").replace(/[^\w-]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 60);
  return `touchstone-${plain || "image"}.html`;
}
