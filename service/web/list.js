/** The view of all tasks: searched as one types, deleted in place. */

import { deleteTask, listTasks } from "./api.js";
import { announce, byId, duration, h, moment, plural, showError, titleOf } from "./dom.js";
import { askToDelete } from "./task.js";

/** Show the caller's tasks until `signal` ends it. */
export async function showTasks(signal) {
  const state = { tasks: [], next: null, loading: null, signal };
  byId("search").oninput = () => search(state);
  byId("more").onclick = () => load(state);
  showError(byId("list-error"), "");
  byId("tasks").replaceChildren();
  byId("list-state").textContent = "Loading …";
  if (await load(state)) await search(state); // what was typed before still stands there
}

/** The next page, asked for once by all who want it at a time; false where it cannot be had. */
function load(state) {
  state.loading ??= loadNext(state).finally(() => (state.loading = null));
  return state.loading;
}

async function loadNext(state) {
  try {
    const page = await listTasks(state.next, state.signal);
    state.tasks.push(...page.tasks);
    state.next = page.next;
    showError(byId("list-error"), "");
    render(state);
    return true;
  } catch (problem) {
    if (problem.name === "AbortError") return false;
    byId("list-state").textContent = "";
    showError(byId("list-error"), problem.message);
    return false;
  }
}

/** What is here is shown at once; pages not loaded yet are searched, too, as they come. */
async function search(state) {
  render(state);
  const asked = byId("search").value;
  while (asked && state.next && asked === byId("search").value && (await load(state)));
}

function render(state) {
  const { tasks, next } = state;
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = tasks.filter((task) => words.every((word) => textOf(task).includes(word)));
  byId("tasks").replaceChildren(...found.map((task) => line(state, task)));
  byId("more").hidden = !next;
  byId("list-state").textContent = summaryOf(found.length, tasks.length, words.length > 0, next);
}

function summaryOf(nFound, nTasks, isSearch, next) {
  if (!nTasks) return "No classifier yet. Make one: it takes a moment.";
  const all = `${plural(nTasks, "classifier")}${next ? " so far" : ""}`;
  return isSearch ? `${nFound} of ${all}` : all;
}

const textOf = (task) =>
  [task.id, task.meta_model, task.state, ...task.classes.map(({ name }) => name)].join(" ").toLowerCase();

function line(state, task) {
  const names = task.classes.map(({ name }) => name);
  const facts = [
    task.meta_model,
    plural(task.classes.length, "class", "classes"),
    task.generate_ms != null && duration(task.generate_ms),
    moment(task.created_at),
  ];
  const remove = h("button", { type: "button", class: "quiet", "aria-label": `Delete ${titleOf(names)}` }, "Delete");
  remove.addEventListener("click", () => removeTask(state, task));
  return h("li", { class: "task" },
    h("div", {},
      h("a", { href: `#/tasks/${task.id}` }, titleOf(names)),
      h("p", { class: "hint" },
        task.state !== "ready" && h("span", { class: `badge ${task.state}` }, task.state),
        facts.filter(Boolean).join(" · ")),
    ),
    remove);
}

async function removeTask(state, task) {
  if (!(await askToDelete(task))) return;
  try {
    await deleteTask(task.id);
    state.tasks.splice(state.tasks.indexOf(task), 1);
    showError(byId("list-error"), "");
    render(state);
    announce("Classifier deleted");
    byId("search").focus();
  } catch (problem) {
    showError(byId("list-error"), problem.message);
  }
}
