// What has been learned: service time of each task type on each GPU model, as a heat map of numbers.

import { el, nameOf, setText } from "./dom.js";
import { count, percent, plural, ratio, seconds, shortModel, UNKNOWN } from "./format.js";

const SHOWN = 30;
const FEW_SAMPLES = 5;
// Times as slow as the best GPU model of the row, at which a cell takes the next shade.
const SHADES = [1.05, 1.5, 2.5, 5, 10];

const shadeOf = (times) => {
  const shade = SHADES.findIndex((bound) => times <= bound);
  return shade < 0 ? SHADES.length : shade;
};

/** Rows by task type and columns by GPU model; both the fastest or busiest first. */
export function arrange(cells) {
  const rows = new Map();
  const speeds = new Map();
  for (const cell of cells) {
    if (!rows.has(cell.task_type))
      rows.set(cell.task_type, { type: cell.task_type, cells: new Map(), samples: 0 });
    const row = rows.get(cell.task_type);
    row.cells.set(cell.gpu_model, cell);
    row.samples += cell.samples;
    if (!speeds.has(cell.gpu_model)) speeds.set(cell.gpu_model, []);
  }
  for (const row of rows.values()) {
    const known = [...row.cells.values()].filter((cell) => cell.seconds > 0);
    row.best = Math.min(...known.map((cell) => cell.seconds));
    row.worst = Math.max(...known.map((cell) => cell.seconds));
    for (const cell of known) speeds.get(cell.gpu_model).push(Math.log(cell.seconds / row.best));
  }
  const mean = (list) => (list.length ? list.reduce((a, b) => a + b, 0) / list.length : Infinity);
  return {
    rows: [...rows.values()].sort((a, b) => b.samples - a.samples || a.type.localeCompare(b.type)),
    models: [...speeds.keys()].sort(
      (a, b) => mean(speeds.get(a)) - mean(speeds.get(b)) || a.localeCompare(b),
    ),
  };
}

function makeCell(cell, row, show) {
  if (!cell || (cell.samples === 0 && !cell.closed && !(cell.seconds > 0))) {
    return el("td", { class: "unknown" }, UNKNOWN, el("span", { class: "unseen" }, "not tried"));
  }
  const times = cell.seconds > 0 ? cell.seconds / row.best : null;
  const isFew = cell.samples < FEW_SAMPLES;
  const unit = row.worst < 0.9995 ? "ms" : row.worst < 119.5 ? "s" : undefined;
  const texts = {
    seconds: seconds(cell.seconds, unit),
    ratio: times === null ? UNKNOWN : times < 1.005 ? "best" : ratio(times),
    samples: count(cell.samples),
  };
  const title = [
    `${seconds(cell.seconds)}${times > 1.005 ? `, ${ratio(times)} the best` : ""}`,
    plural(cell.samples, "task"),
    cell.failure_rate > 0 ? `${percent(cell.failure_rate)} failed` : "",
    cell.closed ? "closed: its tasks fail here" : "",
  ];
  return el(
    "td",
    {
      class: [
        cell.closed ? "shut" : times === null ? "unknown" : `shade-${shadeOf(times)}`,
        isFew && !cell.closed ? "few" : "",
      ].join(" "),
      title: title.filter(Boolean).join("; "),
    },
    cell.closed ? el("span", { class: "tag failed" }, "closed") : texts[show],
    isFew && !cell.closed ? el("span", { class: "unseen" }, " from few tasks") : null,
  );
}

export function makeMatrix(body, sumNode, legendNode, choices) {
  let cells = null;
  let shown = SHOWN;
  const empty = el(
    "p",
    { class: "empty" },
    "Nothing is learned yet. As tasks finish, this table fills with how long each type takes on each GPU model.",
  );

  const draw = () => {
    if (!cells) return;
    if (!cells.length) {
      body.replaceChildren(empty);
      setText(sumNode, "");
      legendNode.hidden = true;
      return;
    }
    const show = [...choices].find((choice) => choice.checked)?.value ?? "seconds";
    const { rows, models } = arrange(cells);
    setText(
      sumNode,
      `${plural(rows.length, "task type")} on ${plural(models.length, "GPU model")}`,
    );
    const table = el(
      "table",
      {},
      el(
        "caption",
        { class: "unseen" },
        "Mean service time for a task of size 1, or what the policy expects",
      ),
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          el("th", { scope: "col" }, "Task type"),
          ...models.map((model) =>
            el("th", { scope: "col", class: "number", title: model }, nameOf(shortModel(model))),
          ),
        ),
      ),
      el(
        "tbody",
        {},
        ...rows
          .slice(0, shown)
          .map((row) =>
            el(
              "tr",
              {},
              el("th", { scope: "row" }, nameOf(row.type)),
              ...models.map((model) => makeCell(row.cells.get(model), row, show)),
            ),
          ),
      ),
    );
    const left = rows.length - shown;
    const more =
      left > 0
        ? el(
            "button",
            { type: "button", class: "quiet", onclick: () => ((shown += SHOWN * 3), draw()) },
            `Show ${Math.min(left, SHOWN * 3)} more of ${count(left)} task types`,
          )
        : null;
    body.replaceChildren(...[table, more].filter(Boolean));
    legendNode.hidden = false;
  };

  legendNode.append(
    "Shade: against the best GPU model of the row, ",
    ...["1×", "1.5×", "2.5×", "5×", "10×", "more"].map((text, i) =>
      el("span", { class: `key shade-${i}` }, text),
    ),
    el("span", { class: "key few" }, `fewer than ${FEW_SAMPLES} tasks`),
  );
  for (const choice of choices) choice.addEventListener("change", draw);
  return {
    show(items) {
      // A table that is rebuilt loses a selection, so leave it alone when nothing changed.
      if (JSON.stringify(items) === JSON.stringify(cells)) return;
      cells = items;
      draw();
    },
  };
}
