// The page of the reader and of the writer: what is published, since when, what was before, and (writer) publishing.

import { Problem, fileUrl, follow, getJson, hasToken, request, setToken } from "./api.js";
import { newLines, render as renderDifference } from "./diff.js";
import { age, byId, bytes, count, make, path, say, short, show, toast } from "./dom.js";
import { Editor } from "./editor.js";
import { showHealth } from "./health.js";
import { TITLES, languageOf, lines } from "./highlight.js";

const MAX_SHOWN_BYTES = 256 << 10;
const MAX_LISTED_FILES = 300;
const HEALTH_INTERVAL_MILLISECONDS = 10_000;
const TITLE = "sidecar";

const state = {
  about: null,
  files: [],
  selected: null,
  /** What is shown: { name, etag, text (null: not UTF-8), data, size, modified, whole }. */
  shown: null,
  versions: [],
  stale: null,
  comparing: null,
};

const editor = new Editor({
  shown: () => state.shown,
  published: async (name, etag) => {
    toast(`Published as ${short(etag)}`);
    state.selected = name;
    closeEditor();
    await refresh();
  },
  closed: closeEditor,
});

// Refreshing: one at a time, and once more if something has changed meanwhile.

let refreshing = null;
let again = false;

function refresh() {
  again = true;
  refreshing ??= (async () => {
    try {
      while (again) {
        again = false;
        await load();
      }
      say(byId("failure"), "");
    } catch (error) {
      failed(error);
    } finally {
      refreshing = null;
    }
  })();
  return refreshing;
}

async function load() {
  if (state.about === null || (state.about.name === null && !state.files.length)) await loadAbout();
  await loadFiles();
  const entry = state.files.find((one) => one.name === state.selected);
  if (!entry) {
    showNothing();
  } else if (state.shown?.name !== entry.name || state.shown.etag !== entry.etag) {
    await loadContent(entry);
  }
  await loadVersions();
}

async function loadAbout() {
  const about = (state.about = await getJson("ui/state"));
  say(byId("role"), about.role);
  say(byId("path"), about.path);
  byId("footer").textContent = `sidecar ${about.sidecar}`;
  show(byId("edit"), about.role === "writer");
  show(byId("new-file"), about.role === "writer" && about.name === null);
}

async function loadFiles() {
  try {
    const answer = await request("files");
    if (state.about.role === "reader") setStale(answer.headers.get("Sidecar-Stale"));
    state.files = await answer.json();
  } catch (error) {
    if (error.kind !== "nothing-published") throw error;
    state.files = [];
  }
  const names = state.files.map((one) => one.name);
  if (!names.includes(state.selected) && !editor.isNew) {
    state.selected = names.includes(state.about.name) ? state.about.name : (names[0] ?? null);
  }
  listFiles();
}

async function loadContent(entry) {
  const whole = entry.size <= MAX_SHOWN_BYTES;
  const headers = whole ? {} : { Range: `bytes=0-${MAX_SHOWN_BYTES - 1}` };
  let answer;
  try {
    answer = await request(fileUrl(entry.name), { headers });
  } catch (error) {
    if (error.status !== 404) throw error;
    return; // it was deleted since it was listed: an event follows
  }
  const data = new Uint8Array(await answer.arrayBuffer());
  const before = state.shown;
  state.shown = {
    name: entry.name,
    etag: answer.headers.get("ETag"),
    text: decode(data, whole),
    data,
    size: entry.size,
    modified: entry.modified,
    by: answer.headers.get("Sidecar-Published-By"),
    whole,
  };
  const changed = before !== null && before.name === entry.name;
  showContent(changed ? before : null);
  editor.contentChanged();
  if (changed && !editor.isOpen) toast(`${entry.name} is now ${short(state.shown.etag)}`);
}

async function loadVersions() {
  if (state.selected === null) {
    state.versions = [];
  } else {
    try {
      state.versions = await getJson(`ui/versions?name=${encodeURIComponent(state.selected)}`);
    } catch (error) {
      if (!(error instanceof Problem) || error.status === 401) throw error;
      state.versions = [];
    }
  }
  listVersions();
}

function decode(data, whole) {
  try {
    // The first part of a file may end within a character.
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(data, { stream: !whole });
  } catch {
    return null;
  }
}

// What is shown

function showContent(before) {
  const { name, etag, text, data, size, modified, by, whole } = state.shown;
  show(byId("viewer"), !editor.isOpen);
  byId("name").textContent = name;
  document.title = `${name} · ${TITLE} ${state.about.role}`;
  byId("version").replaceChildren(make("code", { title: etag }, short(etag)));
  byId("published").replaceChildren(age(modified), ...(by === null ? [] : [" ", make("span", { class: "by", title: by }, `by ${by}`)]));
  byId("size").replaceChildren(bytes(size));
  const code = byId("code");
  if (text === null) {
    byId("language").textContent = "Not text";
    code.replaceChildren(make("pre", { class: "hex" }, hex(data.subarray(0, 512))));
  } else {
    const language = languageOf(name, text);
    byId("language").textContent = `${TITLES[language]}, ${count(lineCount(text), "line")}`;
    const fresh = before?.text === undefined || before.text === null ? new Set() : newLines(before.text, text);
    code.replaceChildren(...codeLines(language, text, fresh));
  }
  if (size === 0) code.replaceChildren(make("p", { class: "muted" }, "The file is empty."));
  say(byId("truncated"), whole ? "" : `The first ${bytes(data.length)} of ${bytes(size)}. Download has all of it.`);
  const editable = whole && text !== null;
  byId("edit").disabled = !editable;
  byId("edit").title = editable ? "" : "Only a text of up to 256 KiB can be edited here";
  setFresh();
}

const lineCount = (text) => text.split("\n").length - (text.endsWith("\n") ? 1 : 0);

function codeLines(language, text, fresh) {
  const found = lines(language, text);
  if (found.length > 1 && !found.at(-1).length) found.pop();
  return found.map((parts, index) => {
    const line = make("div", { class: fresh.has(index + 1) ? "line fresh" : "line" });
    line.append(...(parts.length ? parts.map(([kind, part]) => (kind ? make("span", { class: `t-${kind}` }, part) : part)) : ["\u200b"]));
    return line;
  });
}

function hex(data) {
  const rows = [];
  for (let at = 0; at < data.length; at += 16) {
    const row = [...data.subarray(at, at + 16)];
    const digits = row.map((one) => one.toString(16).padStart(2, "0")).join(" ");
    const signs = row.map((one) => (one > 31 && one < 127 ? String.fromCharCode(one) : "·")).join("");
    rows.push(`${at.toString(16).padStart(4, "0")}  ${digits.padEnd(47)}  ${signs}`);
  }
  return rows.join("\n");
}

function showNothing() {
  state.shown = null;
  byId("name").textContent = state.about.name ?? state.about.path.split("/").filter(Boolean).at(-1) ?? "/";
  document.title = `${TITLE} ${state.about.role}`;
  for (const id of ["version", "published", "size"]) byId(id).textContent = "–";
  byId("language").textContent = "";
  byId("edit").disabled = true;
  byId("code").replaceChildren(make("p", { class: "muted" }, "Nothing has been published yet."));
  say(byId("truncated"), "");
  setFresh();
}

function setStale(reason) {
  state.stale = reason;
  say(byId("stale"), reason === null ? "" : `The content may be out of date: ${reason}`);
  setFresh();
}

function setFresh() {
  const [text, kind] = state.stale !== null ? ["Out of date", "warn"] : state.shown ? ["Up to date", "good"] : ["Waiting", "idle"];
  byId("freshness").replaceChildren(make("span", { class: `dot ${kind}` }), text);
}

function listFiles() {
  const filter = byId("filter").value.trim().toLowerCase();
  const found = state.files.filter((one) => one.name.toLowerCase().includes(filter));
  show(byId("files"), state.files.length > 1 || state.about.name === null);
  show(byId("filter"), state.files.length > 8);
  const list = byId("file-list");
  const focused = list.contains(document.activeElement) ? document.activeElement.dataset.name : null;
  list.replaceChildren(
    ...found.slice(0, MAX_LISTED_FILES).map((one) => {
      const button = make("button", { type: "button", "aria-current": one.name === state.selected ? "true" : null }, make("span", { class: "filename" }, ...path(one.name)), make("span", { class: "muted small" }, bytes(one.size, "B")));
      button.dataset.name = one.name;
      button.addEventListener("click", () => select(one.name));
      return make("li", {}, button);
    }),
  );
  if (focused !== null) [...list.querySelectorAll("button")].find((one) => one.dataset.name === focused)?.focus();
  const rest = found.length - MAX_LISTED_FILES;
  say(byId("more-files"), rest > 0 ? `and ${count(rest, "other file")}: use the filter` : "");
}

function select(name) {
  if (name === state.selected || !editor.mayClose()) return;
  closeEditor();
  state.selected = name;
  refresh();
}

// History

let listedVersions = "";

function listVersions() {
  const list = byId("history");
  const current = state.versions.find((one) => one.current);
  const isSet = current !== undefined && state.shown !== null && current.etag !== state.shown.etag;
  byId("history-title").textContent = isSet ? "History of the set" : "History";
  const listed = JSON.stringify(state.versions);
  if (listedVersions === listed) return; // what has the focus keeps it
  listedVersions = listed;
  const focused = list.contains(document.activeElement) ? document.activeElement.dataset.etag : null;
  list.replaceChildren(...state.versions.map(versionItem));
  if (focused) focusVersion(focused);
  const none = state.versions.some((one) => !one.current) ? "" : "The volume holds no older version.";
  say(byId("no-history"), none);
}

function focusVersion(etag) {
  [...byId("history").querySelectorAll("button")].find((one) => one.dataset.etag === etag)?.focus();
}

function versionItem(version) {
  const size = version.files > 1 ? `${count(version.files, "file")}, ${bytes(version.size)}` : bytes(version.size);
  const about = make("div", { class: "when" }, make("code", { title: version.etag }, short(version.etag)), make("span", { class: "muted small" }, age(version.published)), make("span", { class: "muted small by", title: origin(version) }, version.published_by === null ? size : `${size} · by ${version.published_by}`));
  if (version.current) return make("li", { class: "current" }, about, make("span", { class: "badge good" }, "current"));
  const button = make("button", { type: "button", "aria-label": `Compare version ${short(version.etag)} with the current one` }, "Compare");
  button.dataset.etag = version.etag;
  button.addEventListener("click", () => compare(version));
  return make("li", {}, about, button);
}

/** Who published a version, as what and by which request, as far as that is known. */
function origin(version) {
  const known = [["by", version.published_by], ["as", version.content_type], ["request", version.request_id]].filter(([, value]) => value !== null);
  return known.length ? `Published ${known.map((pair) => pair.join(" ")).join(", ")}` : null;
}

async function compare(version) {
  const writes = state.about.role === "writer";
  const dialog = byId("comparison");
  state.comparing = { version, name: state.selected, current: state.versions.find((one) => one.current)?.etag ?? null };
  byId("comparison-title").textContent = writes ? `What a rollback to ${short(version.etag)} changes` : `What has changed since ${short(version.etag)}`;
  byId("comparison-about").replaceChildren("It was published ", age(version.published), writes ? ". A rollback publishes it again, as a new version." : ".");
  say(byId("comparison-problem"), "");
  show(byId("rollback"), writes);
  byId("rollback").disabled = true;
  byId("differences").replaceChildren(make("p", { class: "muted" }, "Loading"));
  if (!dialog.open) dialog.showModal();
  try {
    const address = `ui/versions/${encodeURIComponent(short32(version.etag))}?name=${encodeURIComponent(state.selected)}`;
    showDifferences(await getJson(address), writes);
    byId("rollback").disabled = false;
  } catch (error) {
    byId("differences").replaceChildren();
    say(byId("comparison-problem"), error.message);
  }
}

const short32 = (etag) => etag.replaceAll('"', "");

function showDifferences(found, reversed) {
  const parts = found.files.map((file) => {
    const [from, to] = reversed ? [file.after, file.before] : [file.before, file.after];
    const title = make("h3", {}, file.name);
    const body = make("div", { class: "diff" });
    const unseen = [from, to].some((side) => side !== null && side.text === null);
    if (unseen) {
      const sizes = [from, to].map((side) => (side === null ? "nothing" : bytes(side.size)));
      body.append(make("p", { class: "muted" }, `No text that could be compared: ${sizes[0]} becomes ${sizes[1]}.`));
    } else {
      const { added, removed } = renderDifference(body, from?.text ?? "", to?.text ?? "");
      title.append(make("span", { class: "muted small" }, ` +${added} −${removed}`));
    }
    if (from === null) title.append(make("span", { class: "badge" }, "new"));
    if (to === null) title.append(make("span", { class: "badge" }, "removed"));
    return make("section", {}, title, body);
  });
  if (!parts.length) parts.push(make("p", { class: "muted" }, "It is what is published now."));
  if (found.omitted) parts.push(make("p", { class: "muted" }, `and ${count(found.omitted, "other file")}`));
  byId("differences").replaceChildren(...parts);
}

async function rollBack() {
  const { version, name, current } = state.comparing;
  byId("rollback").disabled = true;
  try {
    const headers = { "Content-Type": "application/json" };
    if (current !== null) headers["If-Match"] = current;
    await request("rollback", { method: "POST", headers, body: JSON.stringify({ to: version.etag, name }) });
    byId("comparison").close();
    toast(`Rolled back to ${short(version.etag)}`);
    await refresh();
  } catch (error) {
    if (error.status === 412) {
      await refresh();
      await compare(version);
      say(byId("comparison-problem"), "Somebody else has published meanwhile, so nothing was rolled back. This is the difference to what is there now.");
      return;
    }
    if (error.status === 401) byId("comparison").close();
    byId("rollback").disabled = false;
    say(byId("comparison-problem"), error.message);
  }
}

// Publishing

function openEditor(isNew) {
  editor.open(isNew);
  show(byId("viewer"), false);
}

function closeEditor() {
  const focused = byId("editor").contains(document.activeElement);
  editor.close();
  show(byId("viewer"), true);
  if (focused) byId("edit").focus();
}

// The connection, and what fails

function connectionState(name) {
  const texts = { live: ["Live", "good"], lost: ["Reconnecting", "warn"], unauthorized: ["No access", "bad"], idle: ["Connecting", "idle"] };
  const [text, kind] = texts[name];
  const pill = byId("connection");
  if (pill.dataset.state === kind) return;
  pill.dataset.state = kind;
  pill.textContent = text;
}

function failed(error) {
  if (error.status === 401) {
    askForToken();
  } else {
    const reason = error instanceof Problem ? error.message : "The service does not answer; trying again.";
    say(byId("failure"), reason);
  }
}

function askForToken() {
  const wrong = hasToken();
  setToken(null);
  connectionState("unauthorized");
  show(byId("main"), false);
  show(byId("forget"), false);
  show(byId("token"), true);
  say(byId("token-problem"), wrong ? "This token is not accepted." : "");
  byId("token-value").focus();
}

async function start() {
  await refresh();
  if (state.about === null) {
    if (byId("token").hidden) setTimeout(start, 2000);
    return;
  }
  show(byId("token"), false);
  show(byId("main"), true);
  show(byId("forget"), hasToken());
  health();
  if (reconnect === null) {
    reconnect = follow(state.about.events, onEvent, (name) => {
      connectionState(name);
      if (name === "unauthorized") askForToken();
      else if (name === "live") refresh();
      if (name !== "unauthorized") health();
    });
  } else {
    reconnect();
  }
}

let reconnect = null;

function onEvent(name, data) {
  if (name === "stale") setStale(JSON.parse(data).reason);
  else if (name === "fresh") setStale(null);
  else if (name === "content") refresh();
}

async function health() {
  if (document.hidden || byId("main").hidden) return;
  await showHealth();
}

// Events of the page

byId("token").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken(byId("token-value").value.trim());
  byId("token-value").value = "";
  start();
});
byId("forget").addEventListener("click", () => {
  setToken(null);
  location.reload();
});
byId("filter").addEventListener("input", listFiles);
byId("edit").addEventListener("click", () => openEditor(false));
byId("new-file").addEventListener("click", () => {
  if (editor.mayClose()) openEditor(true);
});
byId("rollback").addEventListener("click", rollBack);
byId("comparison").addEventListener("close", () => focusVersion(state.comparing.version.etag));
byId("close-comparison").addEventListener("click", () => byId("comparison").close());
byId("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(state.shown?.text ?? "");
    toast("Copied");
  } catch {
    toast("The browser lets only pages of https and localhost copy");
  }
});
byId("download").addEventListener("click", async () => {
  if (state.shown === null) return;
  try {
    const answer = await request(fileUrl(state.shown.name));
    const address = URL.createObjectURL(await answer.blob());
    make("a", { href: address, download: state.shown.name.split("/").at(-1) }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
  } catch (error) {
    failed(error);
  }
});
addEventListener("beforeunload", (event) => {
  if (editor.isDirty) event.preventDefault();
});
setInterval(health, HEALTH_INTERVAL_MILLISECONDS);

start();
