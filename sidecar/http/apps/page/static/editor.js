// The form of the writer: edit a file, check it, publish it; nobody overwrites what he has not seen.

import { fileUrl, request } from "./api.js";
import { render as renderDifference } from "./diff.js";
import { byId, count, make, say, short, show } from "./dom.js";

const PREVIEW_DELAY_MILLISECONDS = 150;

export class Editor {
  isOpen = false;
  isNew = false;
  #callbacks;
  #base = null;
  #busy = false;
  #previewTimer = 0;

  /** `shown()` returns the content on the page; `published(name, etag)` and `closed()` are called afterwards. */
  constructor(callbacks) {
    this.#callbacks = callbacks;
    byId("editor").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send(false);
    });
    byId("check").addEventListener("click", () => this.#send(true));
    byId("cancel").addEventListener("click", () => {
      if (this.mayClose()) callbacks.closed();
    });
    byId("mine").addEventListener("click", () => this.#rebase());
    byId("theirs").addEventListener("click", () => callbacks.closed());
    byId("changes").addEventListener("toggle", () => this.#preview());
    const text = byId("text");
    text.addEventListener("input", () => {
      this.#clear();
      clearTimeout(this.#previewTimer);
      this.#previewTimer = setTimeout(() => this.#preview(), PREVIEW_DELAY_MILLISECONDS);
    });
    text.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("editor").requestSubmit();
    });
    for (const name of ["keyup", "click", "input", "focus"]) text.addEventListener(name, showCaret);
  }

  /** Whether something was changed and not published. */
  get isDirty() {
    return this.isOpen && this.#value() !== this.#base.text;
  }

  open(isNew) {
    const shown = this.#callbacks.shown();
    this.isOpen = true;
    this.isNew = isNew;
    this.#base = isNew ? { name: null, etag: null, text: "" } : { name: shown.name, etag: shown.etag, text: shown.text };
    byId("editor-title").textContent = isNew ? "New file" : `Edit ${shown.name}`;
    show(byId("new-name"), isNew);
    byId("editor-name").value = "";
    byId("text").value = this.#base.text;
    byId("changes").open = false;
    show(byId("conflict"), false);
    this.#clear();
    this.#preview();
    show(byId("editor"), true);
    byId(isNew ? "editor-name" : "text").focus();
    byId("text").setSelectionRange(0, 0);
  }

  close() {
    this.isOpen = this.isNew = false;
    show(byId("editor"), false);
  }

  /** Ask whether changes may be lost, if there are any. */
  mayClose() {
    return !this.isDirty || confirm("Discard what you have changed?");
  }

  /** The content on the page has changed: if it is the one that is edited, somebody else has published. */
  contentChanged() {
    const shown = this.#callbacks.shown();
    if (!this.isOpen || this.isNew || this.#busy || shown.name !== this.#base.name) return;
    if (shown.etag !== this.#base.etag) this.#conflict(shown);
    else show(byId("conflict"), false);
  }

  /** The text with the line ends of the file: a text area has only newlines. */
  #value() {
    const text = byId("text").value;
    const base = this.#base.text;
    const onlyCrLf = base.includes("\r\n") && !/[^\r]\n|^\n/.test(base);
    return onlyCrLf ? text.replaceAll("\n", "\r\n") : text;
  }

  #preview() {
    if (!this.isOpen) return;
    const target = byId("changes-diff");
    const { added, removed } = renderDifference(target, this.#base.text, this.#value());
    byId("changes-count").textContent = added || removed ? `+${added} −${removed}` : "none";
    if (!byId("changes").open) target.replaceChildren();
  }

  #clear() {
    show(byId("editor-problem"), false);
    show(byId("editor-good"), false);
    byId("text").removeAttribute("aria-invalid");
    byId("editor-name").removeAttribute("aria-invalid");
  }

  async #send(isTrial) {
    if (this.#busy || !this.isOpen) return;
    const name = this.isNew ? byId("editor-name").value.trim() : this.#base.name;
    if (!name) {
      this.#problem("The file needs a name.", [], byId("editor-name"));
      return;
    }
    this.#setBusy(true);
    this.#clear();
    let etag = null;
    try {
      const condition = this.#base.etag === null ? { "If-None-Match": "*" } : { "If-Match": this.#base.etag };
      // Not the text itself: a browser would say that its media type is text/plain, whatever the file is.
      const body = new Blob([this.#value()]);
      const answer = await request(`${fileUrl(name)}${isTrial ? "?dry_run=1" : ""}`, { method: "PUT", headers: condition, body });
      etag = answer.headers.get("ETag");
    } catch (error) {
      await this.#refused(error, name);
      return;
    } finally {
      this.#setBusy(false);
    }
    if (isTrial) say(byId("editor-good"), "It would be accepted.");
    else await this.#callbacks.published(name, etag);
  }

  async #refused(error, name) {
    if (error.status === 412 && !this.isNew) {
      await this.#showNewest(name);
      byId("conflict").focus();
    } else if (error.status === 412) {
      this.#problem(`There is a file ${name} already.`, [], byId("editor-name"));
    } else if (error.kind === "bad-name" || error.kind === "name-taken") {
      this.#problem(error.message, [], byId("editor-name"));
    } else if (error.status === undefined) {
      this.#problem("The service does not answer. Nothing is known to have been published; try again.", []);
    } else {
      this.#problem(error.reasons.length ? `${error.body.title}:` : error.message, error.reasons);
    }
  }

  async #showNewest(name) {
    try {
      const answer = await request(fileUrl(name));
      this.#conflict({ etag: answer.headers.get("ETag"), text: await answer.text() });
    } catch (error) {
      if (error.status !== 404) throw error;
      this.#conflict({ etag: null, text: "" });
    }
  }

  #conflict(theirs) {
    this.#clear();
    this.theirs = theirs;
    byId("conflict-text").textContent = theirs.etag === null ? "The file was deleted. This is what you would publish:" : `Their version is ${short(theirs.etag)}. This is what yours would change in it:`;
    renderDifference(byId("conflict-diff"), theirs.text ?? "", this.#value());
    show(byId("conflict"), true);
  }

  /** Go on from their version: what is published next replaces that, and no other one. */
  #rebase() {
    this.#base = { ...this.#base, etag: this.theirs.etag, text: this.theirs.text ?? "" };
    show(byId("conflict"), false);
    byId("changes").open = true;
    this.#preview();
    byId("publish").focus();
  }

  #problem(message, reasons, field = byId("text")) {
    const target = byId("editor-problem");
    const items = reasons.map((reason) => {
      const place = /\bline (\d+)(?:,? column (\d+))?/.exec(reason);
      const item = make("li", {}, reason);
      if (place) item.append(" ", goToButton(Number(place[1]), Number(place[2] ?? 1)));
      return item;
    });
    target.replaceChildren(make("p", {}, message), ...(items.length ? [make("ul", {}, ...items)] : []));
    show(target, true);
    field.setAttribute("aria-invalid", "true");
    field.focus();
  }

  #setBusy(busy) {
    this.#busy = busy;
    for (const id of ["publish", "check"]) byId(id).disabled = busy;
  }
}

function goToButton(line, column) {
  const button = make("button", { type: "button" }, `Go to line ${line}`);
  button.addEventListener("click", () => goTo(line, column));
  return button;
}

/** Select a line of the text area from a column on. */
function goTo(line, column) {
  const text = byId("text");
  const before = text.value.split("\n").slice(0, line - 1);
  const start = before.reduce((sum, one) => sum + one.length + 1, 0);
  const end = text.value.indexOf("\n", start);
  const last = end < 0 ? text.value.length : end;
  text.focus();
  text.setSelectionRange(Math.min(start + column - 1, last), last);
  const height = Number.parseFloat(getComputedStyle(text).lineHeight);
  text.scrollTop = Math.max(0, (line - 4) * height);
  showCaret();
}

function showCaret() {
  const text = byId("text");
  const before = text.value.slice(0, text.selectionStart).split("\n");
  byId("caret").textContent = `Line ${before.length}, column ${before.at(-1).length + 1}, ${count(text.value.length, "character")}`;
}
