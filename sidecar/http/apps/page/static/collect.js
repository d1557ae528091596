// The page of a collection: its files with their lag, and its sinks.

import { getJson } from "./api.js";
import { byId, bytes, count, make, path, say, show } from "./dom.js";
import { showHealth } from "./health.js";

const INTERVAL_MILLISECONDS = 2000;
const RATE_SAMPLES = 5;
const numbers = new Intl.NumberFormat("en");
const samples = [];

async function refresh() {
  if (document.hidden) return;
  const pill = byId("connection");
  try {
    const state = await getJson("ui/state");
    showState(state);
    pill.dataset.state = "good";
    say(pill, "Live");
  } catch {
    pill.dataset.state = "warn";
    say(pill, "Reconnecting");
  }
  await showHealth();
}

function showState(state) {
  show(byId("main"), true);
  byId("footer").textContent = `sidecar ${state.sidecar}`;
  say(byId("trouble"), state.started ? state.problem : "The files are still being looked for.");
  const sum = (name) => state.pipelines.reduce((total, one) => total + one[name], 0);
  const lines = sum("lines");
  byId("lines").textContent = numbers.format(lines);
  byId("lag").textContent = bytes(sum("lag"));
  byId("refused").textContent = numbers.format(sum("refused"));
  samples.push([performance.now(), lines]);
  if (samples.length > RATE_SAMPLES) samples.shift();
  const [[start, before], [end, after]] = [samples[0], samples.at(-1)];
  byId("rate").textContent = end > start ? numbers.format(Math.round(Math.max(0, after - before) / ((end - start) / 1000))) : "–";
  byId("pipelines").replaceChildren(...state.pipelines.map(pipeline));
}

function pipeline(one) {
  const title = make("h2", {}, one.name || "Sinks");
  const where = make("p", { class: "muted small" }, one.checkpoint === null ? "Without a checkpoint: every start begins anew." : `Checkpoint: ${one.checkpoint}`);
  const omitted = one.omitted ? make("p", { class: "muted small" }, `and ${count(one.omitted, "other file")} with less to deliver`) : null;
  const files = one.files.length ? table(["File", "Size", "To deliver", "State"], one.files.map(fileRow)) : make("p", { class: "muted" }, "No file matches yet.");
  return make(
    "section",
    { class: "card" },
    make("div", { class: "head" }, title),
    table(["Sink", "In flight", "State"], one.sinks.map(sinkRow)),
    make("div", { class: "head" }, make("h2", {}, "Files"), make("span", { class: "muted small" }, count(one.files.length + one.omitted, "file"))),
    files,
    ...(omitted ? [omitted] : []),
    where,
  );
}

function sinkRow(sink) {
  const failing = sink.failure !== null;
  const text = failing ? `Has taken nothing for ${count(Math.round(sink.failing_seconds), "second")}: ${sink.failure}` : "Takes lines";
  const flight = make("td", { class: "number" }, bytes(sink.pending), bar(sink.pending, sink.budget, `${sink.name}: in flight`));
  return make("tr", {}, make("td", {}, make("span", { class: "filename" }, ...path(sink.name))), flight, make("td", {}, make("span", { class: `dot ${failing ? "bad" : "good"}` }), ` ${text}`));
}

function fileRow(file) {
  const behind = file.positions.length > 1 ? file.positions.filter((one) => one.lag).map((one) => make("span", { class: "muted small" }, `${one.sink}: ${bytes(one.lag)} `)) : [];
  const name = make("td", {}, make("span", { class: "filename" }, ...path(file.file)), ...(behind.length ? [make("div", {}, ...behind)] : []));
  const lag = make("td", { class: "number" }, file.lag ? bytes(file.lag) : "nothing", bar(file.size - file.lag, file.size || 1, `${file.file}: delivered`));
  return make("tr", {}, name, make("td", { class: "number" }, bytes(file.size)), lag, make("td", {}, file.state));
}

function bar(value, most, label) {
  return make("progress", { value: String(Math.min(value, most)), max: String(Math.max(most, 1)), "aria-label": label });
}

const NUMBERS = new Set(["Size", "To deliver", "In flight"]);

function table(titles, rows) {
  const head = make("tr", {}, ...titles.map((title) => make("th", { scope: "col", class: NUMBERS.has(title) ? "number" : null }, title)));
  return make("div", { class: "scroll" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
}

document.addEventListener("visibilitychange", refresh);
setInterval(refresh, INTERVAL_MILLISECONDS);
refresh();
