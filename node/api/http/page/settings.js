// How questions are asked: what is not set is left to the node. Kept in this browser.
import { recall, remember } from "./dom.js";

const $ = (id) => document.getElementById(id);
const NUMBERS = ["temperature", "top_p", "max_tokens"];
const FIELDS = ["system", ...NUMBERS];

export class Settings {
  constructor() {
    this.kept = {};
    try {
      this.kept = JSON.parse(recall("settings")) ?? {};
    } catch {
      // none yet
    }
    $("tune").addEventListener("click", () => this.open());
    $("leave").addEventListener("click", () => $("settings").close());
    $("settings").addEventListener("submit", () => {
      for (const name of FIELDS) this.kept[name] = $(`set-${name}`).value.trim();
      this.keep();
    });
    $("clear").addEventListener("click", () => {
      for (const name of FIELDS) $(`set-${name}`).value = "";
      $("set-system").focus();
    });
    $("count").value = this.kept.count ?? "";
    $("count").addEventListener("change", () => this.keep());
    $("mode").addEventListener("change", () => this.keep());
    this.mark();
  }

  open() {
    for (const name of FIELDS) $(`set-${name}`).value = this.kept[name] ?? "";
    $("settings").showModal();
  }

  keep() {
    Object.assign(this.kept, { count: $("count").value, mode: $("mode").value });
    remember("settings", JSON.stringify(this.kept));
    this.mark();
  }

  mark() {
    const set = FIELDS.filter((name) => this.kept[name]);
    $("tune").className = set.length ? "set" : "";
    $("tune").title = set.length ? `Set: ${set.join(", ").replaceAll("_", " ")}` : "System prompt, temperature, length";
  }

  // The modes of this node are known; the one of the last visit may be none of them.
  choose() {
    if ([...$("mode").options].some((o) => o.value === this.kept.mode)) $("mode").value = this.kept.mode;
  }

  // A new conversation's first message. A conversation keeps the one that it began with.
  get opening() {
    return this.kept.system ? [{ role: "system", content: this.kept.system }] : [];
  }

  // What a request says of it.
  get fields() {
    const how = { events: true, peers: true, progress: true };
    if ($("count").value) how.candidates = Number($("count").value);
    const said = { model: $("mode").value || "conclave", conclave: how };
    for (const name of NUMBERS) if (this.kept[name]) said[name] = Number(this.kept[name]);
    return said;
  }
}
