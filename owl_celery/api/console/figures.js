// The row of figures at the top: is it working, and is it worth it.

import { el, setText, setAttribute } from "./dom.js";
import { backlog, count, percent, plural, seconds, UNKNOWN } from "./format.js";
import { makeSpark } from "./spark.js";

function makeFigure(label, spark) {
  const value = el("span", { class: "value" }, UNKNOWN);
  const note = el("span", { class: "note" });
  const node = el(
    "div",
    { class: "figure" },
    el("dt", {}, label),
    el("dd", {}, value, spark?.node, note),
  );
  return {
    node,
    show(text, noteText = "", tone = null) {
      setText(value, text);
      setText(note, noteText);
      setAttribute(node, "data-tone", tone);
    },
  };
}

/** "49 to 56 %", also where one end is a loss. */
function range(from, to) {
  const [low, high] = [Math.min(from, to), Math.max(from, to)].map((share) =>
    Math.round(share * 100),
  );
  return `${low} to ${percent(high / 100)}`.replaceAll("-", "−");
}

/** Words for an improvement: how much, and its bounds. */
function comparison({ ratio, low, high }) {
  const change = percent(Math.abs(1 - ratio));
  if (high < 1)
    return {
      text: `${change} less`,
      note: `than a shared queue; ${range(1 - high, 1 - low)}`,
      tone: "good",
    };
  if (low > 1)
    return {
      text: `${change} more`,
      note: `than a shared queue; ${range(low - 1, high - 1)}`,
      tone: "bad",
    };
  return {
    text: "no difference",
    note: `from a shared queue; ${range(1 - high, 1 - low)} less`,
    tone: null,
  };
}

export function makeFigures(parent) {
  const sparks = { waiting: makeSpark(), backlog: makeSpark() };
  const figures = {
    gain: makeFigure("Service time"),
    response: makeFigure("Response time"),
    tasks: makeFigure("Learned from"),
    explored: makeFigure("Exploring"),
    queues: makeFigure("Queues open"),
    waiting: makeFigure("Waiting", sparks.waiting),
    backlog: makeFigure("Backlog", sparks.backlog),
  };
  parent.append(...Object.values(figures).map((figure) => figure.node));

  return {
    /** What changes with every second. */
    showHealth(health) {
      const closed = health.queues - health.open_queues;
      figures.queues.show(
        `${count(health.open_queues)} / ${count(health.queues)}`,
        closed ? `${closed} closed` : plural(health.running_count, "task runs", "tasks run"),
        closed ? "warn" : null,
      );
      figures.waiting.show(count(health.waiting_count), "tasks in queues");
      figures.backlog.show(backlog(health.backlog_seconds), "predicted work ahead");
      sparks.waiting.push(health.waiting_count);
      sparks.backlog.push(health.backlog_seconds);
    },

    /** What is learned. */
    showPerformance({ totals, improvement, exploration_rate: explored }) {
      const service = improvement?.service;
      setAttribute(figures.gain.node, "title", service?.sentence);
      if (service) {
        const { text, note, tone } = comparison(service);
        figures.gain.show(text, note, tone);
      } else figures.gain.show(UNKNOWN, "needs more tasks");
      const response = improvement?.response;
      setAttribute(figures.response.node, "title", response?.sentence);
      figures.response.show(
        seconds(totals.mean_response_seconds),
        response
          ? `${response.ratio.toFixed(2)} of Celery's own, ${response.low.toFixed(2)} to ${response.high.toFixed(2)}`
          : `mean, ${seconds(totals.mean_service_seconds)} of it service`,
      );
      figures.tasks.show(
        count(totals.tasks),
        totals.tasks ? `tasks, ${percent(totals.success_rate)} succeeded` : "no task yet",
        totals.tasks && totals.success_rate < 0.9 ? "warn" : null,
      );
      figures.explored.show(percent(explored), "of the latest tasks");
    },
  };
}
