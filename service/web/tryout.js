/** Images to try a classifier on: asked in batches, each answer shown as it comes, a failure beside its own image. */

import { predict } from "./api.js";
import { answerCard } from "./answer.js";
import { matrixOf } from "./confusion.js";
import { announce, percent, plural, showError } from "./dom.js";
import { exampleWith, queriesOf } from "./examples.js";
import { acceptFiles } from "./zones.js";

const MAX_BATCH = 32, MAX_BATCH_BYTES = 16_000_000;
const N_SHOWN = 12;
const PLACE = /^images\[(\d+)\]/;
const FILTERS = {
  all: () => true,
  wrong: (item) => item.truth && item.answer && !item.answer.abstain && item.answer.label !== item.truth,
  unknown: (item) => item.answer?.abstain,
};

/** Bring the section to life for one task; `context`: `{features, examples, signal}`. */
export function setUpTrying(parts, task, context) {
  const state = { parts, task, context, items: [], nShown: N_SHOWN, truthOf: truthByFolder(task) };
  const refuse = (text) => showError(parts["try-error"], text);
  const take = (found) => classify(state, found);
  acceptFiles(parts.zone, take, refuse, { paste: document, signal: context.signal });
  parts["answers-head"].querySelector("select").addEventListener("change", () => render(state));
  parts.clear.addEventListener("click", () => {
    for (const { url } of state.items.splice(0)) URL.revokeObjectURL(url);
    render(state);
    parts.zone.querySelector("input").focus();
  });
  parts.more.addEventListener("click", () => {
    state.nShown += N_SHOWN;
    render(state);
  });
  offerExample(state);
}

async function offerExample(state) {
  const { parts, task, context } = state;
  const names = task.classes.map(({ name }) => name);
  const example = exampleWith(names, await context.examples);
  parts.examples.hidden = !example;
  parts.examples.addEventListener("click", () => tryExample(state, example, names));
}

async function tryExample(state, example, names) {
  try {
    await classify(state, { images: await queriesOf(example, names), nLeftOut: 0 });
  } catch (error) {
    if (error.name !== "AbortError") showError(state.parts["try-error"], error.message);
  }
}

/** A folder's name -> the class it means, or null: the one of just that name, else the only one of it in any case. */
function truthByFolder(task) {
  const names = new Set(task.classes.map(({ name }) => name));
  const alike = Map.groupBy(names, (name) => name.toLowerCase());
  return (folder) => {
    const name = folder.normalize("NFC").trim().replace(/\s+/g, " ");
    if (names.has(name)) return name;
    const found = alike.get(name.toLowerCase()) ?? [];
    return found.length === 1 ? found[0] : null;
  };
}

async function classify(state, { images, nLeftOut }) {
  const { parts, context } = state;
  const items = images.map(({ file, folder }) => ({
    file,
    url: URL.createObjectURL(file),
    truth: state.truthOf(folder),
  }));
  state.items.unshift(...items);
  showError(parts["try-error"], leftOutText(items.length, nLeftOut));
  if (items.length) parts.tally.textContent = `Classifying ${plural(items.length, "image")} …`;
  for (const batch of batchesOf(items)) {
    await ask(state, batch);
    if (context.signal.aborted) return;
    render(state);
  }
  announce(parts.tally.textContent);
}

const leftOutText = (nItems, nLeftOut) =>
  nItems ? "" : `No image in that${nLeftOut ? `; ${plural(nLeftOut, "other file")} left out` : ""}. JPEG, PNG and WebP are taken.`;

function* batchesOf(items) {
  let batch = [], nBytes = 0;
  for (const item of items) {
    if (batch.length && (batch.length === MAX_BATCH || nBytes + item.file.size > MAX_BATCH_BYTES)) {
      yield batch;
      batch = [];
      nBytes = 0;
    }
    batch.push(item);
    nBytes += item.file.size;
  }
  if (batch.length) yield batch;
}

/** Answers for a batch; an image that the service refuses is left out of the next try. */
async function ask({ task, context }, batch) {
  let asked = batch;
  while (asked.length) {
    try {
      const answers = await predict(task.id, asked.map(({ file }) => file), context.signal);
      asked.forEach((item, i) => (item.answer = answers[i]));
      return;
    } catch (problem) {
      if (problem.name === "AbortError") throw problem;
      const fault = Number(PLACE.exec(problem.errors?.[0]?.where)?.[1] ?? NaN);
      const failed = asked[fault] ? [asked[fault]] : asked;
      for (const item of failed) item.problem = problem.message;
      asked = asked.filter((item) => !failed.includes(item));
    }
  }
}

function render(state) {
  const { parts, items, task, context } = state;
  const done = items.filter((item) => item.answer || item.problem);
  const chosen = done.filter(FILTERS[parts["answers-head"].querySelector("select").value]);
  const cards = chosen.slice(0, state.nShown).map((item) => (item.card ??= answerCard(item, task, context)));
  parts.answers.replaceChildren(...cards);
  parts.more.hidden = chosen.length <= state.nShown;
  parts["answers-head"].hidden = !items.length;
  const under = `Classifying ${plural(items.length, "image")}: ${done.length} answered …`;
  parts.tally.textContent = done.length < items.length ? under : tallyOf(done);
  const labelled = done.filter((item) => item.truth && item.answer);
  parts.matrix.replaceChildren(...(labelled.length ? [matrixOf(task.classes.map(({ name }) => name), labelled)] : []));
}

function tallyOf(done) {
  if (!done.length) return "";
  const answered = done.filter(({ answer }) => answer);
  const nUnknown = answered.filter(({ answer }) => answer.abstain).length;
  const nFailed = done.length - answered.length;
  const parts = [plural(done.length, "image")];
  const labelled = answered.filter(({ truth, answer }) => truth && !answer.abstain);
  if (labelled.length) {
    const nRight = labelled.filter(({ truth, answer }) => answer.label === truth).length;
    parts.push(`${nRight} right of ${labelled.length} answered (${percent(nRight / labelled.length)})`);
  }
  if (nUnknown) parts.push(`${nUnknown} “I don’t know”`);
  if (nFailed) parts.push(`${nFailed} not classified`);
  return parts.join(" · ");
}
