"use strict";

const runs = document.getElementById("runs");
const connection = document.getElementById("connection");
const source = new EventSource("events");

source.addEventListener("open", () => {
  connection.textContent = "live";
});

source.addEventListener("error", () => {
  const closed = source.readyState === EventSource.CLOSED;
  connection.textContent = closed ? "not connected any more: load the page again" : "connection lost, trying again";
});

source.addEventListener("trouble", (event) => {
  connection.textContent = event.data;
});

// What the reader has opened or moved stays so.
source.addEventListener("body", (event) => {
  const opened = [...runs.querySelectorAll("details[open]")].map((part) => part.id);
  const moved = [...runs.querySelectorAll(".wide")].map((part) => part.scrollLeft);
  runs.innerHTML = event.data;
  for (const id of opened) {
    document.getElementById(id)?.setAttribute("open", "");
  }
  runs.querySelectorAll(".wide").forEach((part, index) => {
    part.scrollLeft = moved[index] ?? 0;
  });
  connection.textContent = "live";
});
