/** The answer for one image: what it is, or that the classifier does not know, and the classes by rank. */

import { explain } from "./api.js";
import { h, percent } from "./dom.js";
import { explanation } from "./explain.js";

const N_RANKED = 3;

/** A list item for an image that was asked about; `item`: `{file, url, truth, answer | problem}`. */
export function answerCard(item, task, context) {
  const picture = h("div", { class: "picture" }, h("img", { src: item.url, alt: item.file.name, decoding: "async" }));
  const text = item.answer ? decisionOf(item) : [h("p", { class: "error" }, item.problem)];
  const card = h("li", { class: `answer ${kindOf(item)}` }, picture, h("div", { class: "decision" }, ...text));
  if (item.answer && context.features.explain) card.append(why(item, task, context, picture));
  return card;
}

function kindOf({ answer, truth }) {
  if (!answer) return "failed";
  if (answer.abstain) return "unknown";
  return truth && truth !== answer.label ? "wrong" : "known";
}

function decisionOf({ answer, truth, file }) {
  const share = percent(answer.probability);
  const ranked = Object.entries(answer.probabilities).sort(([, a], [, b]) => b - a);
  const label = answer.abstain
    ? [h("strong", {}, "I don’t know"), " ", h("span", { class: "hint" }, `closest: ${answer.label}, ${share}`)]
    : [h("strong", {}, answer.label), ` ${share}`];
  return [
    h("p", { class: "verdict" }, ...label),
    truth && h("p", { class: "truth" }, truthText(answer, truth)),
    bars(ranked.slice(0, N_RANKED)),
    ranked.length > N_RANKED && others(ranked.slice(N_RANKED)),
    h("p", { class: "hint file" }, file.name),
  ];
}

function truthText(answer, truth) {
  if (answer.abstain) return `It is ${truth}`;
  return answer.label === truth ? "✓ right" : `✗ wrong: it is ${truth}`;
}

function bars(ranked) {
  return h("ol", { class: "bars" }, ...ranked.map(([name, probability]) => {
    const fill = h("span", { class: "fill" });
    fill.style.width = `${100 * probability}%`; // by script: the policy forbids style attributes
    const track = h("span", { class: "track", "aria-hidden": "true" }, fill);
    return h("li", {}, h("span", { class: "name" }, name), track, h("span", { class: "number" }, percent(probability)));
  }));
}

function others(ranked) {
  const details = h("details", { class: "others" }, h("summary", {}, `All ${ranked.length + N_RANKED} classes`));
  details.addEventListener("toggle", () => details.append(bars(ranked)), { once: true });
  return details;
}

/** A button that asks what carried the decision, and shows it. */
function why({ file, answer }, task, { signal }, picture) {
  const shown = h("div", { class: "why", role: "status" });
  const button = h("button", { type: "button", class: "quiet" }, "Why?");
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      shown.replaceChildren(...explanation(await explain(task.id, file, signal), task, picture));
      button.remove();
    } catch (problem) {
      button.disabled = false;
      shown.replaceChildren(h("p", { class: "error" }, problem.message));
    }
  });
  button.setAttribute("aria-label", `Why ${answer.abstain ? "“I don’t know”" : answer.label}?`);
  return h("div", { class: "explain" }, button, shown);
}
