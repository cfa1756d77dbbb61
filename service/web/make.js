/** The view in which a task is put together and sent. */

import { createTask, listMetaModels } from "./api.js";
import { announce, byId, confirmed, h, plural, showError, size } from "./dom.js";
import { withFiles } from "./examples.js";
import { encoded } from "./files.js";
import { pictures } from "./pictures.js";
import { classRow } from "./row.js";
import { acceptFiles } from "./zones.js";

const PLACE = /^classes\[(\d+)\](?:\.(\w+)(?:\[(\d+)\])?)?/;
const UNLABELED_PLACE = /^unlabeled(?:\[(\d+)\])?/;

/** Bring the view to life. `made(task)` is called with each task the service takes. */
export function setUpMaking({ made, examples }) {
  const state = { rows: [], isSending: false, unlabeled: null };
  state.unlabeled = pictures(byId("unlabeled"), { owner: () => "the unlabelled ones", onChange: () => summarise(state) });
  addRow(state);
  addRow(state);
  byId("add-row").addEventListener("click", () => addRow(state).focus());
  byId("make-form").addEventListener("submit", (event) => {
    event.preventDefault();
    submit(state, made);
  });
  byId("generator").addEventListener("input", (event) => showError(byId("generator-error"), "", event.target));
  byId("generator").addEventListener("focus", offerMetaModels);
  acceptFiles(byId("many-zone"), (found) => takeMany(state, found), (text) => noteMany(text));
  acceptFiles(byId("make"), (found) => takeAnywhere(state, found), (text) => noteMany(text), { paste: document, inputs: [] });
  showExamples(state, examples);
}

/** Offer what the service has, when somebody looks; where that cannot be had, a name can still be typed. */
async function offerMetaModels() {
  const found = await listMetaModels().catch(() => []);
  const names = [{ name: "auto", summary: "" }, ...found];
  byId("generators").replaceChildren(...names.map((m) => h("option", { value: m.name, label: m.summary })));
}

function addRow(state) {
  const row = classRow({
    onChange: () => change(state),
    take: (target, found) => takeInRow(state, target, found),
    remove: (gone) => removeRow(state, gone),
  });
  state.rows.push(row);
  byId("rows").append(row.element);
  renumber(state);
  return row;
}

function change(state) {
  showError(byId("classes-error"), "");
  summarise(state);
}

function removeRow(state, row) {
  const at = state.rows.indexOf(row);
  row.pictures.empty();
  row.element.remove();
  state.rows.splice(at, 1);
  renumber(state);
  announce(`Class removed; ${plural(state.rows.length, "class", "classes")} left`);
  (state.rows[Math.min(at, state.rows.length - 1)] ?? byId("add-row")).focus();
}

function renumber(state) {
  state.rows.forEach((row, i) => row.number(i + 1));
  summarise(state);
}

function summarise(state) {
  const rows = state.rows.filter((row) => !row.isEmpty());
  const nImages = rows.reduce((n, row) => n + row.pictures.files().length, 0);
  const nDescribed = rows.filter((row) => row.value().description.trim()).length;
  const parts = [plural(rows.length, "class", "classes"), plural(nImages, "image"), plural(nDescribed, "description")];
  byId("summary").textContent = rows.length ? parts.join(" · ") : "";
}

/** A row takes the images; where descriptions come too, or several folders, it is a case for all rows. */
function takeInRow(state, row, found) {
  const folders = new Set(found.images.map(({ folder }) => folder));
  if (found.descriptions.length || folders.size > 1) return takeMany(state, found);
  row.pictures.add(found.images.map(({ file }) => file));
  const [folder] = folders;
  if (folder && !row.name()) row.fill({ name: folder });
}

/** Files that came beside every zone: folders are classes; single images go to the first class without any. */
function takeAnywhere(state, found) {
  const loose = found.images.filter(({ folder }) => !folder).map(({ file }) => file);
  if (loose.length) (state.rows.find((row) => !row.pictures.files().length) ?? addRow(state)).pictures.add(loose);
  const images = found.images.filter(({ folder }) => folder);
  if (!loose.length || images.length || found.descriptions.length || found.nLeftOut) takeMany(state, { ...found, images });
}

/** Each folder's images, and each description, to the class of that name. */
function takeMany(state, { images, descriptions, nLeftOut }) {
  const byFolder = Map.groupBy(images, ({ folder }) => folder);
  const nLoose = byFolder.get("")?.length ?? 0;
  byFolder.delete("");
  for (const { name, description } of descriptions) rowNamed(state, name).fill({ description });
  for (const [folder, found] of byFolder) rowNamed(state, folder).pictures.add(found.map(({ file }) => file));
  const names = new Set([...byFolder.keys(), ...descriptions.map(({ name }) => name)]);
  const added = [`${plural(names.size, "class", "classes")}: ${plural(images.length - nLoose, "image")}, ` +
    `${plural(descriptions.length, "description")}.`];
  if (nLoose) added.push(`${plural(nLoose, "image")} in no folder left out: a folder’s name is its class.`);
  if (nLeftOut) added.push(`${plural(nLeftOut, "other file")} left out.`);
  noteMany(added.join(" "));
}

function noteMany(text) {
  byId("many").open = true;
  byId("many-note").textContent = text;
}

/** The row of that name, an empty one, or a new one. */
function rowNamed(state, name) {
  const known = state.rows.find((row) => row.name() === name);
  if (known) return known;
  const row = state.rows.find((found) => found.isEmpty()) ?? addRow(state);
  row.fill({ name });
  return row;
}

async function showExamples(state, examples) {
  const all = await examples;
  byId("examples").replaceChildren(
    ...all.map((example) => h("button", { type: "button", onclick: () => load(state, example) }, ...faceOf(example))),
  );
  byId("examples").closest("section").hidden = !all.length;
}

/** What an example's button shows: an image of each of some classes, or some of its words, and its title. */
function faceOf({ title, classes }) {
  const images = classes.slice(0, 4).flatMap((c) => c.images.slice(0, 1));
  const words = classes.map(({ description }) => description).join(" ");
  const face = images.length
    ? images.map((name) => h("img", { src: `examples/${name}`, alt: "", width: 44, height: 44 }))
    : [h("span", { class: "words" }, words)];
  return [h("span", { class: "face", "aria-hidden": "true" }, ...face), h("span", {}, title)];
}

async function load(state, example) {
  const isBlank = state.rows.every((row) => row.isEmpty());
  const question = ["Replace what is there?", "The example takes the place of the classes on this page.", "Replace"];
  if (!isBlank && !(await confirmed(...question))) return;
  try {
    show(state, example, await withFiles(example.classes));
  } catch (problem) {
    showError(byId("make-error"), problem.message);
    byId("make-error").scrollIntoView({ block: "nearest" });
  }
}

function show(state, example, classes) {
  clearProblems(state);
  for (const row of state.rows.splice(0)) {
    row.pictures.empty();
    row.element.remove();
  }
  for (const { name, description, files } of classes) {
    const row = addRow(state);
    row.fill({ name, description });
    row.pictures.add(files);
  }
  announce(`${example.title}: ready to be made`);
  byId("make-button").focus({ preventScroll: true });
  byId("make-form").scrollIntoView({ block: "start" });
}

async function submit(state, made) {
  if (state.isSending) return;
  clearProblems(state);
  const rows = state.rows.filter((row) => !row.isEmpty());
  setSending(state, true, sendingText(rows));
  try {
    made(await createTask(await requestOf(state, rows)));
  } catch (problem) {
    showProblem(state, rows, problem);
  } finally {
    setSending(state, false, "");
  }
}

function setSending(state, isSending, text) {
  state.isSending = isSending;
  byId("make-button").setAttribute("aria-disabled", String(isSending));
  if (text) {
    byId("summary").textContent = text;
    announce(text);
  } else summarise(state);
}

function sendingText(rows) {
  const files = rows.flatMap((row) => row.pictures.files());
  const nBytes = files.reduce((sum, file) => sum + file.size, 0);
  return files.length ? `Sending ${plural(files.length, "image")} (${size(nBytes)}) …` : "Sending …";
}

async function requestOf(state, rows) {
  const classes = rows.map(async (row) => ({ ...row.value(), images: await encoded(row.pictures.files()) }));
  return {
    classes: await Promise.all(classes),
    unlabeled: await encoded(state.unlabeled.files()),
    generator: byId("generator").value.trim() || "auto",
  };
}

function clearProblems(state) {
  for (const row of state.rows) row.clearProblems();
  state.unlabeled.clearProblems();
  showError(byId("generator-error"), "", byId("generator"));
  for (const id of ["classes-error", "make-error"]) showError(byId(id), "");
}

/** The service's own words, beside what they are about; what they are about gets the focus. */
function showProblem(state, rows, problem) {
  const located = problem.errors?.length ? problem.errors : [{ where: "", detail: problem.message }];
  const shown = located.map(({ where, detail }) => placed(state, rows, where, detail));
  const first = shown.find(Boolean);
  announce(problem.message);
  first?.closest("details")?.setAttribute("open", "");
  first?.focus();
  first?.scrollIntoView({ block: "center" });
}

function placed(state, rows, where, text) {
  const [, row, part, index] = PLACE.exec(where) ?? [];
  if (rows[row]) return rows[row].showProblem(text, part, index === undefined ? null : Number(index));
  const unlabeled = UNLABELED_PLACE.exec(where);
  if (unlabeled) return state.unlabeled.showProblem(text, unlabeled[1] ? Number(unlabeled[1]) : null);
  if (where === "generator") {
    showError(byId("generator-error"), text, byId("generator"));
    return byId("generator");
  }
  if (where === "classes") {
    showError(byId("classes-error"), text);
    return rows[0]?.element.querySelector("input") ?? state.rows[0]?.element.querySelector("input");
  }
  showError(byId("make-error"), text);
  return null;
}
