/** What carried a decision: words marked in the descriptions, and a saliency map over the image. */

import { h, percent } from "./dom.js";

const FAINTEST = 0.12, STRONGEST = 0.75;

/** Elements for an answer of `POST /tasks/{id}/explain`; the map is laid over the image in `picture`. */
export function explanation(answer, task, picture) {
  const shown = [h("p", {}, "For ", h("strong", {}, answer.label), `, ${percent(answer.probability)}:`)];
  if (answer.saliency) {
    picture.append(saliencyMap(answer.saliency));
    shown.push(legend("In the image"));
  }
  const words = Object.entries(answer.words ?? {}).filter(([, marks]) => marks.length);
  if (words.length) shown.push(...wordsOf(words, task));
  for (const note of answer.notes ?? []) shown.push(h("p", { class: "hint" }, note));
  return shown;
}

function legend(text) {
  return h("p", { class: "legend" }, `${text}: `, h("span", { class: "for" }, "for it"), " ", h("span", { class: "against" }, "against it"));
}

function wordsOf(words, task) {
  const strongest = Math.max(...words.flatMap(([, marks]) => marks.map(({ weight }) => Math.abs(weight))), 1e-9);
  const lines = words.map(([name, marks]) => {
    const { description = "" } = task.classes.find((c) => c.name === name) ?? {};
    return [h("dt", {}, name), h("dd", {}, ...markedText(description, marks, strongest))];
  });
  return [legend("In the words"), h("dl", { class: "words" }, ...lines.flat())];
}

/** The text with its marked words; offsets count characters (code points), as Python does, not UTF-16 units. */
export function markedText(text, marks, strongest) {
  const characters = [...text];
  const between = (start, end) => characters.slice(start, end).join("");
  const pieces = [];
  let at = 0;
  for (const { start, end, weight } of [...marks].sort((a, b) => a.start - b.start)) {
    if (start < at || end > characters.length) continue; // overlaps one before it, or is not of this text
    pieces.push(between(at, start), markOf(between(start, end), weight, Math.abs(weight) / strongest));
    at = end;
  }
  return [...pieces, between(at)];
}

function markOf(text, weight, strength) {
  const size = Math.abs(weight);
  const signed = `${weight < 0 ? "−" : "+"}${size < 0.01 ? size.toPrecision(1) : size.toFixed(2)}`;
  const mark = h("mark", { class: weight < 0 ? "against" : "for", title: signed }, text, h("span", { class: "vh" }, ` (${signed})`));
  mark.style.setProperty("--strength", String(strength));
  return mark;
}

/** A canvas with a pixel for each value: warm for evidence, cold against it, clearer the stronger. */
export function saliencyMap({ width, height, values }) {
  const canvas = h("canvas", { width, height, class: "saliency", role: "img", "aria-label": whereText(values) });
  const pen = canvas.getContext("2d");
  const pixels = pen.createImageData(width, height);
  const strongest = Math.max(...values.flat().map(Math.abs), 1e-9);
  values.flat().forEach((value, i) => {
    const strength = Math.abs(value) / strongest;
    const alpha = strength < FAINTEST ? 0 : STRONGEST * strength;
    pixels.data.set([...(value < 0 ? [40, 110, 230] : [255, 120, 0]), Math.round(255 * alpha)], 4 * i);
  });
  pen.putImageData(pixels, 0, 0);
  return canvas;
}

/** In words, where most of the evidence is: `mostly in the upper left`. */
function whereText(values) {
  const total = { sum: 0, x: 0, y: 0 };
  values.forEach((row, y) => row.forEach((value, x) => {
    const weight = Math.max(0, value);
    total.sum += weight;
    total.x += weight * (x + 0.5) / row.length;
    total.y += weight * (y + 0.5) / values.length;
  }));
  if (!total.sum) return "Saliency map: no evidence for the answer in the image";
  const third = (share, names) => names[Math.min(2, Math.floor(3 * share / total.sum))];
  const place = `${third(total.y, ["upper", "middle", "lower"])} ${third(total.x, ["left", "centre", "right"])}`;
  return `Saliency map: the evidence is centred in the ${place} of the image`;
}
