// The conversation: candidates side by side as they are written, how they voted, and the answer.
import { element } from "./dom.js";
import { markdown } from "./markdown.js";

const $ = (id) => document.getElementById(id);
const IDEAS = [
  "A machine makes 28 nuts an hour for 7 hours a day, on 3 days. 45 are broken. How many good nuts are there?",
  "What is 12 + 30?",
  "Mia has 17 marbles. She gives 5 to Tom, then buys 8 more. How many has she now?",
];
const MODES = { conclave: "vote", "conclave:fast": "fastest" };
const COLOURS = 6;
// Until somebody scrolls to read what is above, the newest line stays in view.
let isFollowing = true;
for (const kind of ["wheel", "touchmove"]) {
  document.addEventListener(kind, () => { isFollowing = false; }, { passive: true });
}

export class Chat {
  constructor(call, mesh) {
    Object.assign(this, { call, mesh, stop: null });
    this.fresh();
  }

  fresh() {
    this.messages = [];
    this.topic = `page-${Math.random().toString(36).slice(2, 8)}`;
  }

  // A visit goes on with the conversation of the last one, if the node still holds it.
  resume(topics) {
    if (this.hasBegun) return;
    this.hasBegun = true;
    const last = recall();
    if (last && topics.some((t) => t.topic === last)) this.open(last);
  }

  async open(topic) {
    this.stop?.abort();
    const answer = await this.call(`/v1/topics/${encodeURIComponent(topic)}`);
    if (!answer.ok) return; // forgotten meanwhile: the list will say so
    const { messages = [] } = await answer.json();
    this.topic = topic;
    this.messages = messages.map(({ role, content = "", tool_calls, tool_call_id }) => ({
      role,
      content,
      ...(tool_calls && { tool_calls: tool_calls.map(({ id, ...f }) => ({ id, type: "function", function: f })) }),
      ...(tool_call_id && { tool_call_id }),
    }));
    remember(topic);
    $("welcome").hidden = true;
    $("turns").replaceChildren($("welcome"));
    let turn = null;
    for (const { role, content } of this.messages) {
      if (role === "user" || !turn) {
        turn = new Turn(role === "user" ? content : "", this.mesh);
        $("turns").append(turn.box);
      }
      if (role === "assistant" && content) turn.write(content);
      turn.draw();
    }
    turn?.box.scrollIntoView({ block: "end" });
    $("prompt").focus({ preventScroll: true });
  }

  async start() {
    const prompt = $("prompt");
    for (const idea of IDEAS) {
      const button = element("button", "", idea);
      button.type = "button";
      button.addEventListener("click", () => this.ask(idea));
      $("ideas").append(button);
    }
    $("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.stop) this.stop.abort();
      else if (prompt.value.trim()) this.ask(prompt.value.trim());
    });
    prompt.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        if (!this.stop) $("ask").requestSubmit();
      }
    });
    prompt.addEventListener("input", () => {
      prompt.style.height = "auto";
      prompt.style.height = `${prompt.scrollHeight + 2}px`;
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.stop) this.stop.abort();
      if (event.key === "/" && !/^(TEXTAREA|INPUT|SELECT)$/.test(document.activeElement.tagName)) {
        event.preventDefault();
        prompt.focus();
      }
    });
    $("fresh").addEventListener("click", () => {
      this.stop?.abort();
      this.fresh();
      remember("");
      $("turns").replaceChildren($("welcome"));
      $("welcome").hidden = false;
      prompt.focus();
    });
    const models = await (await this.call("/v1/models")).json();
    for (const { id } of models.data) {
      const said = MODES[id] ?? (id.startsWith("conclave:") ? `vote by ${id.slice(9)}` : `${id} alone`);
      $("mode").append(new Option(said, id));
    }
  }

  async ask(text) {
    if (this.stop) return;
    this.hasBegun = true;
    $("welcome").hidden = true;
    $("prompt").value = "";
    $("prompt").style.height = "auto";
    const turn = new Turn(text, this.mesh);
    $("turns").append(turn.box);
    isFollowing = true;
    turn.follow();
    this.stop = new AbortController();
    $("send").textContent = "Stop";
    $("send").className = "stop";
    try {
      const answer = await this.answer(text, turn);
      this.messages.push({ role: "user", content: text }, { role: "assistant", content: answer });
      remember(this.topic);
    } catch (error) {
      turn.fail(error.name === "AbortError" ? "stopped" : error.message);
    } finally {
      this.stop = null;
      $("send").textContent = "Ask";
      $("send").className = "";
      $("prompt").focus({ preventScroll: true });
    }
  }

  async answer(text, turn) {
    const how = { events: true, peers: true, progress: true };
    if ($("count").value) how.candidates = Number($("count").value);
    const body = JSON.stringify({
      model: $("mode").value || "conclave",
      messages: [...this.messages, { role: "user", content: text }],
      stream: true,
      topic: this.topic,
      conclave: how,
    });
    const answer = await this.call("/v1/chat/completions", { method: "POST", body, signal: this.stop.signal });
    if (!answer.ok) throw new Error((await answer.json()).error.message);
    for await (const event of events(answer.body)) {
      if (event.error) throw new Error(event.error.message);
      const told = event.conclave;
      if (told?.event) turn.hear(told);
      const delta = event.choices?.[0]?.delta;
      if (delta?.content) turn.write(delta.content);
      if (told && !told.event) turn.decide(told);
    }
    return turn.finish();
  }
}

// The topic that this browser had open last; none where it keeps nothing.
function recall() {
  try {
    return localStorage.getItem("topic") ?? "";
  } catch {
    return "";
  }
}

function remember(topic) {
  try {
    localStorage.setItem("topic", topic);
  } catch {
    // the next visit begins anew
  }
}

// Server-sent events, as objects.
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      if (part.startsWith("data: ") && part !== "data: [DONE]") yield JSON.parse(part.slice(6));
    }
  }
}

class Turn {
  constructor(text, mesh) {
    this.mesh = mesh;
    this.cards = new Map();
    this.text = "";
    this.box = element("article", "turn");
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
    for (const { node, candidates } of shares) {
      for (const id of candidates) {
        const card = new Card(id, this.mesh.names.get(node) ?? node, node !== this.mesh.me);
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

  write(text) {
    this.progress(null);
    this.text += text;
    this.isStale = true;
    this.follow();
  }

  draw() {
    for (const card of this.cards.values()) card.draw();
    if (!this.isStale) return;
    this.isStale = false;
    this.answer ??= this.result.appendChild(element("div", this.cards.size > 1 ? "answer" : "answer plain"));
    this.answer.replaceChildren(...markdown(this.text));
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

  // Once a frame, however many tokens it brings: drawn at each, an answer of 2,500 tokens froze the page for ten seconds.
  follow() {
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
    for (const lost of vote.lost) say("lost", `${lost.node}: ${lost.reason}`, "warn");
  }
  say("first token", ms(vote.timings.first_token_ms));
  say("total", ms(vote.timings.total_ms));
  say("tokens", String(vote.candidate_tokens));
  return box;
}
