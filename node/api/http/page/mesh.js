// The mesh as a live picture: the node that is asked in the middle, its peers around it, each with its load.
const SVG = "http://www.w3.org/2000/svg";
const CENTRE = { x: 180, y: 122 };
const CIRCLE = { x: 138, y: 86 };
const RADIUS = 25;
const ROUND = 2 * Math.PI * RADIUS;
const still = matchMedia("(prefers-reduced-motion: reduce)");

function make(kind, attributes, text) {
  const made = document.createElementNS(SVG, kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function short(text, most) {
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}

export class Mesh {
  constructor(svg, list) {
    this.svg = svg;
    this.list = list;
    this.names = new Map();
    this.models = new Map();
    this.places = new Map();
    this.travelled = 0; // the number of the last snapshot that was drawn
    this.links = make("g", {});
    this.sparks = make("g", {});
    this.nodes = make("g", {});
    svg.append(this.links, this.sparks, this.nodes);
  }

  update(status) {
    const nodes = status.nodes;
    const seen = new Map();
    for (const n of nodes) {
      const name = n.name || n.id;
      seen.set(name, (seen.get(name) ?? 0) + 1);
    }
    this.names = new Map(nodes.map((n) => [n.id, seen.get(n.name || n.id) > 1 ? `${n.name} ${n.id.slice(0, 4)}` : n.name || n.id]));
    this.models = new Map(nodes.map((n) => [n.id, n.model]));
    this.me = nodes[0].id;
    this.model = nodes[0].model;
    this.places = new Map(nodes.map((n, i) => [n.id, place(i, nodes.length)]));
    const peers = nodes.slice(1).filter((n) => n.state !== "dead");
    const others = peers.flatMap((a, i) => peers.slice(i + 1).map((b) => line(this.places.get(a.id), this.places.get(b.id), "other")));
    this.links.replaceChildren(...others, ...nodes.slice(1).flatMap((n) => this.link(n, nodes[0].id)));
    this.nodes.replaceChildren(...nodes.map((n, i) => this.node(n, i === 0)));
    if (nodes.length === 1) this.nodes.append(make("text", { x: 180, y: 200, class: "small" }, "alone: run `python -m node --join auto` on another machine"));
    this.list.replaceChildren(...nodes.map((n) => {
      const li = document.createElement("li");
      li.textContent = `${this.names.get(n.id)}: ${n.state}, ${n.model}, load ${Math.round(n.load * 100)} %, round trip ${n.round_trip_ms.toFixed(1)} ms`;
      return li;
    }));
    this.travel(status.travels);
  }

  link(n, me) {
    const from = this.places.get(me);
    const to = this.places.get(n.id);
    const middle = { x: (from.x + to.x) / 2, y: (from.y + to.y) / 2 };
    const out = [line(from, to, n.state === "alive" ? "" : n.state)];
    if (n.state === "alive" && n.round_trip_ms) {
      const said = n.round_trip_ms < 10 ? `${n.round_trip_ms.toFixed(1)} ms` : `${Math.round(n.round_trip_ms)} ms`;
      out.push(make("rect", { x: middle.x - 21, y: middle.y - 8, width: 42, height: 16, rx: 5, class: "tag" }));
      out.push(make("text", { x: middle.x, y: middle.y + 3.5, class: "small" }, said));
    }
    return out;
  }

  node(n, isMe) {
    const { x, y } = this.places.get(n.id);
    const group = make("g", { class: `${isMe ? "me" : ""} ${n.state}`, transform: `translate(${x} ${y})` });
    const speed = n.decode_tokens_per_s;
    group.append(
      make("title", {}, `${this.names.get(n.id)} (${n.id})\n${n.model}, ${n.backend}, ${n.state}\n${n.address}`),
      make("circle", { r: RADIUS + 3, class: "tag" }),
      make("circle", { r: RADIUS - 2, class: "disc" }),
      make("circle", { r: RADIUS, class: "ring" }),
      make("circle", {
        r: RADIUS, class: "load", transform: "rotate(-90)", "stroke-dasharray": ROUND,
        "stroke-dashoffset": ROUND * (1 - n.load), opacity: n.load > 0 ? 1 : 0,
      }),
      make("text", { y: 2, class: "count" }, n.state === "dead" ? "–" : String(n.sequences - n.free_sequences)),
      make("text", { y: 12, class: "small" }, n.state === "dead" ? "gone" : `of ${n.sequences}`),
      make("text", { y: RADIUS + 16 }, short(this.names.get(n.id), 18)),
      make("text", { y: RADIUS + 28, class: "small" }, n.model !== this.model ? short(n.model, 20) : speed ? `${Math.round(speed)} tok/s` : ""),
    );
    return group;
  }

  // Something goes from one node to another: candidates that are asked for, a ballot, a snapshot.
  fly(from, to, name, said = "") {
    const a = this.places.get(from);
    const b = this.places.get(to);
    if (!a || !b || from === to || still.matches) return;
    const isBox = name === "box";
    const spark = isBox ? make("rect", { x: -5, y: -5, width: 10, height: 10, rx: 2, class: "box" }) : make("circle", { r: 4, class: `spark ${name}` });
    if (said) spark.append(make("title", {}, said));
    this.sparks.append(spark);
    const at = (p) => ({ transform: `translate(${p.x}px, ${p.y}px)` });
    spark.animate([at(a), at(b)], { duration: isBox ? 1400 : 700, easing: "ease-in-out" }).finished.finally(() => spark.remove());
  }

  // Snapshots that went since the last look; on the first look, those of just now.
  travel(travels) {
    for (const { number, source, target, topic, bytes, age_ms: age } of travels) {
      if (number <= this.travelled || (!this.wasSeen && age > 3000)) continue;
      this.fly(source, target, "box", `${topic}: ${size(bytes)}`);
    }
    // A node that was started again counts from 1 again.
    this.travelled = travels.at(-1)?.number ?? 0;
    this.wasSeen = true;
  }
}

function size(bytes) {
  return bytes < 1e6 ? `${Math.round(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

function line(a, b, name) {
  return make("line", { x1: a.x, y1: a.y, x2: b.x, y2: b.y, class: `link ${name}` });
}

// Few nodes stand side by side or in a triangle; of more, the one that is asked is in the middle.
function place(i, count) {
  if (count === 2) return { x: i ? 282 : 78, y: 110 };
  if (count === 3) return [{ x: 180, y: 190 }, { x: 66, y: 52 }, { x: 294, y: 52 }][i];
  if (i === 0) return CENTRE;
  const angle = -Math.PI / 2 + ((i - 0.5) / (count - 1)) * 2 * Math.PI;
  return { x: CENTRE.x + CIRCLE.x * Math.cos(angle), y: CENTRE.y - 6 + CIRCLE.y * Math.sin(angle) };
}
