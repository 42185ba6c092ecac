// A model card: the Markdown that cards use becomes elements (headings, paragraphs, lists, tables,
// code); the front matter, which is for programs, is left out; HTML stays text.
import { element } from "./dom.js";

const FRONT_MATTER = /^---\r?\n.*?\n---\r?\n/s;
const SPECIAL = /^(#{1,6} |```|\||[-*] |\s*$)/; // what ends a paragraph
// An escape, code, bold text, a link or an image.
const INLINE = /\\([!-/:-@[-`{-~])|`([^`]+)`|\*\*(.+?)\*\*|!?\[((?:\\.|[^\]\\])*)\]\(([^)\s]*)\)/gs;

export function renderCard(text) {
  const lines = text.replace(FRONT_MATTER, "").split(/\r?\n/), nodes = [];
  while (lines.length) nodes.push(...block(lines.shift(), lines));
  return nodes;
}

// The element that begins with `line`; it takes the lines that belong to it from `rest`.
function block(line, rest) {
  if (!line.trim()) return [];
  if (line.startsWith("```")) {
    const code = takeWhile(rest, (next) => !next.startsWith("```"));
    rest.shift();
    return [element("pre", { textContent: code.join("\n") })];
  }
  if (line.startsWith("|")) return [table([line, ...takeWhile(rest, (next) => next.startsWith("|"))])];
  const heading = /^(#{1,6}) +(.*)/.exec(line);
  if (heading) return [element(`h${Math.min(6, heading[1].length + 1)}`, {}, ...inline(heading[2]))];
  const more = () => takeWhile(rest, (next) => !SPECIAL.test(next));
  if (!/^[-*] /.test(line)) return [element("p", {}, ...inline([line, ...more()].join(" ")))];
  const items = [[line, ...more()]];
  while (/^[-*] /.test(rest[0])) items.push([rest.shift(), ...more()]);
  return [element("ul", {}, ...items.map((item) => element("li", {}, ...inline(item.join(" ").slice(2)))))];
}

function table(lines) {
  const rows = lines.filter((line) => !/^[|:\s-]+$/.test(line)).map((line) =>
    line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim()));
  const cell = (text, inHead) => element(inHead && text ? "th" : "td", {}, ...inline(text));
  return element("table", {}, ...rows.map((row, i) => element("tr", {}, ...row.map((text) => cell(text, !i)))));
}

function inline(text) {
  const nodes = [];
  let end = 0;
  for (const found of text.matchAll(INLINE)) {
    const [whole, escaped, code, bold, label, target] = found;
    nodes.push(text.slice(end, found.index));
    end = found.index + whole.length;
    if (escaped) nodes.push(escaped);
    else if (code) nodes.push(element("code", { textContent: code }));
    else if (bold) nodes.push(element("strong", {}, ...inline(bold)));
    else if (/^https?:/.test(target) && !whole.startsWith("!")) nodes.push(element("a", { href: target, rel: "noreferrer" }, ...inline(label)));
    else nodes.push(...inline(label));
  }
  return [...nodes, text.slice(end)];
}

function takeWhile(lines, belongs) {
  const taken = [];
  while (lines.length && belongs(lines[0])) taken.push(lines.shift());
  return taken;
}
