// Two lines over the last two minutes, from the counters of /metrics.
const SAMPLES = 120;
const WIDTH = 328;
const HEIGHT = 56;
const WANTED = {
  tokens: "conclave_generation_tokens_total",
  sum: "conclave_time_to_first_token_seconds_sum",
  count: "conclave_time_to_first_token_seconds_count",
};

export class Plots {
  constructor(rates, firsts, rate, first) {
    Object.assign(this, { rates, firsts, rate, first, last: null, speeds: [], delays: [] });
  }

  add(text) {
    const now = { at: performance.now() / 1000 };
    for (const [name, series] of Object.entries(WANTED)) {
      now[name] = Number(new RegExp(`^${series} (\\S+)$`, "m").exec(text)?.[1] ?? 0);
    }
    const { last } = this;
    this.last = now;
    if (!last || now.tokens < last.tokens) return; // the first look, or a node that was started again
    const speed = (now.tokens - last.tokens) / (now.at - last.at);
    const begun = now.count - last.count;
    const delay = begun > 0 ? ((now.sum - last.sum) / begun) * 1000 : null;
    push(this.speeds, speed);
    push(this.delays, delay);
    this.rate.textContent = speed < 10 && speed > 0 ? speed.toFixed(1) : Math.round(speed);
    if (delay !== null) this.first.textContent = delay < 10 ? delay.toFixed(1) : Math.round(delay);
    draw(this.rates, this.speeds);
    // Between two requests nothing is measured: the line goes on as it was.
    draw(this.firsts, this.delays.map((_, i) => this.delays.slice(0, i + 1).findLast((d) => d !== null) ?? 0));
  }
}

function push(values, value) {
  values.push(value);
  if (values.length > SAMPLES) values.shift();
}

function draw(svg, values) {
  const top = Math.max(...values, 1) * 1.1;
  const x = (i) => WIDTH - (values.length - 1 - i) * (WIDTH / (SAMPLES - 1));
  const y = (v) => HEIGHT - 2 - (v / top) * (HEIGHT - 6);
  const line = values.map((v, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(v).toFixed(1)}`).join("");
  const make = (name, d) => {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("class", name);
    path.setAttribute("d", d);
    return path;
  };
  svg.replaceChildren(
    make("base", `M0 ${HEIGHT - 1}H${WIDTH}`),
    make("area", `${line}L${WIDTH} ${HEIGHT - 1}L${x(0).toFixed(1)} ${HEIGHT - 1}Z`),
    make("line", line),
  );
}
