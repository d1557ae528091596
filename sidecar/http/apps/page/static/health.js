// What the probes say, and why.

import { request } from "./api.js";
import { byId, make, show } from "./dom.js";

const PROBES = [["livez", "Alive"], ["readyz", "Ready"]];

/** Ask the probes, and show their checks with the reasons of those that fail. */
export async function showHealth() {
  const answers = await Promise.all(PROBES.map(([path]) => ask(path)));
  const wrong = PROBES.filter((_, index) => !answers[index].ok).map(([, title]) => title.toLowerCase());
  const pill = byId("health");
  show(pill, true);
  pill.dataset.state = wrong.length ? "bad" : "good";
  pill.textContent = wrong.length ? `Not ${wrong.join(", not ")}` : "Healthy";
  const items = answers.flatMap(({ ok, checks }, index) => {
    const found = Object.entries(checks).filter(([, said]) => said !== "ok");
    const reasons = found.map(([name, said]) => make("p", { class: "small" }, `${name}: ${said}`));
    return [make("li", {}, make("span", { class: `dot ${ok ? "good" : "bad"}` }), make("div", {}, make("span", {}, ok ? PROBES[index][1] : `Not ${PROBES[index][1].toLowerCase()}`), ...reasons))];
  });
  byId("checks").replaceChildren(...items, ...details(answers.at(-1).details));
}

async function ask(path) {
  try {
    const { checks = {}, details: found = {} } = await (await request(path)).json();
    return { ok: true, checks, details: found };
  } catch (error) {
    const { checks = { service: "it does not answer" }, details: found = {} } = error.body ?? {};
    return { ok: false, checks, details: found };
  }
}

const LABELS = { mode: "Changes are noticed by", problem: "The last write failed", stale: "Out of date" };

function details(found) {
  return Object.values(found).flatMap((detail) =>
    Object.entries(detail)
      .filter(([name, value]) => name in LABELS && value !== null)
      .map(([name, value]) => make("li", {}, make("span", { class: `dot ${name === "mode" ? "idle" : "warn"}` }), make("div", {}, make("span", {}, `${LABELS[name]}${name === "mode" ? ` ${value}` : ""}`), name === "mode" ? null : make("p", { class: "small" }, String(value))))),
  );
}
