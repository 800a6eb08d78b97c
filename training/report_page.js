"use strict";
// Draws the curves of the page: its numbers are in #data, as training/report_page.py wrote them.
const data = JSON.parse(document.getElementById("data").textContent);
const DASH = ["", "6 4", "2 3"];
const HEIGHT = 250, LEFT = 56, RIGHT = 14, TOP = 10, BOTTOM = 38;
const TITLES = { samples: "samples", seconds: "seconds of training", flop: "FLOP of training", t: "t" };

const element = (name, attributes, parent, text) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
};

function shown(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e16 || size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  for (const [unit, letter] of [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (size >= unit) return +(value / unit).toPrecision(4) + " " + letter;
  return String(+value.toPrecision(4));
}

function ticks(low, high, log, most) {
  if (log) {
    const all = [], first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
    const decades = Math.log10(high / low), digits = decades > 3 ? [1] : decades > 1.2 ? [1, 3] : [1, 1.5, 2, 3, 5, 7];
    const every = Math.ceil((last - first + 1) / most);
    for (let power = first; power <= last; power++)
      if ((power - first) % every === 0) for (const digit of digits) all.push(digit * 10 ** power);
    return all.filter((value) => value >= low * 0.999 && value <= high * 1.001);
  }
  const rough = (high - low) / most, base = 10 ** Math.floor(Math.log10(rough));
  const step = base * [1, 2, 2.5, 5, 10].find((factor) => factor * base >= rough * 0.999);
  const all = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) all.push(i * step);
  return all;
}

// Where the y axis ends, if some runs have left the others so far behind that it would show them alone; else Infinity.
// A line's usual height: its first value, or 90 % of its values lie below.
function cutAt(lines) {
  const usual = lines.map(({ points }) => {
    const values = points.map((point) => point[1]), sorted = [...values].sort((a, b) => a - b);
    return Math.max(values[0], sorted[Math.floor(0.9 * (sorted.length - 1))]);
  });
  const low = Math.min(...usual), high = Math.max(...lines.flatMap((line) => line.points.map((point) => point[1])));
  return low > 0 && high > 10 * low ? 1.5 * low : Infinity;
}

// A function from values to pixels, with the ends of what it shows.
function scale(values, from, to, log, margin) {
  let low = Math.min(...values), high = Math.max(...values);
  if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  const bend = log ? Math.log : (value) => value, back = log ? Math.exp : (value) => value;
  const room = margin * (bend(high) - bend(low));
  [low, high] = [back(bend(low) - room), back(bend(high) + room)];
  const place = (value) => from + ((bend(value) - bend(low)) / (bend(high) - bend(low))) * (to - from);
  return Object.assign(place, { low, high });
}

function xs(chart, series, axis) {
  if (chart.own) return series.x;
  if (axis === "flop") return data.flop[series.run] ? series.samples.map((n) => n * data.flop[series.run]) : null;
  return series[axis] || null;
}

// Of each run that is switched on: points [x, y] that can be drawn on these axes.
function curves(chart, state) {
  return chart.series.filter((series) => state.runs.has(series.run)).flatMap((series) => {
    const x = xs(chart, series, state.x);
    if (!x) return [];
    const logX = state.logx && !chart.own;
    const points = (y) => y.map((value, i) => [x[i], value])
      .filter(([a, b]) => a !== null && b !== null && (!logX || a > 0) && (!state.logy || b > 0));
    const made = { run: series.run, points: points(series.y), raw: series.raw ? points(series.raw) : [] };
    return made.points.length ? [made] : [];
  });
}

function draw(chart, box, state) {
  const svg = box.querySelector("svg"), tip = box.querySelector(".tip"), width = svg.clientWidth || 400;
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  svg.setAttribute("height", HEIGHT);
  svg.onpointermove = svg.onpointerleave = null;
  tip.hidden = true;
  const note = box.querySelector("p");
  note.textContent = chart.note;
  const lines = curves(chart, state);
  if (!lines.length) {
    element("text", { x: width / 2, y: HEIGHT / 2, "text-anchor": "middle" }, svg, "nothing to draw on these axes");
    return;
  }
  const logX = state.logx && !chart.own, all = lines.flatMap((line) => line.points);
  const x = scale(all.map((point) => point[0]), LEFT, width - RIGHT, logX, 0.01);
  const cut = chart.cuts && !state.logy ? cutAt(lines) : Infinity, height = all.map((point) => Math.min(point[1], cut));
  const y = scale(height, HEIGHT - BOTTOM, TOP, state.logy, cut < Infinity ? 0 : 0.06);
  for (const value of ticks(y.low, y.high, state.logy, 5)) {
    element("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }, svg);
    element("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, svg, shown(value));
  }
  for (const value of ticks(x.low, x.high, logX, Math.max(3, Math.floor(width / 80))))
    element("text", { x: x(value), y: HEIGHT - BOTTOM + 17, "text-anchor": "middle" }, svg, shown(value));
  element("text", { x: (LEFT + width - RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, svg, TITLES[chart.own || state.x]);
  const beyond = lines.map((line) => [data.runs[line.run], Math.max(...line.points.map((point) => point[1]))])
    .filter(([, top]) => top > cut).map(([name, top]) => `${name} reaches ${shown(top)}`);
  if (beyond.length) note.textContent = [chart.note, `axis cut: ${beyond.join(", ")}`].filter(Boolean).join("; ");
  const clip = `clip${chart.number}`;
  element("rect", { x: LEFT, y: TOP - 4, width: width - LEFT - RIGHT, height: HEIGHT - TOP - BOTTOM + 8 },
    element("clipPath", { id: clip }, svg));
  const inside = element("g", { "clip-path": `url(#${clip})` }, svg);
  const path = (points) => points.map(([a, b], i) => `${i ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("");
  for (const line of lines) if (line.raw.length) element("path", { class: `raw c${line.run % 8}`, d: path(line.raw) }, inside);
  for (const line of lines) {
    const style = { class: `c${line.run % 8}`, "stroke-dasharray": DASH[Math.floor(line.run / 8) % 3] };
    element("path", { ...style, d: path(line.points) }, inside);
    if (line.points.length <= 12)
      for (const [a, b] of line.points.filter((point) => point[1] <= cut)) element("circle", { class: style.class, cx: x(a), cy: y(b), r: 3.5 }, svg);
  }
  const cross = element("line", { class: "cross", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" }, svg);
  svg.onpointermove = (event) => {
    const at = event.clientX - svg.getBoundingClientRect().left;
    const away = (point) => Math.abs(x(point[0]) - at), nearer = (best, other) => (away(other) < away(best) ? other : best);
    const where = lines.map((line) => line.points.reduce(nearer)).reduce(nearer)[0];
    const near = lines.map((line) => [line.run, line.points.reduce(nearer)]).filter(([, point]) => away(point) < 30 || point[0] === where);
    cross.setAttribute("x1", x(where));
    cross.setAttribute("x2", x(where));
    cross.setAttribute("visibility", "visible");
    tip.replaceChildren(`${shown(where)} ${chart.own || state.x}`, ...near.map(([run, point]) => {
      const row = document.createElement("div"), value = document.createElement("b");
      row.append(document.querySelector(`nav input[value="${run}"].run`).previousElementSibling.cloneNode(true), data.runs[run], value);
      value.textContent = shown(point[1]);
      return row;
    }));
    tip.hidden = false;
    const right = x(where) > width / 2;
    tip.style.left = right ? "" : `${x(where) + 28}px`;
    tip.style.right = right ? `${width - x(where) + 28}px` : "";
    tip.style.top = "52px";
  };
  svg.onpointerleave = () => { tip.hidden = true; cross.setAttribute("visibility", "hidden"); };
}

const boxes = data.charts.map((chart, number) => {
  chart.number = number;
  const box = document.createElement("div");
  box.className = "chart";
  box.innerHTML = '<h2></h2><p></p><svg role="img"></svg><div class="tip" hidden></div>';
  box.querySelector("h2").textContent = chart.title;
  box.querySelector("svg").setAttribute("aria-label", chart.title);
  document.getElementById("charts").append(box);
  return box;
});

function redraw() {
  const state = {
    x: document.querySelector('input[name="x"]:checked').value,
    logx: document.getElementById("logx").checked,
    logy: document.getElementById("logy").checked,
    runs: new Set([...document.querySelectorAll("input.run:checked")].map((input) => +input.value)),
  };
  data.charts.forEach((chart, i) => draw(chart, boxes[i], state));
}

document.querySelector("nav").addEventListener("change", redraw);
addEventListener("resize", redraw);
redraw();
