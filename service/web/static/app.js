// The page works without this file. With it, a live run is followed, and actions ask once more.
"use strict";

// Whether somebody is writing in a part of the page: it isn't replaced under their hands.
function isInUse(part) {
  const inputs = [...part.querySelectorAll("input[type=text]")];
  return inputs.some((input) => input === document.activeElement || input.value !== input.defaultValue);
}

document.addEventListener("DOMContentLoaded", () => {
  document.body.addEventListener("htmx:beforeRequest", (event) => {
    if (isInUse(event.detail.elt)) event.preventDefault();
  });
  const live = document.querySelector("[data-events]");
  if (live && window.EventSource) {
    const source = new EventSource(live.dataset.events);
    let due = null;
    const refresh = () => {
      due = due || setTimeout(() => {
        due = null;
        if (isInUse(live)) refresh(); else htmx.trigger(live, "refresh");
      }, 300);
    };
    source.addEventListener("event", refresh);
    source.addEventListener("progress", refresh);
    source.addEventListener("end", () => { source.close(); refresh(); });
  }
});

document.addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !window.confirm(question)) event.preventDefault();
});
