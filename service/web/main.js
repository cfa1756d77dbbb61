/** The page: which view is shown, by the part of the address after `#`, and the key that the API may ask for. */

import { features as readFeatures, key, setKey } from "./api.js";
import { announce, byId, showError } from "./dom.js";
import { examples as readExamples } from "./examples.js";
import { showTasks } from "./list.js";
import { setUpMaking } from "./make.js";
import { showTask } from "./task.js";
import { keepStrayDropsOut } from "./zones.js";

const KEY = /^[\x21-\x7e]+$/, KEY_RULE = "A key is visible ASCII without spaces; copy it again, without quotes.";
const TITLES = { make: "Classmith", list: "Classifiers – Classmith", task: "Classifier – Classmith" };
const context = { features: readFeatures(), examples: readExamples(), known: null, gone: () => goTo("#/tasks") };
let shown = new AbortController();

function goTo(hash) {
  if (location.hash === hash) route();
  else location.hash = hash;
}

/** Show the view that the address names; what went on in the one before ends. */
async function route({ isFirst = false } = {}) {
  const [, place = "", id = ""] = (location.hash || "#/").split("/");
  if (location.hash && !location.hash.startsWith("#/")) return; // a place within the view
  shown.abort();
  shown = new AbortController();
  const view = place === "tasks" ? (id ? "task" : "list") : "make";
  for (const name of Object.keys(TITLES)) byId(name).hidden = name !== view;
  document.title = TITLES[view];
  markCurrent(view);
  const loading = view === "task" ? showTask(id, context, shown.signal) : view === "list" ? showTasks(shown.signal) : null;
  if (!isFirst) {
    scrollTo(0, 0);
    byId(view).querySelector("h1").focus({ preventScroll: true });
  }
  await loading;
}

function markCurrent(view) {
  for (const link of document.querySelectorAll("nav a")) {
    const target = { "#/": "make", "#/tasks": "list" }[link.getAttribute("href")];
    if (target === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

async function setUpKey() {
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    useKey(byId("key-field").value.trim());
  });
  byId("key-forget").addEventListener("click", () => useKey(""));
  document.addEventListener("keyneeded", ({ detail }) => {
    byId("key").hidden = false;
    askForKey(detail.message);
  });
  byId("key-field").value = key();
  byId("key").hidden = !(await context.features).keys;
}

function askForKey(text) {
  showError(byId("key-error"), text, byId("key-field"));
  byId("key-field").focus();
}

/** Keep the key for this tab, or none where it is empty; one that no header can carry is not kept. */
function useKey(value) {
  if (value && !KEY.test(value)) return askForKey(KEY_RULE);
  setKey(value);
  byId("key-field").value = value;
  showError(byId("key-error"), "", byId("key-field"));
  announce(value ? "Key kept for this tab" : "Key forgotten");
  if (byId("make").hidden) route();
}

function made(task) {
  context.known = task;
  goTo(`#/tasks/${task.id}`);
}

document.documentElement.classList.toggle("touch", navigator.maxTouchPoints > 0); // a camera is likely
keepStrayDropsOut();
setUpMaking({ made, examples: context.examples });
setUpKey();
addEventListener("hashchange", () => route());
route({ isFirst: true });
