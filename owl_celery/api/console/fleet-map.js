// The map of a large fleet: each queue a small square, shaded by its backlog.

import { el, setAttribute, svg } from "./dom.js";

// Seconds of work above which a square takes the next shade.
const LEVELS = [0, 1, 10, 60];
const LEVEL_NAMES = ["below 1 s", "to 10 s", "to 60 s", "above"];
const CELL = 9;
const MOST_COLUMNS = 120;

/** Every queue of a model as one small square, in five paths however many there are. */
export function makeMap() {
  const paths = [...LEVELS.keys(), "closed"].map((level) =>
    svg("path", { class: `cell-${level}` }),
  );
  const node = svg("svg", { class: "map", role: "img" }, ...paths);
  return {
    node,
    update(queues) {
      const columns = Math.min(
        Math.max(Math.floor((node.parentElement?.clientWidth || 600) / CELL), 10),
        MOST_COLUMNS,
      );
      const drawn = paths.map(() => []);
      const counts = paths.map(() => 0);
      queues.forEach((queue, i) => {
        let level = LEVELS.length;
        if (queue.is_open)
          level = LEVELS.findLastIndex((from) => queue.backlog_seconds > from || from === 0);
        drawn[level].push(
          `M${(i % columns) * CELL + 1} ${Math.floor(i / columns) * CELL + 1}h7v7h-7z`,
        );
        counts[level] += 1;
      });
      paths.forEach((path, level) => setAttribute(path, "d", drawn[level].join("")));
      const rows = Math.ceil(queues.length / columns);
      setAttribute(node, "viewBox", `0 0 ${columns * CELL} ${rows * CELL}`);
      setAttribute(node, "width", columns * CELL);
      setAttribute(node, "height", rows * CELL);
      const [low, some, much, most, closed] = counts;
      setAttribute(
        node,
        "aria-label",
        `Backlog of each queue: ${low} below 1 second, ${some} to 10 seconds, ${much} to 60 seconds, ${most} above, ${closed} closed`,
      );
    },
  };
}

function keySquare(level) {
  return svg(
    "svg",
    { class: "square", viewBox: "0 0 9 9", "aria-hidden": "true" },
    svg("path", { class: `cell-${level}`, d: "M1 1h7v7h-7z" }),
  );
}

/** What the shades mean. */
export function makeMapLegend() {
  return el(
    "p",
    { class: "legend", hidden: true },
    "Each square is a queue, by its backlog: ",
    ...LEVEL_NAMES.map((name, level) => el("span", {}, keySquare(level), name)),
    el("span", {}, keySquare("closed"), "closed"),
  );
}
