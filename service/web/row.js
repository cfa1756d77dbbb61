/** One class in the making: its name, its description, its images. */

import { copyOf, freshId, showError } from "./dom.js";
import { pictures } from "./pictures.js";

/** A row; `take(row, sorted)` gets the files it is offered, `remove(row)` is called by its button. */
export function classRow({ onChange, take, remove }) {
  const item = copyOf("row-template").firstElementChild;
  const element = item.firstElementChild;
  const [fields, errors] = ["field", "error"].map((kind) =>
    Object.fromEntries([...element.querySelectorAll(`[data-${kind}]`)].map((found) => [found.dataset[kind], found])),
  );
  connect(element, fields, errors);
  const zone = element.querySelector(".zone");
  const nameOf = () => fields.name.value.trim() || element.querySelector("h3").textContent;
  const shown = pictures(zone, {
    owner: nameOf,
    onChange,
    pasteArea: element,
    take: (found) => take(row, found),
  });
  element.addEventListener("input", (event) => {
    showError(errors[event.target.dataset.field] ?? errors.row, "", event.target);
    onChange();
  });
  element.querySelector(".remove").addEventListener("click", () => remove(row));

  const row = {
    element: item,
    pictures: shown,
    name: () => fields.name.value.trim(),
    isEmpty: () => !fields.name.value.trim() && !fields.description.value.trim() && !shown.files().length,
    value: () => ({ name: fields.name.value, description: fields.description.value }),
    fill({ name, description }) {
      if (name) fields.name.value = name;
      if (description) fields.description.value = description;
      onChange();
    },
    number(n) {
      element.querySelector("h3").textContent = `Class ${n}`;
      element.setAttribute("aria-label", `Class ${n}`);
      element.querySelector(".remove").textContent = `Remove class ${n}`;
      zone.setAttribute("aria-label", `Images of class ${n}`);
    },
    focus: () => fields.name.focus(),
    clearProblems() {
      showError(errors.name, "", fields.name);
      showError(errors.description, "", fields.description);
      showError(errors.row, "");
      shown.clearProblems();
    },
    /** The problem's text at the part of the class that it names; returns what to focus. */
    showProblem(text, part, index) {
      if (part === "images") return shown.showProblem(text, index);
      showError(errors[part] ?? errors.row, text, fields[part]);
      return fields[part] ?? fields.name;
    },
  };
  return row;
}

function connect(element, fields, errors) {
  for (const [name, field] of Object.entries(fields)) {
    field.id = element.querySelector(`[data-for="${name}"]`).htmlFor = freshId(name);
    errors[name].id = freshId("error");
    field.setAttribute("aria-describedby", errors[name].id);
  }
}
