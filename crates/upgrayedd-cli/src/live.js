"use strict";

const runs = document.getElementById("runs");
const connection = document.getElementById("connection");
const source = new EventSource("events");

// Readers of screens are told of what changes, not of what stays.
function say(text) {
  if (connection.textContent !== text) {
    connection.textContent = text;
  }
}

source.addEventListener("open", () => say("live"));

source.addEventListener("error", () => {
  const closed = source.readyState === EventSource.CLOSED;
  say(closed ? "not connected any more: load the page again" : "connection lost, trying again");
});

source.addEventListener("trouble", (event) => say(event.data));

// What the reader has opened, moved or reached by the keyboard stays so.
source.addEventListener("body", (event) => {
  const opened = [...runs.querySelectorAll("details[open]")].map((part) => part.id);
  const moved = [...runs.querySelectorAll(".wide")].map((part) => part.scrollLeft);
  const reached = runs.contains(document.activeElement) ? document.activeElement.closest("details")?.id : undefined;
  runs.innerHTML = event.data;
  for (const id of opened) {
    document.getElementById(id)?.setAttribute("open", "");
  }
  runs.querySelectorAll(".wide").forEach((part, index) => {
    part.scrollLeft = moved[index] ?? 0;
  });
  if (reached) {
    document.getElementById(reached)?.querySelector("summary")?.focus({preventScroll: true});
  }
  say("live");
});
