/* The log of a run as lines: coloured, each with an address, found by search, with the stages to jump to. Its text stays what
   it was, so that it can be selected and copied. Without this script it is plain text. */
"use strict";

window.Log = (function () {
  const log = document.getElementById("log");
  const tools = document.getElementById("log-tools");
  const sections = document.getElementById("log-sections");
  const search = document.getElementById("log-search");
  const count = document.getElementById("log-count");
  const numbered = log && log.dataset.numbered !== undefined;
  let hits = [];
  let at = -1;

  const TONES = [
    [/^(\d\d:\d\d:\d\d )?== /, "head"],
    [/\b(FAILED|ERROR|Traceback|error:|failed)\b/i, "bad"],
    [/\b(WARN|WARNING)\b/, "warn"],
    [/\bPASSED\b/, "good"],
  ];

  /* Replace the text, or append what is new in it. */
  function write(text) {
    const before = log.textContent;
    let rest = text;
    if (before && text.length > before.length && text.startsWith(before)) {
      const last = log.lastElementChild;
      rest = text.slice(before.length);
      if (last && !last.textContent.endsWith("\n")) {
        rest = last.textContent + rest;
        last.remove();
      }
    } else if (text === before && log.firstElementChild) return;
    else {
      log.textContent = "";
      if (sections) sections.textContent = "";
    }
    const lines = document.createDocumentFragment();
    let number = log.childElementCount;
    for (const line of rest.match(/[^\n]*\n|[^\n]+/g) || []) {
      number += 1;
      lines.append(made(line, number));
    }
    log.append(lines);
    if (search && search.value) find(false);
  }

  function made(text, number) {
    const line = document.createElement("span");
    const tone = TONES.find((pair) => pair[0].test(text));
    line.className = "line" + (tone ? " " + tone[1] : "");
    line.textContent = text;
    if (numbered) line.id = "L" + number;
    if (tone && tone[1] === "head" && sections) {
      const link = document.createElement("button");
      link.type = "button";
      link.className = "linkish";
      link.textContent = text.replace(TONES[0][0], "").trim().slice(0, 60);
      link.addEventListener("click", () => show(line));
      sections.append(link);
    }
    return line;
  }

  function show(line) {
    log.scrollTop = line.offsetTop - log.offsetTop - 8;
    for (const other of log.querySelectorAll(".line.here")) other.classList.remove("here");
    line.classList.add("here");
  }

  function find(move) {
    const words = search.value.toLowerCase();
    for (const line of hits) line.classList.remove("hit");
    hits = words ? Array.from(log.children).filter((line) => line.textContent.toLowerCase().includes(words)) : [];
    for (const line of hits) line.classList.add("hit");
    if (!move) {
      at = Math.min(at, hits.length - 1);
    } else if (hits.length) {
      at = (at + 1) % hits.length;
      show(hits[at]);
    }
    count.textContent = !words ? "" : hits.length ? Math.max(at + 1, 0) + " of " + hits.length + " lines" : "No line has it";
  }

  function visible(yes) {
    log.hidden = !yes;
    if (tools) tools.hidden = !yes;
  }

  /* Leads to the line in the address, whatever was shown before. */
  function follow() {
    const line = /^#L\d+$/.test(location.hash) && document.getElementById(location.hash.slice(1));
    if (line) show(line);
    return Boolean(line);
  }

  if (log) {
    write(log.textContent);
    visible(!log.hidden);
    log.addEventListener("dblclick", function (event) {
      const line = event.target.closest(".line");
      if (line && line.id) {
        history.replaceState(null, "", "#" + line.id);
        show(line);
      }
    });
    if (search) {
      search.addEventListener("input", function () {
        at = -1;
        find(true);
      });
      search.addEventListener("keydown", function (event) {
        if (event.key === "Enter") find(true);
      });
    }
    addEventListener("hashchange", follow);
  }
  return { write, follow, visible };
})();
