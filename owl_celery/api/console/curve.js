// The learning curve: response time by algorithm, error of the predictions, and exploration.

import { el, setText } from "./dom.js";
import { clock, count, day, minuteOfDay, percent, seconds, secondsTick } from "./format.js";
import { makeChart, makeNumbers } from "./chart.js";
import { serverNow } from "./connection.js";

const LIVE_MS = 15 * 60_000;
const LIVE_BUCKETS_MS = [2, 5, 10, 30].map((s) => s * 1000);
const MOST_POINTS = 60;
const MOST_ROWS = 200;

const NAMES = { celery: "Celery's own route", user: "queue set by the caller" };
const nameOf = (algorithm) => NAMES[algorithm] ?? algorithm;

/** Buckets of what this page has seen, shaped as those of the API. */
export function liveBuckets(outcomes, now) {
  const recent = outcomes
    .map((item) => ({ item, at: Date.parse(item.finished_at) }))
    .filter(({ at }) => at > now - LIVE_MS);
  if (!recent.length) return { points: [], length: LIVE_BUCKETS_MS[0] };
  const span = now - recent[0].at;
  const length = LIVE_BUCKETS_MS.find((ms) => span / ms <= MOST_POINTS) ?? LIVE_BUCKETS_MS.at(-1);
  const buckets = new Map();
  for (const { item, at } of recent) {
    const start = Math.floor(at / length) * length;
    const key = `${start} ${item.algorithm}`;
    if (!buckets.has(key))
      buckets.set(key, {
        at: start,
        algorithm: item.algorithm,
        tasks: 0,
        explored: 0,
        waits: 0,
        response: 0,
        service: 0,
        error: 0,
        predicted: 0,
      });
    const bucket = buckets.get(key);
    bucket.tasks += 1;
    bucket.explored += item.explored ? 1 : 0;
    if (item.state !== "success") continue;
    if (item.wait_seconds !== null) {
      bucket.waits += 1;
      bucket.response += item.wait_seconds + item.service_seconds;
    }
    if (item.predicted_seconds !== null) {
      bucket.predicted += 1;
      bucket.service += item.service_seconds;
      bucket.error += Math.abs(item.predicted_seconds - item.service_seconds);
    }
  }
  const points = [...buckets.values()].map((bucket) => ({
    at: bucket.at,
    algorithm: bucket.algorithm,
    tasks: bucket.tasks,
    response: bucket.waits ? bucket.response / bucket.waits : null,
    error: bucket.service > 0 ? bucket.error / bucket.service : null,
    explored: bucket.explored / bucket.tasks,
  }));
  return { points, length };
}

/** The same of the API's curve, of one length of bucket. */
export function storedBuckets(curve, lengthSeconds) {
  const points = [];
  for (const bucket of curve) {
    const at = Date.parse(bucket.started_at);
    if (bucket.bucket_seconds !== lengthSeconds) continue;
    points.push({
      at,
      algorithm: bucket.algorithm,
      tasks: bucket.tasks,
      response: bucket.mean_response_seconds,
      error:
        bucket.mean_error_seconds !== null && bucket.mean_service_seconds > 0
          ? bucket.mean_error_seconds / bucket.mean_service_seconds
          : null,
      explored: bucket.explored_ratio,
    });
  }
  return { points, length: lengthSeconds * 1000 };
}

const CHARTS = [
  {
    field: "response",
    title: "Mean response time",
    format: (value) => seconds(value),
    tick: secondsTick,
    height: 220,
  },
  {
    field: "error",
    title: "Error of the predicted service time",
    format: percent,
    tick: percent,
    height: 150,
    ceiling: 1,
    isPolicy: true,
  },
  {
    field: "explored",
    title: "Explored",
    format: percent,
    tick: percent,
    height: 130,
    isPolicy: true,
  },
];

export function makeCurve(body, choices, onChoice) {
  const legend = el("p", { class: "legend" });
  const readout = el("output", { class: "readout" });
  const empty = el("p", { class: "empty" });
  const charts = CHARTS.map((kind) => ({
    ...kind,
    chart: makeChart({ ...kind, onCursor: (at) => moveCursor(at) }),
  }));
  const numbers = makeNumbers(["From", "Algorithm", "Tasks", "Response", "Error", "Explored"]);
  // One place for the keyboard: arrow keys walk through time in all three charts at once.
  const plots = el(
    "div",
    {
      class: "plots",
      tabindex: "0",
      role: "group",
      "aria-label": "Learning curve; arrow keys read it point by point",
    },
    ...charts.map(({ chart }) => chart.node),
  );
  body.append(empty, legend, plots, readout, numbers.node);

  let curve = [];
  let outcomes = [];
  let shown = { points: [], times: [], label: clock, tones: new Map() };
  let cursor = null;
  let isChosen = false;
  let isRead = false;
  const tones = new Map([
    ["celery", "tone-celery"],
    ["user", "tone-user"],
  ]);
  const span = () => [...choices].find((choice) => choice.checked)?.value ?? "live";

  function toneOf(algorithm) {
    if (!tones.has(algorithm)) tones.set(algorithm, `tone-${Math.min(tones.size - 2, 4)}`);
    return tones.get(algorithm);
  }

  function read() {
    const at = cursor ?? shown.times.at(-1);
    for (const { chart } of charts) chart.setCursor(cursor);
    if (at === undefined) return setText(readout, "");
    const parts = shown.points
      .filter((point) => point.at === at)
      .map((point) => {
        const facts = [
          point.response === null ? null : seconds(point.response),
          point.error === null ? null : `error ${percent(point.error)}`,
          count(point.tasks) + (point.tasks === 1 ? " task" : " tasks"),
        ];
        return `${nameOf(point.algorithm)} ${facts.filter(Boolean).join(", ")}`;
      });
    return setText(readout, `${shown.label(at)}  ${parts.join("; ")}`);
  }

  function moveCursor(at) {
    cursor =
      at === null || !shown.times.length
        ? null
        : shown.times.reduce((best, time) =>
            Math.abs(time - at) < Math.abs(best - at) ? time : best,
          );
    read();
  }

  plots.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") moveCursor(null);
    if (step === undefined || !shown.times.length) return;
    event.preventDefault();
    const last = shown.times.length - 1;
    const place = cursor === null ? last + (step === -1 ? 1 : 0) : shown.times.indexOf(cursor);
    cursor = shown.times[Math.min(Math.max(place + step, 0), last)];
    read();
  });
  plots.addEventListener(
    "focus",
    () => plots.matches(":focus-visible") && readout.setAttribute("aria-live", "polite"),
  );
  plots.addEventListener("blur", () => {
    readout.removeAttribute("aria-live");
    moveCursor(null);
  });

  function draw() {
    if (!isRead && !outcomes.length) return;
    const now = serverNow();
    const kind = span();
    const [{ points, length }, label] = {
      live: () => [liveBuckets(outcomes, now), clock],
      minutes: () => [storedBuckets(curve, 60), minuteOfDay],
      hours: () => [storedBuckets(curve, 3_600), (at) => `${day(at)} ${minuteOfDay(at)}`],
    }[kind]();
    points.sort((a, b) => a.at - b.at);
    const algorithms = [...new Set(points.map((point) => point.algorithm))].sort();
    shown = { points, label, times: [...new Set(points.map((point) => point.at))] };
    if (!shown.times.includes(cursor)) cursor = null;
    const isEmpty = !points.length;
    for (const part of [legend, plots, readout, numbers.node]) part.hidden = isEmpty;
    empty.hidden = !isEmpty;
    if (isEmpty) {
      setText(
        empty,
        kind === "live"
          ? "No task has finished in the last 15 minutes."
          : "No task has finished in this stretch of time.",
      );
      return;
    }
    legend.replaceChildren(
      ...algorithms.map((one) => el("span", { class: `series ${toneOf(one)}` }, nameOf(one))),
    );
    const from = shown.times[0];
    const to = Math.max(shown.times.at(-1), from + length);
    charts.forEach(({ chart, field, format, isPolicy }, place) => {
      const series = algorithms.map((one) => ({
        tone: toneOf(one),
        points: points
          .filter(
            (p) =>
              p.algorithm === one &&
              p[field] !== null &&
              p[field] !== undefined &&
              !(isPolicy && one in NAMES),
          )
          .map((p) => ({ at: p.at, value: p[field] })),
      }));
      const newest = algorithms.map((one, i) =>
        series[i].points.length
          ? `${nameOf(one)}: from ${format(series[i].points[0].value)} to ${format(series[i].points.at(-1).value)}`
          : null,
      );
      chart.draw({
        series,
        from,
        to,
        gap: length * 4,
        timesShown: place === charts.length - 1 || place === 0,
        summary: `${newest.filter(Boolean).join("; ") || "nothing yet"}, between ${label(from)} and ${label(to)}.`,
      });
    });
    numbers.draw(
      [...points]
        .reverse()
        .slice(0, MOST_ROWS)
        .map((p) => [
          label(p.at),
          nameOf(p.algorithm),
          count(p.tasks),
          seconds(p.response),
          percent(p.error),
          percent(p.explored),
        ]),
    );
    read();
  }

  for (const choice of choices) {
    choice.addEventListener("change", () => {
      isChosen = true;
      draw();
      onChoice();
    });
  }
  numbers.node.addEventListener("toggle", draw);
  new ResizeObserver(() => draw()).observe(body);

  return {
    /** Whether the hours are looked at: they are read only then. */
    wantsHours: () => span() === "hours",
    showLive(items) {
      outcomes = items;
      if (span() === "live") draw();
    },
    showStored(points) {
      curve = points;
      isRead = true;
      // Who has not chosen sees the minutes once they tell more than what this page has seen.
      const minutes = points.filter((p) => p.bucket_seconds === 60);
      const oldest = Math.min(...minutes.map((p) => Date.parse(p.started_at)));
      if (!isChosen && oldest < serverNow() - 2 * LIVE_MS) {
        for (const choice of choices) choice.checked = choice.value === "minutes";
      }
      draw();
    },
  };
}
