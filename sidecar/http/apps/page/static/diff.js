// The difference of two texts by lines (Myers), and how it is shown.

import { make } from "./dom.js";

const MAX_EDITS = 1500;
const CONTEXT_LINES = 3;
const MAX_ROWS = 3000;
const MAX_PAIRED_LINES = 200;

/** Return the lines of both texts as [sign, line]: "=" in both, "-" in the first alone, "+" in the second alone. */
export function difference(before, after) {
  const a = splitLines(before);
  const b = splitLines(after);
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start += 1;
  let endA = a.length;
  let endB = b.length;
  while (endA > start && endB > start && a[endA - 1] === b[endB - 1]) {
    endA -= 1;
    endB -= 1;
  }
  const same = (line) => ["=", line];
  return [
    ...a.slice(0, start).map(same),
    ...edits(a.slice(start, endA), b.slice(start, endB)),
    ...a.slice(endA).map(same),
  ];
}

/** A last line without a newline is a line; nothing after a last newline is none. */
function splitLines(text) {
  if (text === "") return [];
  const found = text.split("\n");
  if (found.at(-1) === "") found.pop();
  else found.push(`${found.pop()}\u0000`); // differs from the same line with a newline
  return found;
}

function edits(a, b) {
  const replaced = () => [...a.map((line) => ["-", line]), ...b.map((line) => ["+", line])];
  if (!a.length || !b.length) return replaced();
  const most = Math.min(a.length + b.length, MAX_EDITS);
  const middle = most + 1; // the index of diagonal 0
  const reach = new Int32Array(2 * most + 3);
  const trace = [];
  for (let d = 0; d <= most; d += 1) {
    trace.push(reach.slice(middle - d - 1, middle + d + 2));
    for (let k = -d; k <= d; k += 2) {
      let x = isDown(k, d, (one) => reach[middle + one]) ? reach[middle + k + 1] : reach[middle + k - 1] + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x += 1;
      reach[middle + k] = x;
      if (x >= a.length && x - k >= b.length) return backtrack(a, b, trace, d);
    }
  }
  return replaced(); // too different to be worth more time
}

/** Whether the furthest path of `d` edits to diagonal `k` ends with an added line. */
function isDown(k, d, reached) {
  return k === -d || (k !== d && reached(k - 1) < reached(k + 1));
}

function backtrack(a, b, trace, last) {
  const found = [];
  let x = a.length;
  let y = b.length;
  for (let d = last; d > 0; d -= 1) {
    const reached = (one) => trace[d][one + d + 1];
    const k = x - y;
    const down = isDown(k, d, reached);
    const startX = down ? reached(k + 1) : reached(k - 1);
    const startY = startX - (down ? k + 1 : k - 1);
    while (x > startX + (down ? 0 : 1) && y > startY + (down ? 1 : 0)) {
      x -= 1;
      y -= 1;
      found.push(["=", a[x]]);
    }
    found.push(down ? ["+", b[startY]] : ["-", a[startX]]);
    x = startX;
    y = startY;
  }
  while (x > 0) {
    x -= 1;
    found.push(["=", a[x]]);
  }
  return found.reverse();
}

/** Count the lines that were added and removed. */
export function countChanges(lines) {
  const of = (sign) => lines.filter(([one]) => one === sign).length;
  return { added: of("+"), removed: of("-") };
}

/** The numbers of the lines of the second text that are new in it. */
export function newLines(before, after) {
  const found = new Set();
  let number = 0;
  for (const [sign] of difference(before, after)) {
    if (sign !== "-") number += 1;
    if (sign === "+") found.add(number);
  }
  return found;
}

/** Show a difference: changed lines with some context; what both have alike is folded. */
export function render(container, before, after) {
  const lines = difference(before, after);
  const near = new Set();
  lines.forEach(([sign], at) => {
    if (sign === "=") return;
    for (let one = at - CONTEXT_LINES; one <= at + CONTEXT_LINES; one += 1) near.add(one);
  });
  const rows = [];
  const number = { "-": 0, "+": 0 };
  let folded = 0;
  const unfold = () => {
    if (folded) rows.push(make("div", { class: "fold" }, `${folded} unchanged line${folded === 1 ? "" : "s"}`));
    folded = 0;
  };
  lines.forEach(([sign, line], at) => {
    if (sign !== "+") number["-"] += 1;
    if (sign !== "-") number["+"] += 1;
    if (!near.has(at)) {
      folded += 1;
      return;
    }
    unfold();
    if (rows.length >= MAX_ROWS) return;
    rows.push(row(sign, line, partner(lines, at), number[sign === "-" ? "-" : "+"]));
  });
  unfold();
  if (rows.length >= MAX_ROWS) rows.push(make("p", { class: "muted" }, "There is more than can be shown."));
  if (!near.size) rows.splice(0, rows.length, make("p", { class: "muted" }, "There is no difference."));
  container.replaceChildren(...rows);
  return countChanges(lines);
}

const KINDS = { "=": ["div", "same", " "], "-": ["del", "removed", "−"], "+": ["ins", "added", "+"] };

function row(sign, line, other, number) {
  const [tag, kind, mark] = KINDS[sign];
  const text = line.replace("\u0000", "");
  const code = make("span", { class: "text" }, ...emphasised(text, other));
  if (line.endsWith("\u0000") && sign !== "=") code.append(make("span", { class: "muted" }, " (no newline at the end)"));
  return make(tag, { class: `line ${kind}` }, make("span", { class: "number" }, String(number)), make("span", { class: "mark" }, mark), code);
}

/** The line that replaces one, where as many lines come as go. */
function partner(lines, at) {
  const [sign] = lines[at];
  if (sign === "=") return null;
  let start = at;
  while (start > 0 && lines[start - 1][0] !== "=" && at - start < MAX_PAIRED_LINES) start -= 1;
  let end = at;
  while (end < lines.length && lines[end][0] !== "=" && end - at < MAX_PAIRED_LINES) end += 1;
  if (Math.max(at - start, end - at) === MAX_PAIRED_LINES) return null;
  const block = lines.slice(start, end);
  const removed = block.filter(([one]) => one === "-");
  const added = block.filter(([one]) => one === "+");
  if (removed.length !== added.length) return null;
  const index = block.slice(0, at - start).filter(([one]) => one === sign).length;
  return (sign === "-" ? added : removed)[index][1].replace("\u0000", "");
}

/** The text, with what differs from the other line marked, if the two have enough in common. */
function emphasised(text, other) {
  if (other === null) return [text];
  const least = Math.min(text.length, other.length);
  let start = 0;
  while (start < least && text[start] === other[start]) start += 1;
  let end = 0;
  while (end < least - start && text.at(-1 - end) === other.at(-1 - end)) end += 1;
  if (/[\uDC00-\uDFFF]/.test(text[start] ?? "")) start -= 1; // never between the halves of a character
  if (end && /[\uDC00-\uDFFF]/.test(text[text.length - end])) end -= 1;
  if (start + end < 3 || start + end === text.length) return [text];
  const middle = text.slice(start, text.length - end);
  return [text.slice(0, start), make("em", {}, middle), text.slice(text.length - end)];
}
