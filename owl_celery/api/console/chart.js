// A line chart in SVG: a few series over time, one crosshair, axes with round numbers.

import { el, setAttribute, setText, svg } from "./dom.js";
import { clock, day, minuteOfDay } from "./format.js";

const LEFT = 52;
const RIGHT = 10;
const TOP = 8;
const BOTTOM = 20;

/** Round numbers from 0 up to at least `top`, about three steps. */
export function ticks(top, steps = 3) {
  const rough = Math.max(top, 1e-9) / steps;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * 0.999) * power;
  const list = [];
  for (let i = 0; (list.at(-1) ?? -1) < top * 0.999 && i < 20; i += 1)
    list.push(Number((i * step).toPrecision(12)));
  return list;
}

const STEPS_MS = [
  10, 30, 60, 120, 300, 600, 1_800, 3_600, 7_200, 14_400, 43_200, 86_400, 604_800, 1_209_600,
].map((s) => s * 1000);

function timeTicks(from, to, most) {
  const step = STEPS_MS.find((candidate) => (to - from) / candidate <= most) ?? STEPS_MS.at(-1) * 2;
  // Local midnight and full hours, wherever the reader is.
  const shift = new Date(from).getTimezoneOffset() * 60_000;
  const list = [];
  for (let at = Math.ceil((from - shift) / step) * step + shift; at <= to; at += step)
    list.push(at);
  return { list, label: step >= 86_400_000 ? day : step < 60_000 ? clock : minuteOfDay };
}

/**
 * Make a chart; `draw({series, from, to, gap})` shows it anew.
 *
 * A series is `{name, tone, points: [{at, value}]}` with times in milliseconds, `tone` a class of
 * the style sheet, and a line is broken where two points are further apart than `gap`. What is
 * above `ceiling` is drawn at the upper edge, so that one wild value does not flatten the rest.
 */
export function makeChart({ title, tick, height = 150, ceiling = Infinity, onCursor }) {
  const axes = svg("g", { class: "axes" });
  const lines = svg("g", { class: "lines" });
  const cross = svg("line", { class: "cross", y1: TOP, visibility: "hidden" });
  const picture = svg(
    "svg",
    { class: "chart", role: "img", height: String(height) },
    axes,
    lines,
    cross,
  );
  const node = el("figure", {}, el("figcaption", {}, title), picture);
  let scale = null;

  function draw({ series, from, to, gap, summary, timesShown = true }) {
    const width = Math.max(picture.clientWidth || node.clientWidth || 480, 240);
    const bottom = timesShown ? BOTTOM : 6;
    const values = series.flatMap((one) => one.points.map((point) => point.value));
    const marks = ticks(Math.min(Math.max(0, ...values), ceiling));
    const top = marks.at(-1) || 1;
    const x = (at) => LEFT + ((at - from) / Math.max(to - from, 1)) * (width - LEFT - RIGHT);
    const y = (value) => TOP + (1 - Math.min(value / top, 1)) * (height - TOP - bottom);
    scale = { from, to, width };
    setAttribute(picture, "viewBox", `0 0 ${width} ${height}`);
    setAttribute(picture, "aria-label", `${title}. ${summary}`);
    setAttribute(cross, "y2", height - bottom);

    const times = timesShown
      ? timeTicks(from, to, Math.max(Math.floor(width / 90), 2))
      : { list: [] };
    axes.replaceChildren(
      ...marks.flatMap((value) => [
        svg("line", {
          x1: LEFT,
          x2: width - RIGHT,
          y1: y(value),
          y2: y(value),
          class: value === 0 ? "base" : "grid",
        }),
        svg("text", { x: LEFT - 7, y: y(value) + 4, "text-anchor": "end" }, tick(value, top)),
      ]),
      ...times.list.map((at) =>
        svg(
          "text",
          { x: x(at), y: height - 4, "text-anchor": x(at) > width - 40 ? "end" : "middle" },
          times.label(at),
        ),
      ),
    );
    lines.replaceChildren(
      ...series.flatMap((one) => {
        let path = "";
        let last = -Infinity;
        const dots = [];
        one.points.forEach((point, i) => {
          const isJoined = point.at - last <= gap;
          path += `${isJoined ? "L" : "M"}${x(point.at).toFixed(1)} ${y(point.value).toFixed(1)}`;
          const next = one.points[i + 1];
          if (!isJoined && !(next && next.at - point.at <= gap)) {
            dots.push(
              svg("circle", {
                cx: x(point.at),
                cy: y(point.value),
                r: 2.5,
                class: `dot ${one.tone}`,
              }),
            );
          }
          last = point.at;
        });
        return [svg("path", { d: path, class: `line ${one.tone}` }), ...dots];
      }),
    );
  }

  function setCursor(at) {
    setAttribute(cross, "visibility", at === null || !scale ? "hidden" : "visible");
    if (at === null || !scale) return;
    const place =
      LEFT +
      ((at - scale.from) / Math.max(scale.to - scale.from, 1)) * (scale.width - LEFT - RIGHT);
    setAttribute(cross, "x1", place);
    setAttribute(cross, "x2", place);
  }

  picture.addEventListener("pointermove", (event) => {
    if (!scale) return;
    const box = picture.getBoundingClientRect();
    const share =
      ((event.clientX - box.left) * (scale.width / box.width) - LEFT) /
      (scale.width - LEFT - RIGHT);
    onCursor(scale.from + Math.min(Math.max(share, 0), 1) * (scale.to - scale.from));
  });
  picture.addEventListener("pointerleave", () => onCursor(null));
  return { node, draw, setCursor };
}

/** A table of the same numbers, for those who cannot see or do not trust a picture. */
export function makeNumbers(heads) {
  const body = el("tbody");
  const table = el(
    "table",
    {},
    el(
      "thead",
      {},
      el(
        "tr",
        {},
        ...heads.map((head, i) => el("th", { scope: "col", class: i > 1 ? "number" : "" }, head)),
      ),
    ),
    body,
  );
  const node = el(
    "details",
    { class: "numbers" },
    el("summary", {}, "Numbers"),
    el(
      "div",
      {
        class: "scroll",
        tabindex: "0",
        role: "region",
        "aria-label": "Numbers of the learning curve",
      },
      table,
    ),
  );
  return {
    node,
    draw(rows) {
      // Only for those who look: a closed table costs nothing.
      if (!node.open) return;
      body.replaceChildren(
        ...rows.map((row) =>
          el(
            "tr",
            {},
            ...row.map((text, i) => {
              const cell = el(i === 0 ? "th" : "td", {
                scope: i === 0 ? "row" : null,
                class: i > 1 ? "number" : "",
              });
              setText(cell, text);
              return cell;
            }),
          ),
        ),
      );
    },
  };
}
