// Wires the page: events come in, and each panel shows its part.

import { follow, get, getItems, token, TokenNeeded } from "./connection.js";
import { makeCurve } from "./curve.js";
import { makeDecisions } from "./decisions.js";
import { byId, el, setAttribute, setText } from "./dom.js";
import { makeFigures } from "./figures.js";
import { makeFleet } from "./fleet.js";
import { clock, seconds } from "./format.js";
import { makeMatrix } from "./matrix.js";

const BACKFILL = 1_000;
const MATRIX_CELLS = 2_000;
// What is learned is read anew this often while tasks finish, and this often at rest.
const BUSY_MS = 3_000;
const IDLE_MS = 30_000;

const status = byId("status");
const notices = byId("notices");
const figures = makeFigures(byId("figures"));
const fleet = makeFleet(byId("fleet"), byId("fleet-sum"), byId("fleet-find"));
const decisions = makeDecisions(
  byId("decisions-list"),
  byId("decisions-sum"),
  byId("decisions-pause"),
);
const matrix = makeMatrix(
  byId("matrix-body"),
  byId("matrix-sum"),
  byId("matrix-legend"),
  document.getElementsByName("matrix-show"),
);
const curve = makeCurve(byId("curve-body"), document.getElementsByName("curve-span"), readLearned);

let health = null;
let lastFleetAt = null;
let isConnected = false;
let learnedAt = 0;
let isReading = false;
let hasNews = true;

const WORDS = { ok: "Working", degraded: "Degraded", down: "Not routing" };

function showStatus() {
  if (!isConnected) {
    setAttribute(status, "data-state", "lost");
    const since = lastFleetAt === null ? "" : `; what you see is from ${clock(lastFleetAt)}`;
    setText(status, `No connection, trying again${since}`);
  } else if (!health) {
    setAttribute(status, "data-state", "waiting");
    setText(status, "Connected");
  } else {
    setAttribute(status, "data-state", health.status);
    const mode =
      { shadow: ", in shadow: Celery routes", off: ", switched off: Celery routes" }[health.mode] ??
      "";
    setText(status, `${WORDS[health.status] ?? health.status}${mode}`);
  }
  document.body.classList.toggle("stale", !isConnected && lastFleetAt !== null);
}

/** Sentences on what is wrong; unchanged ones stay, so that they are read out once. */
function showNotices() {
  const said = health?.reasons?.map(({ part, sentence }) => `${part}|${sentence}`).join("\n") ?? "";
  if (notices.dataset.said === said) return;
  notices.dataset.said = said;
  const tone = health.status === "ok" ? "note" : health.status;
  notices.replaceChildren(
    ...health.reasons.map(({ part, sentence }) =>
      el("p", { class: "notice", "data-tone": tone }, el("strong", {}, part), " ", sentence),
    ),
  );
}

function showAbout() {
  const { controller, database } = health;
  const parts = [
    controller
      ? `Policy ${controller.policy}, controller ${controller.name} since ${clock(Date.parse(controller.active_since))}, ${seconds(controller.tick_seconds)} a round`
      : "No controller",
    database ? `database ${database.kind}: ${database.status}` : null,
    typeof health.view_age_seconds === "number"
      ? `view ${seconds(health.view_age_seconds)} old`
      : null,
    `version ${health.version}`,
  ];
  setText(byId("about"), parts.filter(Boolean).join(" · "));
}

function showFleet(body) {
  health = body.health;
  lastFleetAt = Date.now();
  showStatus();
  showNotices();
  showAbout();
  figures.showHealth(health);
  fleet.show(body.queues, health.queues);
}

async function readLearned() {
  if (isReading || !isConnected) return;
  isReading = true;
  hasNews = false;
  learnedAt = performance.now();
  try {
    const [minutes, hours, cells] = await Promise.all([
      get("performance"),
      curve.wantsHours() ? get("performance?bucket_seconds=3600") : null,
      getItems("matrix", MATRIX_CELLS),
    ]);
    figures.showPerformance(minutes);
    curve.showStored([...minutes.curve, ...(hours?.curve ?? [])]);
    matrix.show(cells);
  } catch (error) {
    // The stream tells whether the server is there, and asks for the token.
    if (!(error instanceof TokenNeeded)) hasNews = true;
  } finally {
    isReading = false;
  }
}

async function readPast() {
  try {
    decisions.backfill(await getItems("decisions", BACKFILL));
    curve.showLive(decisions.recent);
  } catch {
    // The database is away; what happens from now on comes by the stream.
  }
}

function askToken() {
  const dialog = byId("token-dialog");
  const input = byId("token");
  byId("token-error").textContent = token.read() ? "The server refused this token." : "";
  setAttribute(status, "data-state", "waiting");
  setText(status, "Waiting for the token");
  input.value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    byId("token-form").onsubmit = (event) => {
      event.preventDefault();
      token.write(input.value.trim());
      byId("forget-token").hidden = false;
      dialog.close();
      resolve();
    };
  });
}

byId("token-dialog").addEventListener("cancel", (event) => event.preventDefault());
byId("forget-token").hidden = !token.read();
byId("forget-token").addEventListener("click", () => {
  token.write("");
  location.reload();
});

setInterval(() => {
  if (document.visibilityState !== "visible") return;
  decisions.tick();
  curve.showLive(decisions.recent);
  if (performance.now() - learnedAt > (hasNews ? BUSY_MS : IDLE_MS)) readLearned();
}, 1_000);

follow({
  askToken,
  onOpen() {
    isConnected = true;
    showStatus();
    readLearned();
    readPast();
  },
  onLost() {
    isConnected = false;
    showStatus();
  },
  onEvent(kind, body) {
    if (kind === "fleet") showFleet(body);
    else if (kind === "outcome") {
      hasNews = true;
      decisions.add(body);
    }
  },
});
