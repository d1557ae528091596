// Syntax colours for JSON, YAML and INI: `lines(name, text)` cuts a text into lines of [class, text] parts.

const MAX_LENGTH = 128 << 10;
const SUFFIXES = {
  json: "json", jsonl: "json", ndjson: "json", yaml: "yaml", yml: "yaml",
  ini: "ini", cfg: "ini", conf: "ini", toml: "ini", properties: "ini", env: "ini",
};
export const TITLES = { json: "JSON", yaml: "YAML", ini: "Settings", text: "Text" };

// No pattern spans lines, and none can match in two ways: the time is linear.
const PATTERNS = {
  json: [
    ["key", /"(?:\\.|[^"\\\n])*"(?=\s*:)/y],
    ["string", /"(?:\\.|[^"\\\n])*"/y],
    ["number", /-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/y],
    ["literal", /(?:true|false|null)\b/y],
    ["sign", /[{}[\],:]/y],
  ],
  yaml: [
    ["comment", /(?<![^\s])#[^\n]*/y],
    ["key", /(?<=^[ \t]*(?:- +)*)(?:"[^"\n]*"|'[^'\n]*'|[^\s#"'\-[\]{}&*!|>%@,:][^:#\n]*?)(?=:(?:\s|$))/my],
    ["string", /"(?:\\.|[^"\\\n])*"|'(?:''|[^'\n])*'/y],
    ["literal", /(?<=[\s[,])(?:true|false|null|yes|no|on|off|~)(?=[ \t]*(?:[,\]}#\n]|$))/iy],
    ["number", /(?<=[\s[,])[-+]?\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?(?=[ \t]*(?:[,\]}#\n]|$))/y],
    ["type", /(?<=[\s[])[&*!][\w!-]+/y],
    ["sign", /^---|[[\]{},]|[:|>-](?=\s|$)/my],
  ],
  ini: [
    ["comment", /(?<=^[ \t]*)[#;][^\n]*/my],
    ["type", /(?<=^[ \t]*)\[[^\]\n]*\]+/my],
    ["key", /(?<=^[ \t]*(?:export )?)[\w.\-"']+(?=[ \t]*[=:])/my],
    ["string", /"(?:\\.|[^"\\\n])*"|'[^'\n]*'/y],
    ["literal", /(?<=[=:\s])(?:true|false|yes|no|on|off)(?=\s|$)/iy],
    ["number", /(?<=[=:\s])-?\d+(?:\.\d+)?(?=\s|$)/y],
    ["sign", /[=]/y],
  ],
};

/** The language of a text: by the suffix of its name, else by how it looks. */
export function languageOf(name, text) {
  const suffix = name.includes(".") ? name.split(".").pop().toLowerCase() : "";
  if (SUFFIXES[suffix]) return SUFFIXES[suffix];
  const start = text.trimStart();
  if (/^[{[]/.test(start) && isJson(text)) return "json";
  const some = text.slice(0, 4096).split("\n").filter((line) => line.trim() && !/^\s*[#;]/.test(line));
  const share = (pattern) => some.filter((line) => pattern.test(line)).length / Math.max(some.length, 1);
  if (/^---\s/.test(text) || (share(/^\s*(- .*|[\w."'/-]+:(\s.*)?)$/) > 0.8 && share(/^\s*[\w."'/-]+:(\s|$)/) > 0.3)) return "yaml";
  if (share(/^\s*(\[[^\]]+\]|[\w.-]+\s*=.*)$/) > 0.8) return "ini";
  return "text";
}

function isJson(text) {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

/** Cut a text into lines, each a list of [class, text]; the class is empty for plain text. */
export function lines(language, text) {
  const patterns = text.length <= MAX_LENGTH ? PATTERNS[language] : undefined;
  if (!patterns) return text.split("\n").map((line) => [["", line]]);
  const found = [[]];
  const add = (kind, part) => {
    part.split("\n").forEach((piece, number) => {
      if (number) found.push([]);
      if (piece) found.at(-1).push([kind, piece]);
    });
  };
  let plain = 0;
  for (let at = 0; at < text.length; ) {
    let matched = false;
    for (const [kind, pattern] of patterns) {
      pattern.lastIndex = at;
      const match = pattern.exec(text);
      if (match === null || match[0] === "") continue;
      if (plain < at) add("", text.slice(plain, at));
      add(kind, match[0]);
      at = plain = pattern.lastIndex;
      matched = true;
      break;
    }
    if (!matched) at = skip(text, at);
  }
  if (plain < text.length) add("", text.slice(plain));
  return found;
}

/** The next place at which a token can begin: after a word, no letter begins one. */
function skip(text, at) {
  const word = /[A-Za-z0-9_]+|[^A-Za-z0-9_]/y;
  word.lastIndex = at;
  word.exec(text);
  return Math.max(word.lastIndex, at + 1);
}
