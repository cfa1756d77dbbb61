/** The service's API: calls, problem documents, the stream of events, and the key. */

const KEY = "classmith-key";
const FIRST_WAIT_MS = 1000, LONGEST_WAIT_MS = 15_000;
const MOST_REPEATS = 3, LONGEST_PATIENCE_MS = 60_000;
const remembered = { key: "" }; // where the browser allows no storage

/**
 * What the service said was wrong: its own text, and the places in the request that it names. `retryAfterMs`: when to
 * ask again, where it is too busy; NaN where it did not say.
 */
export class Problem extends Error {
  constructor({ status = 0, title = "", detail = "", errors = [] }, retryAfterMs = NaN) {
    super(detail || title);
    this.status = status;
    this.errors = errors;
    this.retryAfterMs = retryAfterMs;
  }
}

export function key() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return remembered.key;
  }
}

export function setKey(value) {
  remembered.key = value;
  try {
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
  } catch {
    // kept in memory only
  }
}

/** The response to a call; raises Problem where it is none of success. Addresses are relative to the page's. */
export async function call(method, path, { body, headers = {}, signal, asksForKey = true } = {}) {
  const sent = key() ? { ...headers, Authorization: `Bearer ${key()}` } : headers;
  let response;
  try {
    response = await fetch(path, { method, body, headers: sent, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ title: "The service does not answer; check that it runs, and try again." });
  }
  if (response.ok) return response;
  const problem = await problemOf(response);
  if (response.status === 401 && asksForKey) document.dispatchEvent(new CustomEvent("keyneeded", { detail: problem }));
  throw problem;
}

async function problemOf(response) {
  const retryAfterMs = 1000 * Number(response.headers.get("Retry-After") ?? NaN);
  try {
    return new Problem(await response.json(), retryAfterMs);
  } catch {
    const title = `The service answered ${response.status}; try again later.`;
    return new Problem({ status: response.status, title }, retryAfterMs);
  }
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** What `ask` gives, which is asked again a few times where the service is too busy, each time when it said. */
async function patiently(ask) {
  for (let nRepeats = 0; ; nRepeats++) {
    try {
      return await ask();
    } catch (problem) {
      if (nRepeats === MOST_REPEATS || !(problem.retryAfterMs <= LONGEST_PATIENCE_MS)) throw problem;
      await pause(problem.retryAfterMs);
    }
  }
}

const json = async (response) => (await response).json();
const addressOf = (id) => `tasks/${encodeURIComponent(id)}`;

/** Make a task; the answer comes at once, and `events` tells how it goes on. */
export function createTask(task) {
  const headers = { "Content-Type": "application/json", Prefer: "respond-async" };
  return json(call("POST", "tasks", { body: JSON.stringify(task), headers }));
}

export const getTask = (id, signal) => json(call("GET", addressOf(id), { signal }));
export const deleteTask = (id) => call("DELETE", addressOf(id));
export const getAdaptation = (id, signal) => json(call("GET", `${addressOf(id)}/adaptation`, { signal }));
export const getModel = async (id) => (await call("GET", `${addressOf(id)}/model.onnx`)).blob();

/** What classifiers can be made by; without a key that the service asks for, an error and no more. */
export const listMetaModels = async () => (await json(call("GET", "meta-models", { asksForKey: false }))).meta_models;

/** One page of tasks; `next`: as the page before gives it, of which the query counts. */
export function listTasks(next, signal) {
  return json(call("GET", `tasks${next ? next.slice(next.indexOf("?")) : "?limit=100"}`, { signal }));
}

/** Answers for several images, in their order; a service that is too busy is given time. */
export async function predict(id, files, signal) {
  const body = new FormData();
  for (const file of files) body.append("image", file, "image");
  return (await json(patiently(() => call("POST", `${addressOf(id)}/predict`, { body, signal })))).predictions;
}

/** What carried the decision on one image. */
export function explain(id, file, signal) {
  const headers = { "Content-Type": file.type || "image/png" };
  return json(call("POST", `${addressOf(id)}/explain`, { body: file, headers, signal }));
}

/**
 * The task at each change, as `{event, data}`, until it is finished or deleted. A stream that breaks, or cannot be had,
 * is asked for again, less and less often; only what the service refuses (4xx) is raised.
 */
export async function* events(id, signal) {
  let waitMs = FIRST_WAIT_MS;
  for (;;) {
    let last = "";
    try {
      for await (const found of stream(`${addressOf(id)}/events`, signal)) {
        last = found.event;
        waitMs = FIRST_WAIT_MS;
        yield found;
      }
    } catch (error) {
      const isRefused = error.status >= 400 && error.status < 500 && error.status !== 429;
      if (error.name === "AbortError" || isRefused) throw error;
    }
    if (["ready", "failed", "deleted"].includes(last)) return;
    await pause(waitMs);
    waitMs = Math.min(2 * waitMs, LONGEST_WAIT_MS);
  }
}

async function* stream(path, signal) {
  const response = await call("GET", path, { signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (text + value).split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const found = parseEvent(block);
      if (found) yield found;
    }
  }
}

function parseEvent(block) {
  const fields = Object.fromEntries(block.split("\n").map((line) => line.split(/: ?(.*)/s, 2)));
  return fields.data ? { event: fields.event, data: JSON.parse(fields.data) } : null;
}

/** Which calls this service has beyond the first version's, and whether it asks for keys; by its OpenAPI document. */
export async function features() {
  try {
    const document = await json(call("GET", "openapi.json"));
    const has = (path) => Object.hasOwn(document.paths, path);
    return {
      explain: has("/tasks/{task_id}/explain"),
      adaptation: has("/tasks/{task_id}/adaptation"),
      keys: Boolean(document.components?.securitySchemes),
    };
  } catch {
    return { explain: false, adaptation: false, keys: false };
  }
}
