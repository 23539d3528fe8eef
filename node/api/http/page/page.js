// The start: asks the node for its state each second and hands it to the parts. No request leaves this origin.
import { Chat } from "./chat.js";
import { Mesh } from "./mesh.js";
import { Plots } from "./plots.js";
import { Settings } from "./settings.js";
import { Topics } from "./topics.js";

const $ = (id) => document.getElementById(id);
let key = sessionStorage.getItem("key") ?? "";

// One request of the API. Asks for the key where one is wanted, and tries again.
export async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.authorization = `Bearer ${key}`;
  if (options.body) headers["content-type"] = "application/json";
  const answer = await fetch(path, { ...options, headers, cache: "no-store" });
  if (answer.status === 401) {
    await enter(key);
    return call(path, options);
  }
  return answer;
}

let entering = null;
// One dialog for all requests that were refused with this key; with another one there is nothing to ask.
function enter(refused) {
  if (refused !== key) return Promise.resolve();
  entering ??= new Promise((resolve) => {
    const door = $("door");
    door.addEventListener("cancel", (event) => event.preventDefault());
    door.addEventListener("close", () => {
      key = $("key").value;
      sessionStorage.setItem("key", key);
      entering = null;
      resolve();
    }, { once: true });
    door.showModal();
  });
  return entering;
}

const mesh = new Mesh($("mesh"), $("nodes"));
const plots = new Plots($("rates"), $("firsts"), $("rate"), $("first"));
const chat = new Chat(call, mesh, new Settings());
const topics = new Topics(call, chat);

function show(status) {
  const [me] = status.nodes;
  const alive = status.nodes.filter((n) => n.state === "alive").length;
  $("where").textContent = `${me.model} on ${me.name || me.id}`;
  $("pulse").textContent = `${alive} node${alive === 1 ? "" : "s"}`;
  $("pulse").className = "";
  mesh.update(status);
  showSlots(status.slots);
  chat.resume(status.topics);
  topics.update(status.topics, mesh.names);
}

function showSlots({ used, free, parked }) {
  const box = $("slots");
  const cells = used + free;
  while (box.children.length < Math.min(cells, 64)) box.append(document.createElement("i"));
  [...box.children].forEach((cell, i) => { cell.className = i < used ? "used" : ""; });
  $("slots-said").textContent = `${used} used, ${free} free, ${parked} parked`;
}

async function look() {
  const answers = await Promise.all([call("/v1/status"), call("/metrics")]);
  if (!answers.every((a) => a.ok)) throw new Error("not ready");
  show(await answers[0].json());
  plots.add(await answers[1].text());
}

async function follow() {
  for (;;) {
    if (!document.hidden) {
      try {
        await look();
      } catch {
        $("pulse").textContent = "no answer from the node";
        $("pulse").className = "off";
      }
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

follow();
chat.start();
