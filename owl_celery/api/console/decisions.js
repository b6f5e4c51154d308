// The latest decisions, newest first: where each task went, why, and how it went there.

import { el, nameOf, setAttribute, setText } from "./dom.js";
import { clock, count, seconds, shortModel } from "./format.js";

const SHOWN = 40;
const KEPT = 5_000;
// The list moves at most this often, however many tasks finish.
const PAUSE_MS = 600;
const RATE_MS = 10_000;

export const keyOf = (item) => `${item.task_id}|${item.attempt}|${item.finished_at}`;

const STATES = {
  failure: "failed",
  lost: "lost with its worker",
  retry: "will be tried again",
  revoked: "revoked",
};

const HOW = { celery: "Celery's own route", user: "queue set by the caller" };

/** What the task was expected to take on each GPU model, the chosen one marked. */
function predictions(item) {
  const known = (item.alternatives ?? []).filter(
    (other) => typeof other.predicted_seconds === "number",
  );
  const chosen = { gpu_model: item.gpu_model, predicted_seconds: item.predicted_seconds };
  if (!known.some((other) => other.gpu_model === item.gpu_model) && item.gpu_model)
    known.push(chosen);
  known.sort((a, b) => (a.predicted_seconds ?? Infinity) - (b.predicted_seconds ?? Infinity));
  return el(
    "span",
    { class: "predictions" },
    ...known.slice(0, 5).map((other) => {
      const isChosen = other.gpu_model === item.gpu_model;
      const time =
        typeof other.predicted_seconds === "number"
          ? `\u00a0${seconds(other.predicted_seconds)}`
          : "";
      return el(isChosen ? "strong" : "span", {}, nameOf(shortModel(other.gpu_model)), time);
    }),
  );
}

function makeItem(item) {
  const isGood = item.state === "success";
  const waited =
    typeof item.wait_seconds === "number" ? `waited ${seconds(item.wait_seconds)}` : "";
  return el(
    "li",
    { class: isGood ? null : "bad" },
    el(
      "p",
      { class: "what" },
      el("time", { datetime: item.finished_at }, clock(Date.parse(item.finished_at))),
      nameOf(item.task_type),
    ),
    el(
      "p",
      { class: "took" },
      el("span", { class: "unseen" }, "took "),
      seconds(item.service_seconds),
    ),
    el(
      "p",
      { class: "to" },
      el("span", {}, "→ ", nameOf(item.queue || "default queue")),
      predictions(item),
    ),
    el("p", { class: "waited" }, waited),
    el(
      "p",
      { class: "why" },
      item.explored ? el("span", { class: "tag explored" }, "explored") : null,
      HOW[item.algorithm] ? el("span", { class: "tag" }, HOW[item.algorithm]) : null,
      isGood
        ? null
        : el(
            "span",
            { class: "tag failed" },
            `${STATES[item.state] ?? item.state}${item.error ? `: ${item.error}` : ""}`,
          ),
      el("bdi", {}, item.reason ?? ""),
    ),
  );
}

export function makeDecisions(list, sumNode, pauseButton) {
  /** Everything seen lately, oldest first: the live learning curve is drawn from it too. */
  const recent = [];
  const seen = new Set();
  let fresh = [];
  let isPaused = false;
  let timer = null;
  const arrivals = [];
  const empty = el(
    "li",
    { class: "empty" },
    "No task has finished yet. Send some by apply_async or delay: each appears here as it ends, with the reason for where it went.",
  );

  function take(item) {
    const key = keyOf(item);
    if (seen.has(key)) return false;
    seen.add(key);
    recent.push(item);
    if (recent.length > KEPT) seen.delete(keyOf(recent.shift()));
    return true;
  }

  function draw() {
    timer = null;
    const rate =
      (arrivals.filter((at) => at > performance.now() - RATE_MS).length * 1000) / RATE_MS;
    if (isPaused) {
      setText(sumNode, `paused, ${count(fresh.length)} new`);
      return;
    }
    setText(sumNode, rate >= 0.1 ? `${rate.toFixed(rate < 10 ? 1 : 0)} finish each second` : "");
    if (!fresh.length) return;
    empty.remove();
    list.prepend(...fresh.slice(-SHOWN).reverse().map(makeItem));
    fresh = [];
    while (list.childElementCount > SHOWN) list.lastElementChild.remove();
  }

  function later() {
    timer ??= setTimeout(draw, PAUSE_MS);
  }

  pauseButton.addEventListener("click", () => {
    isPaused = !isPaused;
    setAttribute(pauseButton, "aria-pressed", String(isPaused));
    draw();
  });

  return {
    recent,
    add(item) {
      if (!take(item)) return;
      arrivals.push(performance.now());
      if (arrivals.length > 2_000) arrivals.shift();
      fresh.push(item);
      if (fresh.length > KEPT) fresh.shift();
      later();
    },
    /** Take what finished before the page was open; `items` come newest first. */
    backfill(items) {
      const added = [...items].reverse().filter(take);
      if (!added.length) {
        if (!list.childElementCount) list.append(empty);
        return;
      }
      recent.sort((a, b) => Date.parse(a.finished_at) - Date.parse(b.finished_at));
      fresh = [...fresh, ...added].sort(
        (a, b) => Date.parse(a.finished_at) - Date.parse(b.finished_at),
      );
      draw();
    },
    /** Once a second, so that the rate falls when nothing comes. */
    tick: draw,
  };
}
