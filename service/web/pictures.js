/** A zone that holds images, as thumbnails that can be taken out again. */

import { announce, copyOf, freshId, h, plural, showError } from "./dom.js";
import { acceptFiles } from "./zones.js";

/**
 * Fill `zone`; `owner()` names what the images are of. `take(sorted)` gets what is dropped and calls `add` with the
 * files it wants here; `onChange` is called after each change.
 */
export function pictures(zone, { owner, onChange, pasteArea, take = null }) {
  zone.append(copyOf("pictures-template"));
  const [list, hint, clear, error] = [".thumbs", ".drop-hint", ".clear", ".error"].map((s) => zone.querySelector(s));
  error.id = freshId("error");
  for (const pick of zone.querySelectorAll(".pick")) {
    const [input, label] = pick.children;
    input.id = label.htmlFor = freshId("pick");
    input.setAttribute("aria-describedby", error.id);
  }
  let shown = [];

  function render() {
    list.hidden = clear.hidden = !shown.length;
    hint.hidden = shown.length > 0;
    onChange();
  }

  function remove(image) {
    const at = shown.indexOf(image);
    shown.splice(at, 1);
    image.item.remove();
    URL.revokeObjectURL(image.url);
    showError(error, "");
    (shown[Math.min(at, shown.length - 1)]?.item ?? zone).querySelector("button, input").focus();
    render();
  }

  function add(files) {
    const added = files.map((file) => thumbnail(file, remove));
    shown.push(...added);
    list.append(...added.map(({ item }) => item));
    showError(error, "");
    if (files.length) announce(`${plural(files.length, "image")} added to ${owner()}`);
    render();
  }

  function empty() {
    for (const { item, url } of shown) {
      item.remove();
      URL.revokeObjectURL(url);
    }
    shown = [];
    showError(error, "");
    render();
  }

  clear.addEventListener("click", () => {
    empty();
    zone.querySelector("input").focus();
  });
  const addAll = (found) => add(found.images.map(({ file }) => file));
  acceptFiles(zone, take ?? addAll, (text) => showError(error, text), { paste: pasteArea ?? zone });
  return {
    add,
    empty,
    files: () => shown.map(({ file }) => file),
    clearProblems() {
      showError(error, "");
      for (const image of shown) showProblem(image, "");
    },
    /** The problem's text, beside the image at fault where one is; returns what to focus. */
    showProblem(text, index = null) {
      const image = shown[index];
      if (image) showProblem(image, text);
      showError(error, image ? `${image.file.name}: ${text}` : text);
      return image ? image.item.querySelector("button") : zone.querySelector("input");
    },
  };
}

function thumbnail(file, remove) {
  const image = { file, url: URL.createObjectURL(file) };
  const picture = h("img", { src: image.url, alt: file.name, title: file.name, loading: "lazy", decoding: "async" });
  picture.addEventListener("error", () => picture.classList.add("unreadable"));
  const button = h("button", { type: "button", "aria-label": `Remove ${file.name}`, onclick: () => remove(image) }, "×");
  image.item = h("li", {}, picture, button);
  return image;
}

function showProblem({ item }, text) {
  item.classList.toggle("at-fault", Boolean(text));
  item.title = text;
}
