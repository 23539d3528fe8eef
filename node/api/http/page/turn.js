// One question: its candidates side by side as they are written, how they voted, and the answer.
import { button, copier, element } from "./dom.js";
import { markdown } from "./markdown.js";

const COLOURS = 6;
// Until somebody scrolls to read what is above, the newest line stays in view.
let isFollowing = true;
for (const kind of ["wheel", "touchmove"]) {
  document.addEventListener(kind, () => { isFollowing = false; }, { passive: true });
}

export class Turn {
  // `at` is how many messages stand before the question; `acts` are what its buttons do.
  constructor(text, at, mesh, acts) {
    Object.assign(this, { asked: text, at, mesh, acts });
    this.cards = new Map();
    this.text = this.thought = "";
    this.box = element("article", "turn");
    this.box.turn = this;
    this.grid = element("div", "cards");
    this.result = element("div", "result");
    this.box.append(element("p", "asked", text), this.grid, this.result);
  }

  hear(told) {
    if (told.event === "plan") this.plan(told);
    else if (told.event === "progress") this.progress(told);
    else if (told.event === "token") {
      this.progress(null);
      this.cards.get(told.candidate)?.write(told.text);
    }
    else if (told.event === "candidate") {
      this.cards.get(told.id)?.end(told);
      this.mesh.fly(told.node, this.mesh.me, "back");
    }
    this.follow();
  }

  plan({ shares }) {
    const count = shares.reduce((sum, s) => sum + s.candidates.length, 0);
    const isMixed = new Set(shares.map((s) => this.mesh.models.get(s.node))).size > 1;
    for (const { node, candidates } of shares) {
      for (const id of candidates) {
        const card = new Card(id, this.mesh.names.get(node) ?? node, node !== this.mesh.me);
        if (isMixed) card.by(this.mesh.models.get(node) ?? "");
        this.cards.set(id, card);
        if (count > 1) this.grid.append(card.box);
        this.mesh.fly(this.mesh.me, node, "");
      }
    }
  }

  // How far a long prompt is, until the first text.
  progress(told) {
    if (!told) {
      this.reading?.remove();
      this.reading = null;
      return;
    }
    if (!this.reading) {
      this.reading = element("div", "reading");
      this.reading.append(document.createElement("progress"), element("span"));
      this.box.insertBefore(this.reading, this.grid);
    }
    const [bar, said] = this.reading.children;
    bar.max = told.prompt;
    bar.value = told.computed;
    bar.setAttribute("aria-label", "the prompt");
    said.textContent = `reading the prompt: ${told.computed.toLocaleString("en")} of ${told.prompt.toLocaleString("en")} tokens`;
  }

  write(text, thought = "") {
    this.progress(null);
    this.text += text;
    this.thought += thought;
    this.isStale = true;
    this.follow();
  }

  draw() {
    for (const card of this.cards.values()) card.draw();
    if (!this.isStale) return;
    this.isStale = false;
    this.answer ??= this.result.appendChild(element("div", this.cards.size > 1 ? "answer" : "answer plain"));
    this.answer.replaceChildren(...markdown(this.thought ? `<think>${this.thought}${this.text && "</think>"}${this.text}` : this.text));
  }

  decide(vote) {
    this.draw();
    if (vote.planned > 1) {
      const total = vote.clusters.reduce((sum, c) => sum + c.weight, 0) || 1;
      const bar = element("div", "bar");
      bar.setAttribute("role", "img");
      bar.setAttribute("aria-label", vote.clusters.map((c) => `${c.key || "empty"}: ${c.count}`).join(", "));
      vote.clusters.forEach((cluster, i) => {
        const colour = `var(--c${Math.min(i, COLOURS - 1)})`;
        const part = element("i", "", `${cluster.key.length > 40 ? `${cluster.key.slice(0, 39)}…` : cluster.key || "(empty)"} · ${cluster.count}`);
        part.style.background = colour;
        part.style.width = `${(100 * cluster.weight) / total}%`;
        part.title = cluster.medoid;
        bar.append(part);
        for (const id of cluster.members) this.cards.get(id)?.belong(colour);
      });
      const voted = new Set(vote.candidates.map((c) => c.id));
      for (const [id, card] of this.cards) if (!voted.has(id)) card.stop();
      this.cards.get(vote.winner)?.box.classList.add("winner");
      this.result.prepend(bar, facts(vote));
    } else {
      this.result.append(facts(vote));
    }
    this.follow();
  }

  finish() {
    this.draw(); // a page that nobody looks at has no frames
    if (!this.answer) this.result.append(element("p", "problem", "The answer is empty."));
    return this.text;
  }

  fail(message) {
    this.draw();
    this.progress(null);
    for (const card of this.cards.values()) card.stop();
    const said = element("p", "problem", message);
    said.setAttribute("role", "alert");
    this.result.append(said);
    this.follow();
  }

  // What can be done with it, once it is there.
  offer() {
    if (this.offered) return;
    this.draw();
    this.offered = element("div", "offered");
    if (this.text) this.offered.append(copier(() => this.text));
    if (this.asked) this.offered.append(button("last", "Ask again", this.acts.again), button("last", "Edit", this.acts.edit));
    this.box.append(this.offered);
    this.follow();
  }

  // Once a frame, however many tokens it brings: drawn at each, an answer of 2,500 tokens froze the page for ten seconds.
  follow(isAnew = false) {
    isFollowing ||= isAnew;
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
      if (isFollowing) this.box.scrollIntoView({ block: "end" });
    });
  }
}

class Card {
  constructor(id, node, isAway) {
    this.box = element("button", `card ${isAway ? "away" : "writing"}`);
    this.box.type = "button";
    this.box.setAttribute("aria-expanded", "false");
    const who = element("span", "who");
    this.told = element("span", "");
    who.append(element("span", "", `${id} · ${node}`), this.told);
    this.text = element("span", "text");
    this.said = "";
    this.body = element("span", "", isAway ? "answering on that node" : "");
    this.text.append(this.body);
    this.key = element("span", "key");
    this.box.append(who, this.text, this.key);
    this.box.addEventListener("click", () => {
      this.box.setAttribute("aria-expanded", String(this.box.getAttribute("aria-expanded") !== "true"));
    });
  }

  // Where models differ, whose it is.
  by(model) {
    this.model = element("span", "by", model);
    this.model.title = model;
    this.text.before(this.model);
  }

  write(text) {
    if (this.isDone) return;
    if (!this.isWriting) { // of a candidate on another node, the first word that it is at work
      this.isWriting = true;
      this.box.classList.replace("away", "writing");
    }
    this.said += text;
    this.isStale = true;
  }

  draw() {
    if (!this.isStale) return;
    this.isStale = false;
    this.body.textContent = this.said;
    this.text.scrollTop = this.text.scrollHeight;
  }

  end(candidate) {
    this.box.classList.remove("writing", "away");
    this.isDone = true;
    if (this.model && candidate.model) this.model.textContent = this.model.title = candidate.model;
    this.said = candidate.text;
    this.isStale = true;
    this.key.textContent = candidate.answer.replaceAll("\n", " ");
    this.told.textContent = `${candidate.tokens} tokens`;
  }

  belong(colour) {
    this.box.style.borderLeftColor = colour;
    this.key.style.color = colour;
  }

  stop() {
    if (this.isDone) return;
    this.box.classList.remove("writing", "away");
    this.box.classList.add("stopped");
    this.told.textContent = "stopped";
  }
}

function facts(vote) {
  const box = element("div", "facts");
  const say = (name, value, kind = "") => {
    const made = element("span", kind);
    made.append(`${name} `, element("b", "", value));
    box.append(made);
  };
  const ms = (value) => (value < 1000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`);
  if (vote.planned > 1) {
    say("by", vote.strategy);
    say("confidence", `${Math.round(vote.confidence * 100)} %`);
    say("margin", `${Math.round(vote.margin * 100)} %`);
    say("finished", `${vote.finished} of ${vote.planned}`);
    if (vote.stopped_early) say("stopped early,", `${vote.planned - vote.finished} spared`);
    if (vote.disagreement) say("the candidates", "disagree", "warn");
    if (vote.models.length > 1) {
      for (const m of vote.models) say(m.model, `${m.candidates.length} at weight ${m.weight.toFixed(2)}`);
    }
    for (const warning of vote.warnings) say("note:", warning, "warn");
    for (const lost of vote.lost) say("lost", `${lost.node}: ${lost.reason}`, "warn");
  }
  say("first token", ms(vote.timings.first_token_ms));
  say("total", ms(vote.timings.total_ms));
  say("tokens", String(vote.candidate_tokens));
  return box;
}
