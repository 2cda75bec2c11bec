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
    this.image.src = `/live/${told.camera}.jpg?n=${told.n}`;
    this.figure.className = `camera ${told.state.toLowerCase()}`;
    this.figure.querySelector(".caption").textContent = `${told.state} · ${told.text}`;
  }
}
const cameras = [];
document.addEventListener("frame", (event) => {
  const told = JSON.parse(event.detail.data);
  cameras[told.camera]?.tell(told);
});

// ---- how long no part has come
let age = null;
document.addEventListener("age", (event) => {
  const seconds = JSON.parse(event.detail.data);
  age = seconds === null ? null : performance.now() / 1000 - seconds;
  showAge();
});
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
      scales: { x: { time: false, range: [0, 200] } },
      axes: [{ ...axis, show: false }, { ...axis, size: 52 }],
      series: [{}, { ...dots("--ok", 5), label: place.dataset.score }, { ...dots("--ng", 10), label: "NG" },
        { label: place.dataset.threshold, stroke: colour("--ink"), width: 2, dash: [6, 4], points: { show: false } }],
    }, [[], [], [], []], place);
    new ResizeObserver(() => this.chart.setSize({ width: place.clientWidth, height: 180 })).observe(place);
  }
  add(rows) {
    this.rows = this.rows.concat(rows.filter((row) => row[1] !== null)).slice(-200);
    const start = 200 - this.rows.length;
    this.chart.setData([
      this.rows.map((_, i) => start + i + 1),
      this.rows.map((row) => (row[3] === "NG" ? null : row[1])),
      this.rows.map((row) => (row[3] === "NG" ? row[1] : null)),
      this.rows.map((row) => row[2]),
    ]);
  }
}
let strip = null;
document.addEventListener("scores", (event) => strip?.add(JSON.parse(event.detail.data)));

document.addEventListener("DOMContentLoaded", () => {
  for (const figure of document.querySelectorAll(".camera")) cameras[figure.dataset.camera] = new Camera(figure);
  const place = document.getElementById("strip");
  if (place) strip = new Strip(place);
});
document.addEventListener("visibilitychange", () => cameras.forEach((camera) => camera.load()));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => strip?.chart.redraw());
