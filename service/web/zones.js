/** Places that take files: dropped, chosen, or pasted while the focus is in them. */

import { fromInput, fromTransfer, sorted } from "./files.js";

/**
 * Give what `zone` is offered to `take`, sorted (see files.js), and what is wrong with it to `refuse`, as a text.
 * `paste`: where it may be pasted; `inputs`: the file inputs that belong to it; `signal` ends it all.
 */
export function acceptFiles(zone, take, refuse, options = {}) {
  const { paste = zone, inputs = zone.querySelectorAll('input[type="file"]'), signal } = options;
  const handle = async (files) => {
    try {
      await take(await sorted(await files));
    } catch (error) {
      if (error.name !== "AbortError") refuse(error.message);
    }
  };
  showDragging(zone);
  zone.addEventListener("drop", (event) => {
    if (event.defaultPrevented) return; // a zone inside this one has it
    event.preventDefault();
    handle(fromTransfer(event.dataTransfer));
  });
  for (const input of inputs) {
    input.addEventListener("change", () => handle(fromInput(input)));
  }
  const onPaste = (event) => {
    if (isText(event) || event.defaultPrevented || zone.closest("[hidden]")) return;
    event.preventDefault();
    handle(fromTransfer(event.clipboardData));
  };
  paste.addEventListener("paste", onPaste, { signal });
}

/**
 * True where what is pasted is for the browser to put into a field. Word, Excel and others copy text with a picture of
 * it, and formatted; a file manager copies a file with its bare name as text, and means the file.
 */
function isText({ target, clipboardData: { files, types } }) {
  const isField = target.closest?.("input:not([type=file]), textarea");
  const isFormatted = types.includes("text/plain") && (types.includes("text/html") || types.includes("text/rtf"));
  return !files.length || (isField && isFormatted);
}

function showDragging(zone) {
  const over = (isOver) => zone.classList.toggle("over", isOver);
  zone.addEventListener("dragover", (event) => {
    event.preventDefault();
    over(true);
  });
  zone.addEventListener("dragleave", (event) => over(zone.contains(event.relatedTarget)));
  zone.addEventListener("drop", () => over(false));
}

/** A file dropped beside all zones must not take the place of the page. */
export function keepStrayDropsOut() {
  for (const name of ["dragover", "drop"]) {
    window.addEventListener(name, (event) => {
      if ([...event.dataTransfer.types].includes("Files")) event.preventDefault();
    });
  }
}
