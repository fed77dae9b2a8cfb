// The page works without this file. With it, what is live follows, and commands can be copied.
"use strict";

// A live part is replaced as a whole. What somebody has opened or written in it is kept.
function keep(part) {
  const opened = [...part.querySelectorAll("details[open][id]")].map((each) => each.id);
  const written = [...part.querySelectorAll("input[id]")].filter((each) => each.value !== each.defaultValue);
  const values = written.map((each) => [each.id, each.value]);
  const active = document.activeElement;
  const focused = active && active.id && part.contains(active) ? active : null;
  const summary = !focused && active && active.tagName === "SUMMARY" && part.contains(active) ? active.parentElement.id : "";
  const selection = focused && focused.tagName === "INPUT" ? [focused.selectionStart, focused.selectionEnd] : null;
  const scrolled = [...part.querySelectorAll("pre[tabindex], .scroll")].map((each) => [each.scrollTop, each.scrollLeft]);
  return () => {
    opened.forEach((id) => { const each = document.getElementById(id); if (each) each.open = true; });
    values.forEach(([id, value]) => { const each = document.getElementById(id); if (each) each.value = value; });
    [...part.querySelectorAll("pre[tabindex], .scroll")].forEach((each, number) => {
      if (scrolled[number]) [each.scrollTop, each.scrollLeft] = scrolled[number];
    });
    const again = focused && document.getElementById(focused.id);
    if (again) {
      again.focus({ preventScroll: true });
      if (selection && again.setSelectionRange) again.setSelectionRange(...selection);
    }
    const details = summary && document.getElementById(summary);
    if (details) details.querySelector("summary").focus({ preventScroll: true });
  };
}

function offerCopies(part) {
  if (!navigator.clipboard) return;
  part.querySelectorAll("[data-copy]").forEach((button) => { button.hidden = false; });
}

// Components a second between two reports of progress, for as long as the page has been watched.
class Rate {
  constructor(place) {
    this.place = place;
    this.key = "rate:" + place.dataset.run;
    this.seen = JSON.parse(sessionStorage.getItem(this.key) || "[]");
    this.draw();
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    window.addEventListener("resize", () => { if (this.plot) this.plot.setSize(this.size()); });
  }

  add(progress) {
    const done = ["SUCCESS", "FAILURE", "UNKNOWN"].reduce((sum, status) => sum + (progress.components[status] || 0), 0);
    const at = Date.parse(progress.at) / 1000;
    const last = this.seen.at(-1);
    if (last && at <= last[0]) return;
    this.seen.push([at, done]);
    if (this.seen.length > 2000) this.seen = this.seen.filter((_, number) => number % 2 === 0);
    sessionStorage.setItem(this.key, JSON.stringify(this.seen));
    this.draw();
  }

  size() { return { width: this.place.clientWidth, height: 140 }; }

  draw() {
    if (this.seen.length < 3 || !window.uPlot) return;
    const times = this.seen.slice(1).map(([at]) => at);
    const rates = this.seen.slice(1).map(([at, done], number) => {
      const [before, had] = this.seen[number];
      // An attempt that begins counts anew.
      return Math.max(0, done - had) / (at - before);
    });
    this.place.hidden = false;
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    const axis = { stroke: color("--quiet"), grid: { stroke: color("--line"), width: 1 }, ticks: { stroke: color("--line") } };
    if (this.plot) this.plot.destroy();
    this.plot = new uPlot({
      ...this.size(),
      cursor: { show: false },
      legend: { show: false },
      scales: { y: { range: (_, low, high) => [0, Math.max(high * 1.1, 1)] } },
      axes: [axis, { ...axis, size: 60 }],
      series: [{}, { stroke: color("--bar-done"), fill: color("--bar-ahead"), width: 2, points: { show: false } }],
    }, [times, rates], this.place.querySelector("div"));
  }
}

function follow(live) {
  const source = new EventSource(live.dataset.events);
  const place = document.getElementById("rate");
  const rate = place ? new Rate(place) : null;
  let due = null;
  const refresh = () => {
    due = due || setTimeout(() => { due = null; htmx.trigger(live, "refresh"); }, 300);
  };
  source.addEventListener("event", refresh);
  source.addEventListener("progress", (event) => { if (rate) rate.add(JSON.parse(event.data)); refresh(); });
  source.addEventListener("end", () => { source.close(); refresh(); });
}

document.addEventListener("DOMContentLoaded", () => {
  let restore = null;
  document.body.addEventListener("htmx:beforeSwap", (event) => { restore = keep(event.detail.target); });
  document.body.addEventListener("htmx:afterSwap", (event) => {
    offerCopies(event.detail.target);
    if (restore) restore();
    restore = null;
  });
  offerCopies(document);
  const live = document.querySelector("[data-events]");
  if (live && window.EventSource) follow(live);
  const log = document.querySelector("pre.log");
  if (log) log.scrollTop = log.scrollHeight;
});

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  navigator.clipboard.writeText(button.dataset.copy).then(() => {
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
});
