/* Show the image, with the mask of a localizer as an overlay. */

import { element } from "./elements.js";
import { visible } from "./words.js";

const COLOUR = [255, 61, 20];
const FIRST_OPACITY = 70; // per cent

/* EXIF orientation → the canvas transform that turns stored pixels upright, for a width w and a height h. */
const TURNS = {
  2: (w) => [-1, 0, 0, 1, w, 0], 3: (w, h) => [-1, 0, 0, -1, w, h], 4: (w, h) => [1, 0, 0, -1, 0, h], 5: () => [0, 1, 1, 0, 0, 0],
  6: (w, h) => [0, 1, -1, 0, h, 0], 7: (w, h) => [0, -1, -1, 0, h, w], 8: (w) => [0, -1, 1, 0, 0, w],
};

/** The figure of an item. If a detector gave a mask, it covers the whole image as an overlay, with a slider. */
export function picture(item) {
  const { answer } = item;
  const image = element("img", { src: item.url, alt: "The image you chose", decoding: "async" });
  const frame = element("div", { class: "frame" }, image);
  image.addEventListener("error", () => image.replaceWith(placeholder(answer.image)), { once: true });
  const masks = Object.entries(answer.detectors ?? {}).filter(([, said]) => said.mask);
  const turned = answer.image?.format === "JPEG" ? answer.image.orientation : 1; // browsers differ in how they rotate other formats
  if (masks.length && turned === 1) frame.classList.add("stored");
  return element("figure", { class: "picture" }, frame, masks.length ? controls(frame, masks, turned) : null);
}

function placeholder(facts) {
  const made = element("p", { class: "placeholder" }, element("strong", { text: visible(facts?.format ?? "No image") }),
    element("span", { text: facts?.format ? "Your browser cannot show this format. The verdict is not affected." : "Your browser cannot show this file." }));
  if (facts?.width && facts?.height) made.style.setProperty("aspect-ratio", `${facts.width} / ${facts.height}`);
  return made;
}

function controls(frame, masks, turned) {
  const said = element("p", { class: "remark" });
  const shown = element("output", { for: "opacity" });
  const slider = element("input", { id: "opacity", type: "range", min: 0, max: 100, step: 5, value: FIRST_OPACITY, "aria-describedby": "mask-note" });
  said.id = "mask-note";
  let layer = null;
  const dim = () => {
    shown.textContent = `${slider.value} %`;
    slider.setAttribute("aria-valuetext", `${slider.value} per cent`);
    layer?.style.setProperty("opacity", slider.value / 100);
    frame.querySelector("img")?.style.setProperty("filter", `grayscale(${layer ? slider.value : 0}%)`); // so that a red mask is visible on red images
  };
  const choose = async (at) => {
    const [name, { mask }] = masks[at];
    said.textContent = `Coloured regions are altered according to ${visible(name)}: ${(100 * mask.area).toFixed(1)} % of the image, strongest ${mask.peak.toFixed(2)} of 1.`;
    const drawn = await overlay(mask, turned).catch(() => null);
    if (!drawn) said.textContent = "The mask cannot be shown.";
    layer?.remove();
    layer = drawn;
    if (layer) frame.append(layer);
    dim();
  };
  slider.addEventListener("input", dim);
  choose(0);
  const choice = masks.length === 1 ? null : element("select", { "aria-label": "Detector of the mask", change: (event) => choose(event.target.selectedIndex) },
    ...masks.map(([name]) => element("option", { text: visible(name) })));
  return element("figcaption", {}, element("div", { class: "slider" }, element("label", { for: "opacity", text: "Mask" }), slider, shown), choice, said);
}

/** A canvas with the mask as opacity of one colour, rotated as the browser rotates the image. */
async function overlay(mask, turned) {
  const bytes = Uint8Array.from(atob(mask.png), (character) => character.charCodeAt(0));
  const grey = await createImageBitmap(new Blob([bytes], { type: "image/png" }), { colorSpaceConversion: "none" });
  const { width, height } = grey;
  const stencil = new OffscreenCanvas(width, height);
  const pen = stencil.getContext("2d");
  pen.drawImage(grey, 0, 0);
  const pixels = pen.getImageData(0, 0, width, height);
  for (let at = 0; at < pixels.data.length; at += 4) pixels.data.set([...COLOUR, pixels.data[at]], at);
  pen.putImageData(pixels, 0, 0);
  const swapped = turned > 4;
  const canvas = element("canvas", { class: "overlay", width: swapped ? height : width, height: swapped ? width : height, "aria-hidden": "true" });
  const over = canvas.getContext("2d");
  over.setTransform(...(TURNS[turned]?.(width, height) ?? [1, 0, 0, 1, 0, 0]));
  over.drawImage(stencil, 0, 0);
  return canvas;
}
