// The Markdown that models write, as elements: headings, lists, code, bold, emphasis. Texts are never read as HTML.
import { element } from "./dom.js";

export function markdown(text) {
  const out = [];
  const parts = text.split(/^```[^\n]*\n?/m);
  parts.forEach((part, i) => {
    if (i % 2) {
      const pre = document.createElement("pre");
      pre.append(element("code", "", part.replace(/\n$/, "")));
      out.push(pre);
    } else out.push(...blocks(part));
  });
  return out;
}

function blocks(text) {
  const out = [];
  let list = null;
  let lines = [];
  const flush = () => {
    if (lines.length) {
      const p = document.createElement("p");
      p.append(...inline(lines.join("\n")));
      out.push(p);
    }
    lines = [];
  };
  for (const line of text.split("\n")) {
    const item = /^\s*(?:[-*+]|(\d{1,3})[.)])\s+(.*)$/.exec(line);
    const heading = /^#{1,6}\s+(.*)$/.exec(line);
    if (item) {
      flush();
      const kind = item[1] ? "ol" : "ul";
      if (list?.localName !== kind) out.push((list = document.createElement(kind)));
      const li = document.createElement("li");
      li.append(...inline(item[2]));
      list.append(li);
      continue;
    }
    list = null;
    if (heading) {
      flush();
      out.push(element("h3", "", heading[1]));
    } else if (line.trim()) lines.push(line);
    else flush();
  }
  flush();
  return out;
}

function inline(text) {
  return text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*|(?<![\w*])\*[^*\s][^*\n]*\*(?![\w*]))/).map((part) => {
    if (part.length > 2 && part.startsWith("`")) return element("code", "", part.slice(1, -1));
    if (part.length > 4 && part.startsWith("**")) return element("b", "", part.slice(2, -2));
    if (part.length > 2 && part.startsWith("*") && part.endsWith("*")) return element("em", "", part.slice(1, -1));
    return document.createTextNode(part);
  });
}
