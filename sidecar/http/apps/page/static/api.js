// Requests to the application that serves this page, with the token if it asks for one.

/** The address of the application: this module is at `ui/api.js` beneath it. */
export const base = new URL("..", import.meta.url);

const TOKEN_KEY = `sidecar token of ${base.pathname}`;
const SILENCE_MILLISECONDS = 40_000; // the server sends a comment every 15 seconds
const MAX_RETRY_MILLISECONDS = 15_000;
const HIDDEN_MILLISECONDS = 15_000;

let token = readToken();
let clockOffset = 0;

function readToken() {
  try {
    return sessionStorage.getItem(TOKEN_KEY);
  } catch {
    return null; // storage is forbidden: the token lives as long as the page
  }
}

/** Use another token, or none (null). It is kept for this tab alone. */
export function setToken(value) {
  token = value;
  try {
    if (value === null) sessionStorage.removeItem(TOKEN_KEY);
    else sessionStorage.setItem(TOKEN_KEY, value);
  } catch {
    // see readToken
  }
}

export const hasToken = () => token !== null;

/** The time of the server in milliseconds: ages must not depend on the clock of this machine. */
export const now = () => Date.now() + clockOffset;

/** An answer that is an error: RFC 9457. */
export class Problem extends Error {
  constructor(status, body) {
    super(body.detail || body.title || `The answer was ${status}`);
    this.status = status;
    this.body = body;
    this.kind = String(body.type || "").replace("/problems/", "");
    this.reasons = Array.isArray(body.reasons) ? body.reasons : [];
  }
}

/** Send a request to a path beneath the application. Throws `Problem`, or `TypeError` if nobody answers. */
export async function request(path, options = {}) {
  const headers = new Headers(options.headers);
  if (token !== null) headers.set("Authorization", `Bearer ${token}`);
  const answer = await fetch(new URL(path, base), { cache: "no-store", ...options, headers });
  const date = Date.parse(answer.headers.get("Date"));
  // `Date` has whole seconds: a smaller difference is none.
  if (!Number.isNaN(date)) clockOffset = Math.abs(date - Date.now()) < 2000 ? 0 : date - Date.now();
  if (answer.ok) return answer;
  let body = {};
  try {
    body = await answer.json();
  } catch {
    // a proxy answers in its own way
  }
  throw new Problem(answer.status, body);
}

export const getJson = async (path) => (await request(path)).json();

/** The path of a file: each part of its name is escaped, the slashes between them are not. */
export const fileUrl = (name) => `files/${name.split("/").map(encodeURIComponent).join("/")}`;

/**
 * Follow server-sent events until the page is left. `EventSource` could not send a token.
 *
 * Calls `onEvent(name, data)` for each event, and `onState("live" | "lost" | "unauthorized")`.
 * A hidden page gives its connection back: browsers have six for an origin. Returns a function that connects again.
 */
export function follow(path, onEvent, onState) {
  let abort = null;
  let lastId = "";
  let retry = 1000;
  let hiddenTimer = 0;
  let running = false;

  async function connect() {
    if (running) return;
    running = true;
    let failures = 0;
    while (!document.hidden) {
      try {
        await read();
        failures = 0;
        onState("lost");
      } catch (error) {
        if (error.status === 401) {
          onState("unauthorized");
          break;
        }
        failures += 1;
        if (!document.hidden) onState("lost");
      }
      if (document.hidden) break;
      const pause = Math.min(retry * 2 ** Math.max(0, failures - 1), MAX_RETRY_MILLISECONDS);
      await new Promise((done) => setTimeout(done, failures ? pause : 50));
    }
    running = false;
  }

  async function read() {
    abort = new AbortController();
    const watch = silenceWatch(abort);
    try {
      const headers = { Accept: "text/event-stream" };
      if (lastId) headers["Last-Event-ID"] = lastId;
      const answer = await request(path, { headers, signal: abort.signal });
      onState("live");
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let buffer = "";
      let event = { name: "message", data: [] };
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        watch.restart();
        buffer += value;
        const lines = buffer.split("\n");
        buffer = lines.pop();
        for (const line of lines) event = take(line, event);
      }
    } finally {
      watch.stop();
    }
  }

  function take(line, event) {
    if (line === "") {
      if (event.data.length) onEvent(event.name, event.data.join("\n"));
      return { name: "message", data: [] };
    }
    const colon = line.indexOf(":");
    if (colon === 0) return event; // a comment
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "event") event.name = value;
    else if (field === "data") event.data.push(value);
    else if (field === "id") lastId = value;
    else if (field === "retry" && /^\d+$/.test(value)) retry = Number(value);
    return event;
  }

  document.addEventListener("visibilitychange", () => {
    clearTimeout(hiddenTimer);
    if (document.hidden) hiddenTimer = setTimeout(() => abort?.abort(), HIDDEN_MILLISECONDS);
    else connect();
  });
  connect();
  return connect;
}

function silenceWatch(abort) {
  let timer = 0;
  const restart = () => {
    clearTimeout(timer);
    timer = setTimeout(() => abort.abort(), SILENCE_MILLISECONDS);
  };
  restart();
  return { restart, stop: () => clearTimeout(timer) };
}
