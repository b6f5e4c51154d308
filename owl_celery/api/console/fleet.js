// The queues, grouped by GPU model: what runs, what waits, and how the GPU does.

import { el, nameOf, reconcile, setAttribute, setName, setText } from "./dom.js";
import { makeMap, makeMapLegend } from "./fleet-map.js";
import { backlog, celsius, count, memory, plural, UNKNOWN, watts } from "./format.js";

// A fleet up to this size is shown whole; of a larger one, the busiest of each GPU model.
const SHOWN_WHOLE = 48;
const SHOWN_OF_MODEL = 8;
const SHOWN_MORE = 100;
const RESORT_MS = 5_000;

function meter(className) {
  const bar = el("span", { class: `meter ${className}`, "aria-hidden": "true" });
  return {
    node: bar,
    set: (share) => bar.style.setProperty("--share", String(Math.min(Math.max(share || 0, 0), 1))),
  };
}

function makeRow() {
  const queue = nameOf("", "name queue-name");
  const flag = el("span", { class: "flag", hidden: true });
  const running = el("span", { class: "running-names" });
  const progress = meter("progress");
  const waiting = el("td", { class: "number waiting", role: "cell" });
  const load = meter("load");
  const loadText = el("span", { class: "over" });
  const use = meter("use");
  const useText = el("span", { class: "over" });
  const memoryCell = el("td", { class: "number wide", role: "cell" });
  const heat = el("td", { class: "number wide widest", role: "cell" });
  const power = el("td", { class: "number wide widest", role: "cell" });
  const node = el(
    "tr",
    { role: "row" },
    el("th", { scope: "row", role: "rowheader", class: "queue" }, queue, flag),
    el("td", { class: "running", role: "cell" }, running, progress.node),
    waiting,
    el("td", { class: "number barred", role: "cell" }, load.node, loadText),
    el("td", { class: "number barred use-cell", role: "cell" }, use.node, useText),
    memoryCell,
    heat,
    power,
  );
  return {
    node,
    update({ item, top }) {
      setName(queue, item.name);
      const slow =
        item.is_open && item.speed_factor > 1.15 ? `slow ${item.speed_factor.toFixed(1)}×` : "";
      const said = item.is_open ? slow : item.is_drained ? "drained" : "closed";
      flag.hidden = !said;
      setText(flag, said);
      setAttribute(
        flag,
        "title",
        slow
          ? "Everything takes this many times as long as on other GPUs of its model"
          : said && "Takes no new task",
      );
      node.classList.toggle("closed", !item.is_open);
      const first = item.running[0];
      const more = item.running.length - 1;
      if (first)
        setName(running, `${first.task_type ?? "a task"}${more > 0 ? ` and ${more} more` : ""}`);
      else setName(running, "idle");
      running.classList.toggle("idle", !first);
      progress.set(first ? first.elapsed_seconds / first.predicted_seconds : 0);
      setText(waiting, count(item.waiting_count));
      setAttribute(waiting, "data-zero", item.waiting_count === 0);
      load.set(item.backlog_seconds / top);
      setText(loadText, backlog(item.backlog_seconds));
      const gpu = item.gpu ?? {};
      use.set(gpu.utilization_ratio);
      setText(
        useText,
        gpu.utilization_ratio === null || gpu.utilization_ratio === undefined
          ? UNKNOWN
          : `${Math.round(gpu.utilization_ratio * 100)}\u00a0%`,
      );
      setText(memoryCell, memory(gpu.memory_used_bytes, gpu.memory_total_bytes));
      setText(heat, celsius(gpu.temperature_celsius));
      setText(power, watts(gpu.power_watts));
    },
  };
}

function makeGroup(model, onMore) {
  const title = nameOf(model, "name model");
  const sum = el("span", { class: "muted sum" });
  const map = makeMap();
  const mapRow = el(
    "tr",
    { role: "row", class: "map-row", hidden: true },
    el("td", { colspan: "8", role: "cell" }, map.node),
  );
  const head = el(
    "tr",
    { class: "group", role: "row" },
    el("th", { colspan: "8", scope: "rowgroup", role: "rowheader" }, title, sum),
  );
  const more = el("button", { type: "button", class: "quiet", onclick: () => onMore(model) });
  const moreRow = el(
    "tr",
    { role: "row", class: "more-row", hidden: true },
    el("td", { colspan: "8", role: "cell" }, more),
  );
  // The rows have a body of their own: keyed updates need a parent that nothing else lives in.
  const rowsBody = el("tbody", { role: "rowgroup" });
  const headBody = el("tbody", { role: "rowgroup" }, head, mapRow);
  const moreBody = el("tbody", { role: "rowgroup" }, moreRow);
  const known = new Map();
  return {
    nodes: [headBody, rowsBody, moreBody],
    update({ all, shown, top, isWhole }) {
      const open = all.filter((queue) => queue.is_open).length;
      const running = all.reduce((n, queue) => n + queue.running.length, 0);
      const waiting = all.reduce((n, queue) => n + queue.waiting_count, 0);
      const work = all.reduce((n, queue) => n + queue.backlog_seconds, 0);
      setText(
        sum,
        `${plural(all.length, "queue")}${open < all.length ? `, ${count(open)} open` : ""} · ` +
          `${count(running)} running · ${count(waiting)} waiting · ${backlog(work)}`,
      );
      mapRow.hidden = isWhole;
      if (!isWhole) map.update(all);
      reconcile(
        rowsBody,
        known,
        shown.map((item) => ({ item, top })),
        ({ item }) => item.name,
        makeRow,
      );
      const left = all.length - shown.length;
      moreRow.hidden = left <= 0 || isWhole;
      setText(more, `Show ${Math.min(left, SHOWN_MORE)} more of ${count(left)}, the busiest first`);
    },
    remove() {
      for (const node of this.nodes) node.remove();
    },
  };
}

export function makeFleet(parent, sumNode, findNode) {
  const heads = ["Queue", "Running", "Waiting", "Backlog", "GPU", "Memory", "Temp.", "Power"];
  const table = el(
    "table",
    { role: "table", "aria-labelledby": "fleet-title", hidden: true },
    el(
      "thead",
      { role: "rowgroup" },
      el(
        "tr",
        { role: "row" },
        ...heads.map((text, i) =>
          el(
            "th",
            {
              scope: "col",
              role: "columnheader",
              class: `${i > 1 ? "number" : ""} ${i > 5 ? "wide widest" : i > 4 ? "wide" : ""}`,
            },
            text,
          ),
        ),
      ),
    ),
  );
  const empty = el("p", { class: "empty", hidden: true });
  const legend = makeMapLegend();
  parent.append(table, empty, legend);
  const groups = new Map();
  const limits = new Map();
  const orders = new Map();
  let latest = [];
  let total = 0;

  const show = (queues, known = queues.length) => {
    latest = queues;
    total = Math.max(known, queues.length);
    const find = findNode.value.trim().toLowerCase();
    const matches = (queue) =>
      queue.name.toLowerCase().includes(find) ||
      queue.gpu_model.toLowerCase().includes(find) ||
      queue.running.some((task) => task.task_type?.toLowerCase().includes(find));
    const found = find ? queues.filter(matches) : queues;
    const isWhole = found.length <= SHOWN_WHOLE;
    // The longest bar is the longest backlog, but a second or less never looks like a crisis.
    const top = Math.max(1, ...found.map((queue) => queue.backlog_seconds));
    const byModel = groupBy(found);
    for (const [model, group] of groups) {
      if (!byModel.has(model)) {
        group.remove();
        groups.delete(model);
      }
    }
    for (const [model, all] of byModel) {
      if (!groups.has(model)) {
        const group = makeGroup(model, (name) => {
          limits.set(name, (limits.get(name) ?? SHOWN_OF_MODEL) + SHOWN_MORE);
          orders.delete(name);
          show(latest, total);
        });
        groups.set(model, group);
        // In the order of their names, whatever order they come in.
        for (const name of [...groups.keys()].sort(collator.compare))
          table.append(...groups.get(name).nodes);
      }
      all.sort((a, b) => collator.compare(a.name, b.name));
      const shown = isWhole ? all : busiest(model, all);
      groups.get(model).update({ all, shown, top, isWhole });
    }
    table.hidden = found.length === 0;
    legend.hidden = isWhole;
    empty.hidden = found.length > 0;
    setText(
      empty,
      queues.length
        ? "No queue, GPU model or running task has that in its name."
        : 'No queue yet. Start workers on a host with GPUs by “celery -A proj owl worker”, or try it without any by adding --simulate "k80=1,v100=1".',
    );
    setText(
      sumNode,
      queues.length
        ? `${plural(byModelCount(queues), "GPU model")}, ${total > queues.length ? `the first ${count(queues.length)} of ` : ""}${plural(total, "queue")}`
        : "",
    );
  };

  /** The busiest queues of a model; the order is kept for some seconds, so that rows can be read. */
  function busiest(model, all) {
    const now = performance.now();
    let order = orders.get(model);
    if (!order || now - order.at > RESORT_MS) {
      const sorted = [...all].sort((a, b) => b.backlog_seconds - a.backlog_seconds);
      order = {
        at: now,
        names: sorted.slice(0, limits.get(model) ?? SHOWN_OF_MODEL).map((q) => q.name),
      };
      orders.set(model, order);
    }
    const byName = new Map(all.map((queue) => [queue.name, queue]));
    return order.names.map((name) => byName.get(name)).filter(Boolean);
  }

  findNode.addEventListener("input", () => {
    orders.clear();
    show(latest, total);
  });
  return { show };
}

const collator = new Intl.Collator("en", { numeric: true });

function byModelCount(queues) {
  return new Set(queues.map((queue) => queue.gpu_model)).size;
}

function groupBy(queues) {
  const groups = new Map();
  for (const queue of queues) {
    if (!groups.has(queue.gpu_model)) groups.set(queue.gpu_model, []);
    groups.get(queue.gpu_model).push(queue);
  }
  return groups;
}
