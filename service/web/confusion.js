/** A confusion matrix: for each class that images are of, how often each answer was given. */

import { h } from "./dom.js";

const UNKNOWN = "I don’t know";

/** A table of counts from items `{truth, answer}`; all names are columns, rows are those with images. */
export function matrixOf(names, items) {
  const answers = items.map(({ truth, answer }) => [truth, answer.abstain ? UNKNOWN : answer.label]);
  const columns = answers.some(([, given]) => given === UNKNOWN) ? [...names, UNKNOWN] : names;
  const shown = names.filter((name) => answers.some(([truth]) => truth === name));
  const corner = h("th", { scope: "col" }, "is ↓  answered →");
  const head = h("tr", {}, corner, ...columns.map((name) => h("th", { scope: "col", title: name }, name)));
  const rows = shown.map((truth) => line(truth, columns, answers.filter(([t]) => t === truth)));
  const caption = h("caption", {}, "Confusion matrix: a row for each class, a column for each answer.");
  const table = h("table", { class: "matrix" }, caption, h("thead", {}, head), h("tbody", {}, ...rows));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Confusion matrix" }, table);
}

function line(truth, columns, answers) {
  const cells = columns.map((name) => {
    const n = answers.filter(([, given]) => given === name).length;
    const kind = name === truth ? "right" : name === UNKNOWN ? "unknown" : "wrong";
    const cell = h("td", { class: n ? `number ${kind}` : "number zero" }, String(n));
    cell.style.setProperty("--share", String(n / answers.length));
    return cell;
  });
  return h("tr", {}, h("th", { scope: "row" }, truth), ...cells);
}
