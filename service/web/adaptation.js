/** How far each layer was adapted to a task, as a table that is a bar plot as well. */

import { h } from "./dom.js";

/** A table of layers `{name, type, relative_change}`, in the order of the network. */
export function adaptationTable(layers) {
  const largest = Math.max(...layers.map((layer) => layer.relative_change), 1e-9);
  const head = ["Layer", "Kind", "Change"].map((text) => h("th", { scope: "col" }, text));
  const rows = layers.map(({ name, type, relative_change: change }) => {
    const fill = h("span", { class: "fill" });
    fill.style.width = `${(100 * change) / largest}%`;
    const track = h("span", { class: "track", "aria-hidden": "true" }, fill);
    const figure = h("span", { class: "number" }, `${(100 * change).toPrecision(2)}%`);
    return h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, type), h("td", { class: "plot" }, track, figure));
  });
  const table = h("table", { class: "adaptation" }, h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...rows));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Adaptation of each layer" }, table);
}
