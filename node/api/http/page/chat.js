// The conversation: what was said, and what is asked next.
import { button, element, recall, remember } from "./dom.js";
import { Turn } from "./turn.js";

const $ = (id) => document.getElementById(id);
const IDEAS = [
  "A machine makes 28 nuts an hour for 7 hours a day, on 3 days. 45 are broken. How many good nuts are there?",
  "What is 12 + 30?",
  "Mia has 17 marbles. She gives 5 to Tom, then buys 8 more. How many has she now?",
];
const MODES = { conclave: "vote", "conclave:fast": "fastest" };

export class Chat {
  constructor(call, mesh, settings) {
    Object.assign(this, { call, mesh, settings, stop: null, edited: null, topic: "", messages: [] });
  }

  // A new conversation.
  begin() {
    this.stop?.abort();
    this.edit(null);
    Object.assign(this, { topic: "", messages: [] });
    remember("topic", "");
    $("turns").replaceChildren($("welcome"));
    $("welcome").hidden = false;
    $("prompt").focus();
  }

  // A visit goes on with the conversation of the last one, if the node still holds it.
  resume(topics) {
    if (this.hasBegun) return;
    this.hasBegun = true;
    const last = recall("topic");
    if (last && topics.some((t) => t.topic === last)) this.open(last);
  }

  async open(topic) {
    this.stop?.abort();
    this.edit(null);
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
    remember("topic", topic);
    $("welcome").hidden = true;
    $("turns").replaceChildren($("welcome"));
    let turn = null;
    this.messages.forEach(({ role, content }, i) => {
      if (role === "system") this.opening(content);
      else if (role === "user") turn = this.turn(content, i);
      else if (role === "assistant" && content) (turn ??= this.turn("", i)).write(content);
    });
    for (const each of $("turns").querySelectorAll(".turn")) each.turn.offer();
    turn?.box.scrollIntoView({ block: "end" });
    $("prompt").focus({ preventScroll: true });
  }

  // What the model is told before the first question.
  opening(text) {
    const box = element("details", "opening");
    box.append(element("summary", "", "system prompt"), element("p", "", text));
    $("turns").append(box);
  }

  turn(text, at) {
    const turn = new Turn(text, at, this.mesh, {
      again: () => this.again(turn),
      edit: () => this.edit(turn),
    });
    $("turns").append(turn.box);
    return turn;
  }

  // What was asked last, once more: the answer that it had goes.
  again(turn) {
    if (this.stop) return;
    this.edit(null);
    this.ask(turn.asked, turn);
  }

  // What was asked last is in the line again; until it is asked, nothing is lost.
  edit(turn) {
    if (turn && this.stop) return;
    this.edited?.box.classList.remove("edited");
    this.edited = turn;
    if (!turn) return;
    turn.box.classList.add("edited");
    const prompt = $("prompt");
    prompt.value = turn.asked;
    prompt.dispatchEvent(new Event("input"));
    prompt.focus();
  }

  async start() {
    const prompt = $("prompt");
    $("ideas").append(...IDEAS.map((idea) => button("", idea, () => this.ask(idea))));
    $("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.stop) this.stop.abort();
      else if (prompt.value.trim()) this.ask(prompt.value.trim(), this.edited);
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
      if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
        if (this.stop) this.stop.abort();
        else if (this.edited) {
          this.edit(null);
          prompt.value = "";
        }
      }
      if (event.key === "/" && !/^(TEXTAREA|INPUT|SELECT)$/.test(document.activeElement.tagName)) {
        event.preventDefault();
        prompt.focus();
      }
    });
    $("fresh").addEventListener("click", () => this.begin());
    const models = await (await this.call("/v1/models")).json();
    for (const { id } of models.data) {
      const said = MODES[id] ?? (id.startsWith("conclave:") ? `vote by ${id.slice(9)}` : `${id} alone`);
      $("mode").append(new Option(said, id));
    }
    this.settings.choose();
  }

  // Ask, in place of an earlier question if one is given.
  async ask(text, instead = null) {
    if (this.stop) return;
    this.hasBegun = true;
    $("welcome").hidden = true;
    $("prompt").value = "";
    $("prompt").style.height = "auto";
    if (instead) {
      this.messages = this.messages.slice(0, instead.at);
      instead.box.remove();
      this.edited = null;
    }
    if (!this.messages.length) {
      for (const old of $("turns").querySelectorAll(".opening")) old.remove();
      this.messages = this.settings.opening;
      for (const { content } of this.messages) this.opening(content);
    }
    this.topic ||= named(text);
    const { topic } = this;
    const turn = this.turn(text, this.messages.length);
    turn.follow(true);
    const stop = (this.stop = new AbortController());
    $("send").textContent = "Stop";
    $("send").className = "stop";
    try {
      const answer = await this.answer(text, turn, stop.signal);
      if (topic === this.topic) {
        this.messages.push({ role: "user", content: text }, { role: "assistant", content: answer });
        remember("topic", topic);
      }
    } catch (error) {
      turn.fail(error.name === "AbortError" ? "stopped" : error.message);
    } finally {
      turn.offer();
      this.stop = null;
      $("send").textContent = "Ask";
      $("send").className = "";
      $("prompt").focus({ preventScroll: true });
    }
  }

  async answer(text, turn, signal) {
    const messages = [...this.messages, { role: "user", content: text }];
    const body = JSON.stringify({ ...this.settings.fields, messages, stream: true, topic: this.topic });
    const answer = await this.call("/v1/chat/completions", { method: "POST", body, signal });
    if (!answer.ok) throw new Error((await answer.json()).error.message);
    for await (const event of events(answer.body)) {
      if (event.error) throw new Error(event.error.message);
      const told = event.conclave;
      if (told?.event) turn.hear(told);
      const delta = event.choices?.[0]?.delta;
      if (delta?.content || delta?.reasoning_content) turn.write(delta.content ?? "", delta.reasoning_content ?? "");
      if (told && !told.event) turn.decide(told);
    }
    return turn.finish();
  }
}

// A conversation is called by its first words, so that people find it again, here and in `topics list`.
function named(text) {
  const words = text.toLowerCase().normalize("NFKC").match(/[\p{L}\p{N}]+/gu) ?? ["page"];
  const some = [...words.join("-")].slice(0, 28).join("").replace(/-+$/, "");
  return `${some}-${Math.random().toString(36).slice(2, 8)}`;
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
