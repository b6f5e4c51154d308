// Talks to the API: JSON by fetch, events by a stream that opens again whenever it breaks.

const BASE = "api/v1/learning/";
const TOKEN_KEY = "owl-token";
// The server sends the fleet every second: silence means that the connection is dead.
const SILENCE_MS = 10_000;
// A browser opens six connections to a server, for all its tabs: one that nobody sees gives its own back.
const UNSEEN_MS = 30_000;
const FIRST_RETRY_MS = 500;
const LAST_RETRY_MS = 8_000;

export class TokenNeeded extends Error {}

/** The bearer token of this tab; a browser that forbids storage keeps it until the page closes. */
export const token = {
  value: "",
  read() {
    try {
      this.value = sessionStorage.getItem(TOKEN_KEY) ?? this.value;
    } catch {
      // Storage is forbidden here; the value in memory is all there is.
    }
    return this.value;
  },
  write(text) {
    this.value = text;
    try {
      if (text) sessionStorage.setItem(TOKEN_KEY, text);
      else sessionStorage.removeItem(TOKEN_KEY);
    } catch {
      // As above.
    }
  },
};

function open(path, signal, accept) {
  const headers = { Accept: accept };
  const text = token.read();
  if (text) headers.Authorization = `Bearer ${text}`;
  return fetch(BASE + path, { headers, signal, cache: "no-store", credentials: "same-origin" });
}

let skew = 0;

/** Time of day by the server's clock, to a second: this machine's may be wrong. */
export function serverNow() {
  return Date.now() + skew;
}

function check(response) {
  const date = Date.parse(response.headers.get("date") ?? "");
  // The header is cut to seconds, so a smaller difference says nothing.
  if (Number.isFinite(date)) skew = Math.abs(date - Date.now()) > 2_000 ? date - Date.now() : 0;
  if (response.status === 401) throw new TokenNeeded();
  if (!response.ok) throw new Error(`The server answers ${response.status}.`);
  return response;
}

/** Read one JSON document. */
export async function get(path) {
  const response = check(await open(path, AbortSignal.timeout(SILENCE_MS), "application/json"));
  return response.json();
}

/** Read the items of a paginated list, up to so many. */
export async function getItems(path, most, pageSize = 500) {
  const items = [];
  let cursor = null;
  do {
    const query = new URLSearchParams({ limit: String(Math.min(pageSize, most)) });
    if (cursor) query.set("cursor", cursor);
    const page = await get(`${path}?${query}`);
    items.push(...page.items);
    cursor = page.next_cursor;
  } while (cursor && items.length < most);
  return items;
}

/** Cut a stream of text into server-sent events; returns what is left over. */
export function cutEvents(text, onEvent) {
  // A "\r" at the end may be the first half of a line's end.
  const held = text.endsWith("\r") ? "\r" : "";
  const parts = text
    .slice(0, text.length - held.length)
    .replace(/\r\n?/g, "\n")
    .split("\n\n");
  const rest = parts.pop() + held;
  for (const part of parts) {
    let kind = "message";
    const lines = [];
    for (const line of part.split("\n")) {
      if (line.startsWith("event:")) kind = line.slice(6).trim();
      else if (line.startsWith("data:")) lines.push(line.slice(5).trimStart());
    }
    if (lines.length) onEvent(kind, lines.join("\n"));
  }
  return rest;
}

async function readEvents(onOpen, onEvent) {
  const control = new AbortController();
  const { signal } = control;
  const end = () => control.abort();
  let silence;
  let unseen;
  const rewind = () => {
    clearTimeout(silence);
    silence = setTimeout(end, SILENCE_MS);
  };
  const look = () => {
    clearTimeout(unseen);
    if (document.visibilityState === "hidden") unseen = setTimeout(end, UNSEEN_MS);
  };
  // A page that is left may be kept for the way back, with its connection.
  window.addEventListener("pagehide", end, { signal });
  document.addEventListener("visibilitychange", look, { signal });
  rewind();
  try {
    const response = check(await open("events", signal, "text/event-stream"));
    onOpen();
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rewind();
      rest = cutEvents(rest + value, onEvent);
    }
  } finally {
    clearTimeout(silence);
    clearTimeout(unseen);
    end();
  }
}

/** Wait until somebody looks. */
function visible() {
  return new Promise((resolve) => {
    const look = () => {
      if (document.visibilityState !== "visible") return;
      document.removeEventListener("visibilitychange", look);
      resolve();
    };
    document.addEventListener("visibilitychange", look);
    look();
  });
}

/**
 * Follow the live events for as long as the page is open.
 *
 * EventSource would do the same, but cannot send the token.
 *
 * @param {{onOpen: () => void, onLost: () => void, onEvent: (kind: string, body: any) => void,
 *   askToken: () => Promise<void>}} handlers
 */
export async function follow({ onOpen, onLost, onEvent, askToken }) {
  let pause = FIRST_RETRY_MS;
  for (;;) {
    await visible();
    try {
      await readEvents(
        () => {
          pause = FIRST_RETRY_MS;
          onOpen();
        },
        (kind, text) => {
          try {
            onEvent(kind, JSON.parse(text));
          } catch (error) {
            // One event that cannot be shown is no reason to lose the next.
            reportError(error);
          }
        },
      );
      onLost();
    } catch (error) {
      if (error instanceof TokenNeeded) {
        await askToken();
        continue;
      }
      onLost();
    }
    // Not all browsers at the same moment, when a server comes back.
    await wait(pause * (0.75 + Math.random() / 2));
    pause = Math.min(pause * 2, LAST_RETRY_MS);
  }
}

/** Wait so long, or until the network or the reader comes back. */
function wait(milliseconds) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      window.removeEventListener("online", done);
      document.removeEventListener("visibilitychange", seen);
      resolve();
    };
    const seen = () => document.visibilityState === "visible" && done();
    const timer = setTimeout(done, milliseconds);
    window.addEventListener("online", done);
    document.addEventListener("visibilitychange", seen);
  });
}
