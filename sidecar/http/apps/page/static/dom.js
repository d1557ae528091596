// Elements and texts. Everything that comes from elsewhere becomes a text node, so nothing in it can run.

import { now } from "./api.js";

export const byId = (id) => document.getElementById(id);

/** Make an element: `make("li", { class: "new" }, "text", child, …)`. Attributes that are null or false are left out. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Show a text in an element, or hide the element if there is none. */
export function say(element, text) {
  element.textContent = text || "";
  element.hidden = !text;
}

export function show(element, visible) {
  element.hidden = !visible;
}

const numbers = new Intl.NumberFormat("en");

export const count = (number, one, many = `${one}s`) => `${numbers.format(number)} ${number === 1 ? one : many}`;

/** A number of bytes for people: `12.3 KiB`. `unit` in place of the word "bytes" where there is little room. */
export function bytes(size, unit = null) {
  if (size < 1024) return unit === null ? count(size, "byte") : `${size} ${unit}`;
  const units = ["KiB", "MiB", "GiB", "TiB"];
  let value = size;
  let power = -1;
  do {
    value /= 1024;
    power += 1;
  } while (value >= 1024 && power < units.length - 1);
  return `${value < 100 ? value.toFixed(1) : Math.round(value)} ${units[power]}`;
}

const STEPS = [[86_400, "day"], [3600, "hour"], [60, "minute"]];

/** How long ago a time was: `3 minutes ago`. */
export function ago(milliseconds) {
  const seconds = (now() - milliseconds) / 1000;
  if (seconds < 5) return "just now";
  if (seconds < 60) return `${Math.floor(seconds)} seconds ago`;
  for (const [length, unit] of STEPS) {
    if (seconds >= length) return `${count(Math.floor(seconds / length), unit)} ago`;
  }
  return "";
}

const ages = new Set();

/** Make an element that says how long ago a time was, as long as it is on the page. */
export function age(time) {
  const moment = new Date(time);
  const element = make("time", { datetime: moment.toISOString(), title: moment.toLocaleString() });
  element.textContent = ago(moment.getTime());
  ages.add(element);
  return element;
}

setInterval(() => {
  for (const element of ages) {
    if (!element.isConnected) ages.delete(element);
    else element.textContent = ago(Date.parse(element.dateTime));
  }
}, 1000);

/** A path that may break after each slash. */
export function path(text) {
  const parts = text.split(/(?<=\/)/);
  return parts.flatMap((part, index) => (index ? [make("wbr"), part] : [part]));
}

/** The beginning of an entity tag: enough to tell versions apart. */
export const short = (etag) => etag.replace(/^(W\/)?"|"$/g, "").slice(0, 8);

let toastTimer = 0;

/** Tell something in passing; a screen reader says it, too. */
export function toast(text) {
  const element = byId("toast");
  element.textContent = text;
  element.classList.add("shown");
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => element.classList.remove("shown"), 5000);
}
