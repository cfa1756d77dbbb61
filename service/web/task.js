/** The view of one task: how it is made, then what it can do. */

import { adaptationTable } from "./adaptation.js";
import { Problem, deleteTask, events, getAdaptation, getModel, getTask } from "./api.js";
import { announce, byId, confirmed, copyOf, duration, h, moment, partsOf, plural, showError, size, titleOf } from "./dom.js";
import { snippets } from "./snippets.js";
import { setUpTrying } from "./tryout.js";

const STEPS = [["queued", "In the queue"], ["generating", "Writing the network"], ["ready", "Ready"]];
const ID = /^[0-9a-f]{32}$/;
const STATES = { queued: "in the queue", generating: "being made", ready: "ready", failed: "failed" };

/** Show the task of that id until `signal` ends it; `context`: `{features, examples, known, gone}`. */
export async function showTask(id, context, signal) {
  const root = byId("task");
  root.replaceChildren(copyOf("task-template"));
  const parts = partsOf(root);
  parts.title.textContent = "Classifier";
  try {
    // not asked for: `tasks/..` would be the page itself
    if (!ID.test(id)) throw new Problem({ title: "There is no such classifier; check the address." });
    const task = takeKnown(context, id) ?? (await getTask(id, signal));
    render(parts, task, context);
    const finished = ["ready", "failed"].includes(task.state) ? task : await follow(parts, task, context, signal);
    if (finished?.state === "ready") await showReady(parts, finished, context, signal);
  } catch (error) {
    if (error.name === "AbortError") return;
    parts.progress.hidden = true;
    showError(parts.failure, error.message);
    if (!(error instanceof Problem)) throw error;
  }
}

/** The task that was just made, once: later its state may be another. */
function takeKnown(context, id) {
  const { known } = context;
  context.known = null;
  return known?.id === id ? known : null;
}

async function follow(parts, task, context, signal) {
  let last = task;
  for await (const { event, data } of events(task.id, signal)) {
    if (event === "deleted") {
      throw new Problem({ title: "This classifier was deleted while it was being made." });
    }
    last = data;
    render(parts, last, context);
    announce(`The classifier is ${STATES[last.state] ?? last.state}`);
  }
  return last;
}

function render(parts, task, { gone }) {
  const names = task.classes.map(({ name }) => name);
  parts.title.textContent = titleOf(names);
  document.title = `${titleOf(names)} – Classmith`;
  parts.facts.replaceChildren(...factsOf(task));
  parts.notes.replaceChildren(...(task.notes ?? []).map((note) => h("li", {}, note)));
  parts.notes.hidden = !task.notes?.length;
  parts.actions.replaceChildren(...actionsOf(parts, task, gone));
  parts.classes.replaceChildren(...task.classes.map(classLine));
  showError(parts.failure, task.state === "failed" ? task.error ?? "The classifier could not be made." : "");
  showProgress(parts.progress, task.state);
}

function factsOf(task) {
  const facts = [
    plural(task.classes.length, "class", "classes"),
    task.meta_model && `by ${task.meta_model}`,
    task.generate_ms != null && `written in ${duration(task.generate_ms)}`,
    task.bytes != null && size(task.bytes),
    moment(task.created_at),
  ];
  const badge = h("span", { class: `badge ${task.state}` }, STATES[task.state] ?? task.state);
  return [badge, ...facts.filter(Boolean).map((fact) => h("span", {}, fact)), h("code", { title: "Task id" }, task.id)];
}

function actionsOf(parts, task, gone) {
  const remove = h("button", { type: "button", class: "quiet", onclick: () => removeTask(parts, task, gone) }, "Delete");
  if (task.state === "failed") return [h("a", { href: "#/" }, "Back to the form"), remove]; // it keeps what was given
  if (task.state !== "ready") return [remove];
  const download = h("button", { type: "button", onclick: () => downloadModel(parts, task) }, "Download model.onnx");
  return [download, remove];
}

function classLine({ name, description, n_images: nImages }) {
  const text = h("td", { class: description ? "" : "hint" }, description || "none");
  return h("tr", {}, h("th", { scope: "row" }, name), text, h("td", { class: "number" }, String(nImages)));
}

function showProgress(panel, state) {
  const reached = STEPS.findIndex(([name]) => name === state);
  panel.hidden = state === "ready" || state === "failed";
  panel.querySelector(".steps").replaceChildren(
    ...STEPS.map(([, text], i) =>
      h("li", { class: i < reached ? "done" : "", "aria-current": i === reached ? "step" : null }, text),
    ),
  );
}

async function showReady(parts, task, context, signal) {
  const features = await context.features;
  setUpTrying(parts, task, { ...context, features, signal });
  parts.snippets.replaceChildren(...snippets(task.id, features));
  parts.ready.hidden = false;
  if (features.adaptation) await showAdaptation(parts, task, signal);
}

/** The plot where this task has one; a service that does not offer it says so with these statuses. */
async function showAdaptation(parts, task, signal) {
  try {
    const { layers } = await getAdaptation(task.id, signal);
    parts.layers.replaceChildren(adaptationTable(layers));
    parts.adaptation.hidden = !layers.length;
  } catch (problem) {
    if (problem.name === "AbortError") throw problem;
    if ([404, 405, 422].includes(problem.status)) return;
    parts.layers.replaceChildren(h("p", { class: "error" }, problem.message));
    parts.adaptation.hidden = false;
  }
}

async function downloadModel(parts, task) {
  showError(parts.failure, "");
  try {
    const url = URL.createObjectURL(await getModel(task.id));
    h("a", { href: url, download: "model.onnx" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
    announce("model.onnx downloaded");
  } catch (problem) {
    showError(parts.failure, problem.message);
  }
}

async function removeTask(parts, task, gone) {
  if (!(await askToDelete(task))) return;
  try {
    await deleteTask(task.id);
    gone();
  } catch (problem) {
    showError(parts.failure, problem.message);
  }
}

/** True where the user wants this task deleted. */
export function askToDelete(task) {
  const names = titleOf(task.classes.map(({ name }) => name));
  return confirmed("Delete this classifier?", `${names}: the classifier and everything kept of it will be gone.`, "Delete");
}
