// Numbers as people read them: three digits that matter, a unit, and a dash for what is unknown.

const GAP = "\u00a0";
export const UNKNOWN = "–";

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** Three significant digits without an exponent: 0.123, 1.23, 12.3, 123. */
function digits(value) {
  const size = Math.abs(value);
  if (size >= 99.95) return grouped.format(value);
  return value.toFixed(size >= 9.995 ? 1 : 2);
}

/** A duration; `unit` "ms" or "s" holds a column or a row to one unit. */
export function seconds(value, unit) {
  if (!isNumber(value)) return UNKNOWN;
  if (unit === "ms" || (!unit && value < 0.9995)) {
    const ms = value * 1000;
    return `${ms !== 0 && ms < 9.95 ? ms.toFixed(1) : grouped.format(ms)}${GAP}ms`;
  }
  if (unit === "s" || value < 119.5) return `${digits(value)}${GAP}s`;
  if (value < 7_170) return `${digits(value / 60)}${GAP}min`;
  if (value < 172_000) return `${digits(value / 3600)}${GAP}h`;
  return `${digits(value / 86_400)}${GAP}days`;
}

/** A mark of an axis whose highest mark is `top`: one unit, and no digit too many. */
export function secondsTick(value, top) {
  const [size, unit] =
    top < 0.9995 ? [1e-3, "ms"] : top < 119.5 ? [1, "s"] : top < 7_170 ? [60, "min"] : [3600, "h"];
  return `${Number((value / size).toPrecision(3))}${GAP}${unit}`;
}

/** Seconds of work ahead: tenths suffice, and a column of them lines up. */
export function backlog(value) {
  if (!isNumber(value)) return UNKNOWN;
  return value < 119.5 ? `${value.toFixed(1)}${GAP}s` : seconds(value);
}

export function count(value) {
  return isNumber(value) ? grouped.format(value) : UNKNOWN;
}

export function plural(value, one, many = `${one}s`) {
  return `${count(value)} ${value === 1 ? one : many}`;
}

/** A share in 0-1 as per cent. */
export function percent(value) {
  if (!isNumber(value)) return UNKNOWN;
  const share = value * 100;
  const isWhole = share === 0 || share >= 99.95 || (share >= 9.95 && share < 99);
  return `${share.toFixed(isWhole ? 0 : 1)}${GAP}%`;
}

export function ratio(value) {
  return isNumber(value) ? `${digits(value)}${GAP}×` : UNKNOWN;
}

/** Bytes used of a total, in GiB. */
export function memory(used, total) {
  if (!isNumber(total)) return UNKNOWN;
  const gib = (bytes) => (bytes / 2 ** 30).toFixed(bytes < 9.95 * 2 ** 30 ? 1 : 0);
  return isNumber(used) ? `${gib(used)} / ${gib(total)}${GAP}GiB` : `${gib(total)}${GAP}GiB`;
}

export function celsius(value) {
  return isNumber(value) ? `${value.toFixed(0)}${GAP}°C` : UNKNOWN;
}

export function watts(value) {
  return isNumber(value) ? `${value.toFixed(0)}${GAP}W` : UNKNOWN;
}

const clockFormat = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
const dayFormat = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });

/** Time of day, in the reader's time zone. */
export function clock(milliseconds) {
  return Number.isFinite(milliseconds) ? clockFormat.format(milliseconds) : UNKNOWN;
}

export function minuteOfDay(milliseconds) {
  return clock(milliseconds).slice(0, 5);
}

export function day(milliseconds) {
  return dayFormat.format(milliseconds);
}

/** "Tesla V100-SXM2-16GB" is a V100 to those who own one. */
export function shortModel(model) {
  return model.replace(/^(NVIDIA|Tesla|GeForce)\s+/i, "").replace(/^(GeForce|Tesla)\s+/i, "");
}
