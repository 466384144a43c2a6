"use strict";

const form = document.getElementById("ask");
const file = document.getElementById("file");
const byFile = document.getElementById("by-file");
const drop = document.getElementById("drop");

// Choosing a file searches by it at once.
byFile.hidden = true;
file.addEventListener("change", () => file.files.length && form.requestSubmit(byFile));

// Empty fields would only make the address long.
form.addEventListener("submit", (event) => {
  if (event.submitter === byFile) return;
  for (const field of form.elements) if (field.name && !field.value) field.disabled = true;
  file.disabled = true;
});
window.addEventListener("pageshow", () => {
  for (const field of form.elements) field.disabled = false;
});

for (const name of ["dragenter", "dragover"])
  document.addEventListener(name, (event) => {
    if (![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    drop.classList.add("over");
  });
document.addEventListener("dragleave", (event) => event.relatedTarget || drop.classList.remove("over"));
document.addEventListener("drop", (event) => {
  if (!event.dataTransfer.files.length) return;
  event.preventDefault();
  drop.classList.remove("over");
  file.files = event.dataTransfer.files;
  form.requestSubmit(byFile);
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.target.matches("input, textarea, select")) return;
  event.preventDefault();
  const words = document.getElementById("words");
  words.focus();
  words.select();
});

// One player at a time.
document.addEventListener("play", (event) => {
  for (const player of document.querySelectorAll("audio, video")) if (player !== event.target) player.pause();
}, true);
