// The page's own script: live pictures, the strip of scores, and the keys of the review.
"use strict";
const words = () => document.getElementById("words").dataset;

// ---- whether the agent is there
function lost(is_lost) {
  let note = document.querySelector(".lost");
  if (is_lost && !note) {
    note = document.createElement("p");
    note.className = "fault lost";
    note.setAttribute("role", "alert");
    note.textContent = words().lost;
    document.getElementById("main").prepend(note);
  } else if (!is_lost && note) note.remove();
}
document.addEventListener("htmx:sse:error", () => lost(true));
document.addEventListener("htmx:sse:after:connection", () => lost(false));

// ---- live pictures: one at a time, at most five a second, only while they can be seen
class Camera {
  constructor(figure) {
    this.figure = figure;
    this.image = figure.querySelector("img");
    this.told = null;
    this.shown = 0;
    this.at = 0;
    this.is_loading = false;
    this.is_seen = true;
    new IntersectionObserver(([entry]) => {
      this.is_seen = entry.isIntersecting;
      this.load();
    }).observe(figure);
    this.image.addEventListener("load", () => this.loaded());
    this.image.addEventListener("error", () => this.loaded());
  }
  tell(told) {
    this.told = told;
    this.load();
  }
  loaded() {
    this.is_loading = false;
    this.load();
  }
  load() {
    const told = this.told;
    if (!told || told.n === this.shown || this.is_loading || !this.is_seen || document.hidden) return;
    const wait = this.at + 200 - performance.now();
    if (wait > 0) {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.load(), wait);
      return;
    }
    this.is_loading = true;
    this.at = performance.now();
    this.shown = told.n;
    this.image.src = told.picture;
    this.figure.className = `camera ${told.state.toLowerCase()}`;
    this.figure.querySelector(".caption").textContent = `${told.state} · ${told.text}`;
  }
}
const cameras = [];

// ---- what is new: pictures, scores, tiles
document.addEventListener("news", (event) => {
  const { whole, age: seconds, frames, scores, rows } = JSON.parse(event.detail.data);
  age = seconds === null ? null : performance.now() / 1000 - seconds;
  showAge();
  for (const told of frames) cameras[told.camera]?.tell(told);
  strip?.add(scores, whole);
  for (const [name, html] of Object.entries(rows)) showTiles(document.getElementById(name), html, whole);
});
function showTiles(row, html, whole) {
  if (!row || (!html && !whole)) return;
  const piece = document.createElement("template");
  piece.innerHTML = html;
  if (whole) return row.replaceChildren(piece.content);
  for (const tile of [...piece.content.children].reverse()) {
    const old = document.getElementById(tile.id);
    old ? old.replaceWith(tile) : row.prepend(tile);
  }
  while (row.children.length > row.dataset.most) row.lastElementChild.remove();
}

// ---- how long no part has come
let age = null;
function showAge() {
  const place = document.getElementById("age");
  if (!place || age === null) return;
  const seconds = Math.max(0, performance.now() / 1000 - age);
  const [unit, size] = seconds < 120 ? ["seconds", 1] : seconds < 7200 ? ["minutes", 60] : ["hours", 3600];
  place.textContent = words()[unit].replace("{n}", Math.floor(seconds / size));
}
setInterval(showAge, 1000);
document.addEventListener("htmx:sse:after:message", showAge);

// ---- the last scores against the threshold
class Strip {
  constructor(place) {
    this.place = place;
    this.rows = [];
    const colour = (name) => () => getComputedStyle(document.body).getPropertyValue(name);
    const axis = { stroke: colour("--soft"), grid: { stroke: colour("--edge"), width: 1 }, ticks: { show: false } };
    const dots = (name, size) => ({ stroke: colour(name), fill: colour(name), paths: () => null,
      points: { show: true, size, fill: colour(name), stroke: colour(name) } });
    this.chart = new uPlot({
      width: place.clientWidth || 300, height: 180, legend: { show: false }, cursor: { show: false },
      scales: { x: { time: false, range: [0, 204] } },
      axes: [{ ...axis, show: false }, { ...axis, size: 52 }],
      series: [{}, { ...dots("--ok", 5), label: place.dataset.score }, { ...dots("--ng", 10), label: "NG" },
        { label: place.dataset.threshold, stroke: colour("--ink"), width: 2, dash: [6, 4], points: { show: false } }],
    }, [[], [], [], []], place);
    new ResizeObserver(() => this.chart.setSize({ width: place.clientWidth, height: 180 })).observe(place);
  }
  add(rows, whole) {
    this.rows = (whole ? [] : this.rows).concat(rows.filter((row) => row[0] !== null)).slice(-200);
    const start = 200 - this.rows.length;
    // Good parts stay apart from the threshold: what is far above it is drawn at the upper edge.
    const threshold = Math.max(...this.rows.map((row) => Math.abs(row[1] ?? 0)));
    const drawn = (row) => (threshold ? Math.min(row[0], 3 * threshold) : row[0]);
    this.chart.setData([
      this.rows.map((_, i) => start + i + 1),
      this.rows.map((row) => (row[2] === "NG" ? null : drawn(row))),
      this.rows.map((row) => (row[2] === "NG" ? drawn(row) : null)),
      this.rows.map((row) => row[1]),
    ]);
  }
}
let strip = null;

document.addEventListener("DOMContentLoaded", () => {
  for (const figure of document.querySelectorAll(".camera")) cameras[figure.dataset.camera] = new Camera(figure);
  const place = document.getElementById("strip");
  if (place) strip = new Strip(place);
});
document.addEventListener("visibilitychange", () => cameras.forEach((camera) => camera.load()));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => strip?.chart.redraw());

// ---- the review: move, choose, label, undo
class Review {
  constructor(grid) {
    this.grid = grid;
    this.tiles = [...grid.querySelectorAll(".tile")];
    this.form = document.getElementById("labelling");
    this.undone = document.getElementById("undo");
    this.past = [];
    this.at = 0;
    this.anchor = 0;
    this.chosen = new Set();
    grid.addEventListener("click", (event) => {
      const index = this.tiles.indexOf(event.target.closest(".tile"));
      if (index >= 0) this.choose(index, { range: event.shiftKey, one: event.ctrlKey || event.metaKey });
    });
    grid.addEventListener("dblclick", () => document.getElementById("detail").scrollIntoView());
    document.addEventListener("keydown", (event) => this.key(event));
    this.form?.addEventListener("click", (event) => {
      const say = event.target.closest("[data-say]")?.dataset.say;
      if (say) this.label(say);
    });
    this.undone?.addEventListener("click", () => this.undo());
    document.getElementById("all")?.addEventListener("click", () => this.chooseAll());
    this.choose(0, { quietly: true });
  }
  choose(index, { range = false, one = false, quietly = false } = {}) {
    index = Math.max(0, Math.min(this.tiles.length - 1, index));
    if (range) {
      const [from, to] = [Math.min(this.anchor, index), Math.max(this.anchor, index)];
      this.chosen = new Set(this.tiles.slice(from, to + 1));
    } else if (one) {
      const tile = this.tiles[index];
      if (!this.chosen.delete(tile)) this.chosen.add(tile);
      this.anchor = index;
    } else {
      this.chosen = new Set([this.tiles[index]]);
      this.anchor = index;
    }
    this.tiles[this.at].tabIndex = -1;
    this.at = index;
    this.tiles[index].tabIndex = 0;
    if (!quietly) this.tiles[index].focus({ preventScroll: false });
    this.show();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.detail(), 80);
  }
  chooseAll() {
    this.chosen = new Set(this.tiles);
    this.show();
  }
  show() {
    for (const tile of this.tiles) tile.setAttribute("aria-selected", this.chosen.has(tile));
    const place = document.getElementById("chosen");
    if (!place) return;
    const n = this.chosen.size;
    place.textContent = (n === 1 ? place.dataset.one : place.dataset.many).replace("{n}", n);
  }
  detail() {
    const id = this.tiles[this.at].dataset.id;
    htmx.ajax("GET", `/review/part?id=${id}&blind=${this.grid.dataset.blind}`, { target: "#detail", swap: "innerHTML" });
  }
  badge(id) {
    return document.getElementById("b" + id.replace("/", "-"));
  }
  label(word) {
    const ids = [...this.chosen].map((tile) => tile.dataset.id);
    if (!ids.length) return;
    this.past.push(ids.map((id) => [id, this.badge(id).dataset.label || "withdrawn"]));
    this.send(ids.map((id) => [id, word]));
    const next = this.tiles.findIndex((tile, i) => i > this.at && !this.badge(tile.dataset.id).dataset.label);
    this.choose(next < 0 ? this.at : next);
  }
  undo() {
    const last = this.past.pop();
    if (!last) return;
    this.send(last);
    this.choose(this.tiles.findIndex((tile) => tile.dataset.id === last[0][0]));
  }
  send(pairs) {
    this.undone.disabled = !this.past.length;
    this.form.elements.say.value = pairs.map(([id, word]) => `${id}=${word}`).join(" ");
    this.form.requestSubmit();
  }
  columns() {
    const top = this.tiles[0].offsetTop;
    const next = this.tiles.findIndex((tile) => tile.offsetTop > top);
    return next < 0 ? this.tiles.length : next;
  }
  key(event) {
    if (event.altKey || event.target.matches("input, select, textarea") || event.defaultPrevented) return;
    const range = event.shiftKey;
    const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns(), ArrowDown: this.columns() };
    const says = { g: "good", d: "defective", u: "unsure" };
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (key in moves) this.choose(this.at + moves[key], { range });
    else if (key === " " && event.target.closest(".tile")) this.choose(this.at, { one: true });
    else if (key === "Escape") this.choose(this.at);
    else if (key === "v") document.querySelector("#detail .other")?.click();
    else if (key === "a" && this.form) this.chooseAll();
    else if ((event.ctrlKey || event.metaKey) && key !== "z") return;
    else if (key in says && this.form) this.label(says[key]);
    else if (key === "z" && this.form) this.undo();
    else return;
    event.preventDefault();
  }
}
document.addEventListener("DOMContentLoaded", () => {
  const grid = document.getElementById("grid");
  if (grid) new Review(grid);
});
document.addEventListener("click", (event) => {
  const image = event.target.closest(".other")?.closest("figure").querySelector("img");
  if (!image) return;
  const shown = image.getAttribute("src");
  image.src = image.dataset.other;
  image.dataset.other = shown;
});
// A picture that is not there any more is a word, not a broken sign.
document.addEventListener("error", (event) => {
  if (!event.target.matches?.(".tile img, .large img")) return;
  const word = document.createElement("span");
  word.className = "none";
  word.textContent = words().none;
  event.target.replaceWith(word);
}, true);
