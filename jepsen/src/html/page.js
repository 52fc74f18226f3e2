const el = (id) => document.getElementById(id);
const LANE = 26, BAR = 18, LEFT = 92, TOP = 26;
const COLOURS = { ok: "#a9c6ea", info: "#f3dfa2", fail: "#e3e6ea", stuck: "#e05050", with: "#f2a65a" };
const VERDICTS = { "linearizable": "#2c8a4b", "not linearizable": "#c62f2f", "unknown": "#8a6d1d" };

let file, key, story, order, byOrder;   // what is shown
let bars = [], lanes = [], points = [], first = 0, last = 1;   // what is drawn; the span of all of it
let from = 0, to = 1;   // the span that is in view
let hovered = null;

function options(select, names) {
  select.replaceChildren(...names.map((name, at) => new Option(name, at)));
  select.hidden = names.length < 2;
}

function showFile(at) {
  file = DATA[at];
  document.title = `${file.name}: ${file.verdict}`;
  byOrder = !file.has_times;
  const worst = file.keys.map((it, at) => [it.verdict !== "not linearizable", it.verdict !== "unknown", at]);
  worst.sort((a, b) => a[0] - b[0] || a[1] - b[1] || a[2] - b[2]);
  const rows = worst.map((it) => it[2]);
  el("key").replaceChildren(...rows.map((at) =>
    new Option(`key ${file.keys[at].name} — ${file.keys[at].verdict}`, at)));
  el("key").hidden = rows.length < 2;
  showKey(rows.length ? rows[0] : 0);
}

function showKey(at) {
  key = file.keys[at] || { stories: [], verdict: file.verdict, name: "" };
  const several = file.keys.length > 1;
  const mine = file.operations.map((it, place) => ({ ...it, place })).filter((it) => !several || it.k === at);
  el("verdict").textContent = key.verdict;
  el("verdict").style.background = VERDICTS[key.verdict];
  const processes = [...new Set(mine.map((it) => it.p))].sort((a, b) => a - b);
  el("facts").textContent =
    `${file.model}, ${mine.length} operations, ${processes.length} processes`;
  bars = mine;
  layOut();
  showStory(0);
}

// Gives every bar its ends: times, or the places of the events, which need no scale.
function layOut() {
  if (byOrder) {
    const events = [];
    for (const bar of bars) {
      events.push([bar.s, 0, bar]);
      if (bar.e !== null) events.push([bar.e, 1, bar]);
    }
    events.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    events.forEach(([, end, bar], at) => { if (end) bar.b = at; else bar.a = at; });
  } else {
    for (const bar of bars) { bar.a = bar.s; bar.b = bar.e; }
  }
  first = Infinity; last = -Infinity;
  for (const bar of bars) {
    first = Math.min(first, bar.a); last = Math.max(last, bar.a, bar.b ?? bar.a);
  }
  if (!bars.length) { first = 0; last = 1; }
  const margin = Math.max((last - first) * 0.01, byOrder ? 1 : 1e-9);
  first -= margin; last += margin * 2;
  for (const bar of bars) bar.open = bar.e === null;
  el("axis").textContent = byOrder ? "Show by time" : "Show by order of events";
  el("axis").hidden = !file.has_times;
}

function showStory(at) {
  story = key.stories[at] || null;
  order = story && story.orders.length ? story.orders[0] : null;
  const marks = new Map();
  if (story) {
    for (const place of story.with) marks.set(place, "with");
    for (const place of story.stuck) marks.set(place, "stuck");
  }
  const prefix = story && story.prefix ? new Set(story.prefix) : null;
  for (const bar of bars) {
    bar.mark = marks.get(bar.place) || null;
    bar.after = prefix !== null && !prefix.has(bar.place);
  }
  el("story").hidden = !story || !story.stuck.length;
  tellStories(at);
  placePoints();
  if (story && story.stuck.length) zoomToStory(); else zoomToWhole();
}

function tellStories(shown) {
  const articles = key.stories.map((it, at) => {
    const article = document.createElement("article");
    article.className = at === shown && key.stories.length > 1 ? "on" : "";
    const title = document.createElement("h2");
    title.textContent = it.title;
    title.onclick = () => showStory(at);
    article.append(title);
    if (at === shown || key.stories.length < 6) {
      const text = document.createElement("pre");
      text.textContent = it.text;
      if (it.text) article.append(text);
    }
    if (at === shown && it.orders.length > 1) {
      it.orders.forEach((one) => {
        const button = document.createElement("button");
        button.textContent = `${one.operations.length} ordered, state ${one.state}`;
        button.className = one === order ? "on" : "";
        button.onclick = () => { order = one; tellStories(shown); placePoints(); draw(); };
        article.append(button);
      });
    }
    return article;
  });
  el("stories").replaceChildren(...articles);
}

// Puts every operation of the order at a point of its bar, so that the points go from left to right.
function placePoints() {
  points = [];
  if (!order) return;
  const byPlace = new Map(bars.map((bar) => [bar.place, bar]));
  const chain = order.operations.map((place) => byPlace.get(place)).filter(Boolean);
  // No later than what comes later must end.
  const latest = new Array(chain.length);
  let limit = last;
  for (let at = chain.length - 1; at >= 0; at--) {
    limit = Math.min(limit, chain[at].open ? last : chain[at].b);
    latest[at] = limit;
  }
  const small = (last - first) / 1000 / Math.max(1, chain.length);
  const gap = byOrder ? 0.25 : small;
  let x = first;
  chain.forEach((bar, at) => {
    const start = Math.max(x, bar.a);
    x = Math.min(Math.max(start, start + Math.min(gap, (latest[at] - start) / 2)), Math.max(latest[at], start));
    points.push({ x, bar, at });
  });
}

// Gives a lane to every process that does something in the span; in that of everything, to all.
function setLanes(a, b) {
  const shown = bars.filter((bar) => bar.a <= b && (bar.open || bar.b >= a));
  lanes = [...new Set(shown.map((it) => it.p))].sort((a, b) => a - b);
  const laneOf = new Map(lanes.map((it, lane) => [it, lane]));
  for (const bar of bars) bar.lane = laneOf.get(bar.p) ?? null;
}

function zoomTo(a, b) {
  const least = byOrder ? 6 : 1;
  if (b - a < least) { const middle = (a + b) / 2; a = middle - least / 2; b = middle + least / 2; }
  from = a; to = b;
  setLanes(a, b);
  draw();
}

const zoomToWhole = () => zoomTo(first, last);

// To what is wrong, and some of what came before.
function zoomToStory() {
  const shown = bars.filter((bar) => bar.mark === "stuck");
  if (!shown.length) return zoomToWhole();
  const end = Math.max(...shown.map((bar) => bar.b ?? bar.a));
  let start = Math.min(...shown.map((bar) => bar.a));
  const before = bars.filter((bar) => bar.a < start).map((bar) => bar.a).sort((a, b) => b - a);
  if (before.length) start = before[Math.min(before.length, 12) - 1];
  const margin = (end - start) * 0.06 + (byOrder ? 0.5 : 0);
  zoomTo(start - margin, end + margin * 2);
  const lane = shown[0].lane * LANE;
  const view = el("view");
  if (lane < view.scrollTop || lane > view.scrollTop + view.clientHeight - 2 * LANE) {
    view.scrollTop = Math.max(0, lane - view.clientHeight / 2);
  }
}

function timeText(x) {
  if (byOrder) return String(Math.round(x));
  for (const [unit, size] of [["s", 1e9], ["ms", 1e6], ["µs", 1e3]]) {
    if (to - from >= size * 0.05) return `${+(x / size).toPrecision(7)} ${unit}`;
  }
  return `${Math.round(x)} ns`;
}

function draw() {
  const canvas = el("chart"), view = el("view"), ratio = window.devicePixelRatio || 1;
  const width = view.clientWidth, height = Math.max(view.clientHeight - 2, TOP + lanes.length * LANE + 8);
  canvas.width = width * ratio; canvas.height = height * ratio;
  canvas.style.width = `${width}px`; canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  pen.font = "12px system-ui, sans-serif";
  pen.textBaseline = "middle";
  drawLanes(pen, width, height);
  const shown = [];
  for (const bar of bars) {
    const x = toX(bar.a), end = bar.open ? width : toX(bar.b);
    if (end < LEFT || x > width || bar.lane === null) continue;
    shown.push([bar, Math.max(x, LEFT - 4), Math.min(end, width + 4)]);
  }
  // What is marked comes above what is not.
  shown.sort((one, two) => (one[0].mark ? 1 : 0) - (two[0].mark ? 1 : 0));
  for (const [bar, x, end] of shown) drawBar(pen, bar, x, Math.max(end, x + 2));
  drawPoints(pen, width);
  pen.fillStyle = "#fff";
  pen.fillRect(0, TOP, LEFT - 6, height);
  drawNames(pen);
}

const toX = (at) => LEFT + ((at - from) / (to - from)) * (el("view").clientWidth - LEFT - 8);
const toAt = (x) => from + ((x - LEFT) / (el("view").clientWidth - LEFT - 8)) * (to - from);

function drawLanes(pen, width, height) {
  pen.strokeStyle = "#eef1f5";
  lanes.forEach((_, lane) => {
    const y = TOP + lane * LANE + LANE / 2;
    pen.beginPath(); pen.moveTo(LEFT, y); pen.lineTo(width, y); pen.stroke();
  });
  const step = Math.pow(10, Math.floor(Math.log10((to - from) / 4)));
  const wide = [1, 2, 5, 10].map((it) => it * step).find((it) => (to - from) / it <= 9);
  pen.fillStyle = "#5d6878";
  pen.textAlign = "center";
  for (let at = Math.ceil(from / wide) * wide; at <= to; at += wide) {
    if (byOrder && at !== Math.round(at)) continue;
    const x = toX(at);
    pen.strokeStyle = "#e6eaf0";
    pen.beginPath(); pen.moveTo(x, TOP - 6); pen.lineTo(x, height); pen.stroke();
    pen.fillText(timeText(at), Math.max(x, LEFT + 16), 11);
  }
  pen.textAlign = "left";
  pen.fillText(byOrder ? "event" : "time", 12, 11);
}

function drawNames(pen) {
  pen.fillStyle = "#3a4656";
  pen.textAlign = "right";
  lanes.forEach((process, lane) =>
    pen.fillText(`process ${process}`, LEFT - 14, TOP + lane * LANE + LANE / 2));
  pen.textAlign = "left";
}

function drawBar(pen, bar, x, end) {
  const y = TOP + bar.lane * LANE + (LANE - BAR) / 2;
  pen.globalAlpha = bar.after && !bar.mark ? 0.35 : 1;
  const colour = COLOURS[bar.mark || bar.o];
  if (bar.open) {
    // It never ended, as far as is known.
    const fade = pen.createLinearGradient(x, 0, Math.min(x + 260, Math.max(end, x + 40)), 0);
    fade.addColorStop(0, colour); fade.addColorStop(1, colour + "30");
    pen.fillStyle = fade;
  } else {
    pen.fillStyle = colour;
  }
  pen.beginPath();
  pen.roundRect(x, y, end - x, BAR, Math.min(4, (end - x) / 2));
  pen.fill();
  if (end - x > 6) {
    pen.strokeStyle = bar === hovered ? "#16202e" : "#00000026";
    pen.stroke();
  }
  if (end - x > 24) {
    pen.save();
    pen.beginPath(); pen.rect(x + 4, y, end - x - 7, BAR); pen.clip();
    pen.fillStyle = bar.mark === "stuck" ? "#fff" : "#1c2430";
    pen.fillText(bar.t, Math.max(x, LEFT) + 6, y + BAR / 2 + 0.5);
    pen.restore();
  }
  pen.globalAlpha = 1;
}

function drawPoints(pen, width) {
  const shown = points.filter(({ x, bar }) => bar.lane !== null && toX(x) >= LEFT - 40 && toX(x) <= width + 40);
  if (!shown.length || shown.length > 1500) return;
  const y = (bar) => TOP + bar.lane * LANE + LANE - 6;
  // Many lines hide more than they show.
  pen.strokeStyle = shown.length > 60 ? "#16202e18" : "#16202e90";
  pen.beginPath();
  shown.forEach(({ x, bar }, at) => at ? pen.lineTo(toX(x), y(bar)) : pen.moveTo(toX(x), y(bar)));
  pen.stroke();
  pen.fillStyle = "#16202e";
  for (const { x, bar } of shown) {
    pen.beginPath(); pen.arc(toX(x), y(bar), shown.length > 150 ? 1.5 : 3.5, 0, 7); pen.fill();
  }
}

function barAt(event) {
  const box = el("chart").getBoundingClientRect();
  const x = event.clientX - box.left, y = event.clientY - box.top;
  const lane = Math.floor((y - TOP) / LANE);
  if (x < LEFT || y < TOP) return null;
  const near = bars.filter((bar) => bar.lane === lane && toX(bar.a) - 3 <= x && (bar.open || toX(bar.b) + 3 >= x));
  return near.find((bar) => bar.mark) || near[near.length - 1] || null;
}

function showTip(event) {
  const bar = barAt(event);
  if (bar !== hovered) { hovered = bar; draw(); }
  el("tip").hidden = !bar;
  if (!bar) return;
  const at = points.find((point) => point.bar === bar);
  const said = { ok: "done", fail: "failed: not done", info: "unknown: it may be done at any later time" };
  const when = file.has_times
    ? `${bar.s} ns to ${bar.e === null ? "…" : `${bar.e} ns (${((bar.e - bar.s) / 1e3).toFixed(1)} µs)`}`
    : `event ${bar.s} to ${bar.e ?? "…"}`;
  el("tip").textContent = [
    `process ${bar.p}: ${bar.t}`,
    `${said[bar.o]}; ${when}${bar.l ? `; line ${bar.l}` : ""}`,
    at ? `number ${at.at + 1} in the order that is shown` : order ? "not in the order that is shown" : "",
    bar.mark === "stuck" && order ? "no order explains this one" : "",
    bar.after ? "began after what is shown as wrong" : "",
  ].filter(Boolean).join("\n");
  const tip = el("tip");
  tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.min(event.clientY + 16, innerHeight - tip.offsetHeight - 8)}px`;
}

let drag = null;
el("chart").addEventListener("wheel", (event) => {
  event.preventDefault();
  const at = toAt(event.clientX - el("chart").getBoundingClientRect().left);
  const factor = Math.exp(Math.max(-1, Math.min(1, event.deltaY / 300)));
  const least = byOrder ? 4 : 1;
  if ((to - from) * factor < least || (to - from) * factor > (last - first) * 3) return;
  from = at - (at - from) * factor; to = at + (to - at) * factor;
  draw();
}, { passive: false });
el("chart").addEventListener("pointerdown", (event) => {
  drag = { x: event.clientX, y: event.clientY, from, to, top: el("view").scrollTop };
});
addEventListener("pointerup", () => { drag = null; });
addEventListener("pointermove", (event) => {
  if (!drag) { if (event.target === el("chart")) showTip(event); return; }
  const moved = ((event.clientX - drag.x) / (el("view").clientWidth - LEFT - 8)) * (drag.to - drag.from);
  from = drag.from - moved; to = drag.to - moved;
  el("view").scrollTop = drag.top - (event.clientY - drag.y);
  draw();
});
el("chart").addEventListener("pointerleave", () => { el("tip").hidden = true; hovered = null; draw(); });
el("chart").addEventListener("dblclick", zoomToWhole);
el("whole").onclick = zoomToWhole;
el("story").onclick = zoomToStory;
el("axis").onclick = () => { byOrder = !byOrder; layOut(); placePoints(); zoomToStory(); };
el("file").onchange = (event) => showFile(+event.target.value);
el("key").onchange = (event) => showKey(+event.target.value);
addEventListener("resize", draw);

options(el("file"), DATA.map((it) => `${it.name} — ${it.verdict}`));
if (DATA.length) showFile(0); else el("facts").textContent = "no history could be read";
