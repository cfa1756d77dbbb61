/** The same call from a shell and from Python, to copy. */

import { announce, freshId, h } from "./dom.js";

/** A block for each language. */
export function snippets(id, { keys }) {
  const address = new URL(`tasks/${id}`, document.baseURI).href;
  return [block("curl", curlCall(address, keys)), block("Python", pythonCall(address, keys))];
}

/** One image, as the body itself: the fastest way. */
export function curlCall(address, keys) {
  const key = keys ? ` \\\n  -H "Authorization: Bearer $CLASSMITH_API_KEY"` : "";
  return `curl ${address}/predict${key} \\\n  -H "Content-Type: image/jpeg" --data-binary @photo.jpg`;
}

export function pythonCall(address, keys) {
  const headers = keys
    ? `{"Content-Type": "image/jpeg", "Authorization": f"Bearer {os.environ['CLASSMITH_API_KEY']}"}`
    : `{"Content-Type": "image/jpeg"}`;
  return `${keys ? "import os\n" : ""}from pathlib import Path

import httpx

answer = httpx.post(
    "${address}/predict",
    content=Path("photo.jpg").read_bytes(),
    headers=${headers},
).raise_for_status()
for prediction in answer.json()["predictions"]:
    print(prediction["label"], prediction["probability"], prediction["abstain"])
`;
}

function block(title, text) {
  const id = freshId("snippet");
  const code = h("pre", { tabindex: "0", role: "region", "aria-labelledby": id }, h("code", {}, text));
  const button = h("button", { type: "button", class: "quiet", "aria-label": `Copy ${title}` }, "Copy");
  button.addEventListener("click", async () => {
    const isCopied = await copy(text, code);
    button.textContent = isCopied ? "Copied" : "Selected: press Ctrl+C";
    announce(button.textContent);
  });
  return h("section", { class: "snippet" }, h("div", { class: "heading" }, h("h3", { id }, title), button), code);
}

/** To the clipboard; where the browser does not allow it, the text is selected, for the user to copy. */
async function copy(text, element) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    getSelection().selectAllChildren(element);
    return false;
  }
}
