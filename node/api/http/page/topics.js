// The conversations that this node holds: find one, go on with it, let it go on every node.
import { button, element } from "./dom.js";

const $ = (id) => document.getElementById(id);
const SHOWN = 12;

export class Topics {
  constructor(call, chat) {
    Object.assign(this, { call, chat, topics: [], names: new Map(), listed: "" });
    $("find").addEventListener("input", () => this.list());
  }

  update(topics, names) {
    Object.assign(this, { topics, names });
    this.list();
  }

  list() {
    const wanted = $("find").value.trim().toLowerCase();
    const now = JSON.stringify([this.topics, [...this.names], this.chat.topic, wanted]);
    if (now === this.listed) return; // what is pointed at stays where it is
    this.listed = now;
    $("find").hidden = this.topics.length < 2 && !wanted;
    const box = $("topics");
    const focused = document.activeElement?.dataset.at; // and what has the focus keeps it
    const found = this.topics.filter((t) => t.topic.toLowerCase().includes(wanted));
    if (!found.length) {
      box.replaceChildren(element("p", "", wanted ? "None has this in its name." : "None yet: a conversation becomes one."));
      return;
    }
    const latest = found.sort((a, b) => Number(b.made_ms ?? 0) - Number(a.made_ms ?? 0));
    const table = document.createElement("table");
    table.append(row("th", ["topic", "version", "tokens", "held by", ""]));
    table.append(...latest.slice(0, SHOWN).map((t) => this.row(t)));
    box.replaceChildren(table);
    if (latest.length > SHOWN) box.append(element("p", "", `and ${latest.length - SHOWN} more: search finds them`));
    if (focused) [...box.querySelectorAll("button")].find((b) => b.dataset.at === focused)?.focus();
  }

  row(t) {
    const open = button(t.topic === this.chat.topic ? "open" : "", t.topic, () => this.chat.open(t.topic));
    open.dataset.at = `open ${t.topic}`;
    const forget = button("forget", "×", () => this.forget(t.topic));
    forget.setAttribute("aria-label", `Forget ${t.topic}`);
    forget.dataset.at = `forget ${t.topic}`;
    const held = t.replicas.map((r) => (this.names.get(r) ?? r) + (t.away?.includes(r) ? " (away)" : ""));
    return row("td", [open, t.version?.turn ?? 0, t.tokens, held.join(", ") || "–", forget]);
  }

  async forget(topic) {
    $("going").textContent = topic;
    $("sure").returnValue = "";
    $("sure").showModal();
    await new Promise((resolve) => $("sure").addEventListener("close", resolve, { once: true }));
    if ($("sure").returnValue !== "forget") return;
    const answer = await this.call(`/v1/topics/${encodeURIComponent(topic)}`, { method: "DELETE" });
    if (!answer.ok && answer.status !== 404) {
      const said = element("p", "problem", (await answer.json()).error.message);
      said.setAttribute("role", "alert");
      $("topics").append(said);
      return;
    }
    if (this.chat.topic === topic) this.chat.begin();
    this.update(this.topics.filter((t) => t.topic !== topic), this.names);
    $("prompt").focus();
  }
}

function row(kind, cells) {
  const tr = document.createElement("tr");
  for (const cell of cells) {
    const made = element(kind, "", cell instanceof Node ? "" : String(cell));
    if (cell instanceof Node) made.append(cell);
    made.title = cell.ariaLabel ?? made.textContent;
    tr.append(made);
  }
  return tr;
}
