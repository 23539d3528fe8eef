// The Markdown that models write, as elements: headings, lists, tables, quotes, code, links, bold, emphasis. Texts are
// never read as HTML. What a model thought before it answered (<think>) is folded.
import { copier, element } from "./dom.js";

export function markdown(text) {
  const thought = /^\s*<think>([\s\S]*?)(?:<\/think>|$)/.exec(text);
  if (!thought) return body(text);
  const rest = text.slice(thought[0].length);
  if (!thought[1].trim()) return body(rest);
  const box = element("details", "thought");
  box.open = !rest.trim(); // while there is nothing else to read
  box.append(element("summary", "", "thought"), element("p", "", thought[1].trim()));
  return [box, ...body(rest)];
}

function body(text) {
  const out = [];
  text.split(/^\s*```[^\n]*\n?/m).forEach((part, i) => {
    if (i % 2) {
      const pre = document.createElement("pre");
      const code = element("code", "", part.replace(/\n$/, ""));
      pre.append(code, copier(() => code.textContent));
      out.push(pre);
    } else out.push(...blocks(part));
  });
  return out;
}

const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((c) => c.trim());
const isRule = (line) => line !== undefined && line.includes("-") && line.includes("|") && /^[\s|:-]+$/.test(line);

function blocks(text) {
  const out = [];
  const all = text.split("\n");
  let list = null;
  let lines = [];
  const flush = () => {
    if (lines.length) out.push(filled("p", lines.join("\n")));
    lines = [];
  };
  for (let i = 0; i < all.length; i += 1) {
    const line = all[i];
    const item = /^\s*(?:[-*+]|(\d{1,3})[.)])\s+(.*)$/.exec(line);
    const heading = /^#{1,6}\s+(.*)$/.exec(line);
    const quote = /^>\s?(.*)$/.exec(line);
    if (item) {
      flush();
      const kind = item[1] ? "ol" : "ul";
      if (list?.localName !== kind) {
        out.push((list = document.createElement(kind)));
        if (item[1]) list.start = Number(item[1]);
      }
      list.append(filled("li", item[2]));
      continue;
    }
    list = null;
    if (heading) {
      flush();
      out.push(filled("h3", heading[1]));
    } else if (quote) {
      flush();
      out.push(filled("blockquote", quote[1]));
    } else if (/^\s*(?:-{3,}|\*{3,}|_{3,})\s*$/.test(line)) {
      flush();
      out.push(document.createElement("hr"));
    } else if (line.includes("|") && isRule(all[i + 1])) {
      flush();
      const table = document.createElement("table");
      table.append(tr("th", cells(line)));
      for (i += 2; i < all.length && all[i].includes("|"); i += 1) table.append(tr("td", cells(all[i])));
      i -= 1;
      const wide = element("div", "wide");
      wide.append(table);
      out.push(wide);
    } else if (line.trim()) lines.push(line);
    else flush();
  }
  flush();
  return out;
}

function tr(kind, texts) {
  const row = document.createElement("tr");
  row.append(...texts.map((text) => filled(kind, text)));
  return row;
}

function filled(kind, text) {
  const made = document.createElement(kind);
  made.append(...inline(text));
  return made;
}

const INLINE = /(`[^`\n]+`|\*\*[^*\n]+\*\*|(?<![\w*])\*[^*\s][^*\n]*\*(?![\w*])|\[[^\]\n]+\]\(https?:\/\/[^\s()]+\))/;

function inline(text) {
  return text.split(INLINE).map((part) => {
    const link = /^\[([^\]\n]+)\]\((https?:\/\/[^\s()]+)\)$/.exec(part);
    if (link) { // where it goes is seen before somebody follows it
      const made = element("a", "", link[1]);
      made.href = made.title = link[2];
      made.target = "_blank";
      made.rel = "noopener noreferrer nofollow";
      return made;
    }
    if (part.length > 2 && part.startsWith("`")) return element("code", "", part.slice(1, -1));
    if (part.length > 4 && part.startsWith("**")) return element("b", "", part.slice(2, -2));
    if (part.length > 2 && part.startsWith("*") && part.endsWith("*")) return element("em", "", part.slice(1, -1));
    return document.createTextNode(part);
  });
}
