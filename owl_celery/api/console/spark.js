// A line of the last minutes, drawn from what this page has seen.

import { svg } from "./dom.js";

const WIDTH = 96;
const HEIGHT = 22;
const POINTS = 180;
const FEWEST = 40;

/** A sparkline; decoration beside a number, so hidden from screen readers. */
export function makeSpark() {
  const values = [];
  const line = svg("path", { class: "spark-line" });
  const area = svg("path", { class: "spark-area" });
  const node = svg(
    "svg",
    {
      class: "spark",
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      preserveAspectRatio: "none",
      "aria-hidden": "true",
    },
    area,
    line,
  );
  return {
    node,
    push(value) {
      values.push(value);
      if (values.length > POINTS) values.shift();
      if (values.length < 2) return;
      const top = Math.max(...values, 1e-9);
      // The newest value sits at the right end, also while there are few.
      const step = WIDTH / (Math.max(values.length, FEWEST) - 1);
      const x = (i) => WIDTH - (values.length - 1 - i) * step;
      const y = (v) => HEIGHT - 1.5 - (v / top) * (HEIGHT - 3);
      const path = values.map((v, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(v).toFixed(1)}`);
      line.setAttribute("d", path.join(""));
      area.setAttribute("d", `${path.join("")}V${HEIGHT}H${x(0).toFixed(1)}Z`);
    },
  };
}
