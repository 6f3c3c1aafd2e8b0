/* The log of a run as lines: coloured, each with an address, found by search, with the stages to jump to. Its text stays what
   it was, so that it can be selected and copied. Lines are made only where somebody looks, so that a log of 100 MB does not
   hold up the page. Without this script it is plain text. */
"use strict";

window.Log = (function () {
  /* Lines of a block: what is made, and laid out, at once. Every block but the last has as many. */
  const SIZE = 500;
  /* So many blocks are no burden: they are made at once. */
  const FEW = 20;
  /* The most parts to jump to: whoever writes the log may write nothing but headings. */
  const PARTS = 100;
  const log = document.getElementById("log");
  const tools = document.getElementById("log-tools");
  const sections = document.getElementById("log-sections");
  const search = document.getElementById("log-search");
  const count = document.getElementById("log-count");
  const rest = document.getElementById("log-rest");
  const cut = document.getElementById("log-cut");
  const sight = new IntersectionObserver(
    (seen) => seen.filter((entry) => entry.isIntersecting).forEach((entry) => make(entry.target)),
    { root: log, rootMargin: "600px" }
  );
  /* Whether the first line here is the log's first; only of a run, whose whole log can be had. */
  let numbered = Boolean(rest) && cut.hidden;
  let whole = "";
  let hits = [];
  let found = new Set();
  let at = -1;
  let here = 0;

  const HEAD = /^(?:\d\d:\d\d:\d\d )?== (.*)$/;
  const TONES = [
    [HEAD, "head"],
    [/\b(FAILED|ERROR|Traceback|error:|failed)\b/i, "bad"],
    [/\b(WARN|WARNING)\b/, "warn"],
    [/\bPASSED\b/, "good"],
  ];

  /* Replace the text; append what is new in it where it begins with the old one, or where it is `more` of it. */
  function write(text, more) {
    if (more) append(text);
    else if (whole && text.startsWith(whole)) append(text.slice(whole.length));
    else {
      clear();
      numbered = Boolean(rest) && cut.hidden;
      append(text);
    }
    if (search && search.value) find(false);
  }

  function clear() {
    sight.disconnect();
    log.textContent = whole = "";
    if (sections) sections.textContent = "";
  }

  function append(text) {
    if (!text) return;
    whole += text;
    const last = log.lastElementChild;
    if (last && (last.lines < SIZE || !last.textContent.endsWith("\n"))) {
      text = last.textContent + text;
      last.remove();
      for (const link of sections ? Array.from(sections.children) : []) {
        if (Number(link.dataset.line) > log.childElementCount * SIZE) link.remove();
      }
    }
    const tall = parseFloat(getComputedStyle(log).lineHeight) || 18;
    const boxes = document.createDocumentFragment();
    let number = log.childElementCount * SIZE;
    for (let start = 0; start < text.length; ) {
      let end = start;
      let lines = 0;
      for (; lines < SIZE && end < text.length; lines += 1) {
        const stop = text.indexOf("\n", end) + 1 || text.length;
        const head = text.startsWith("== ", end) || text.startsWith("== ", end + 9) ? HEAD.exec(text.slice(end, stop).trimEnd()) : null;
        if (head && sections && sections.childElementCount < PARTS) link(head[1], number + lines + 1);
        end = stop;
      }
      const box = document.createElement("span");
      box.className = "block";
      box.textContent = text.slice(start, end);
      box.lines = lines;
      box.first = number + 1;
      box.style.containIntrinsicBlockSize = "auto " + lines * tall + "px";
      boxes.append(box);
      sight.observe(box);
      number += lines;
      start = end;
    }
    log.append(boxes);
    const long = log.childElementCount > FEW;
    log.classList.toggle("long", long);
    for (const box of long ? [] : log.children) make(box);
  }

  function link(text, number) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "linkish";
    button.dataset.line = number;
    button.textContent = text.trim().slice(0, 60);
    button.addEventListener("click", () => show(number));
    sections.append(button);
  }

  /* The lines of a block, each an element of its own. */
  function make(box) {
    if (box.firstElementChild || !box.isConnected) return;
    const lines = document.createDocumentFragment();
    let number = box.first;
    for (const text of box.textContent.match(/[^\n]*\n|[^\n]+/g) || []) {
      const line = document.createElement("span");
      const tone = TONES.find((pair) => pair[0].test(text.trimEnd()));
      line.className = "line" + (tone ? " " + tone[1] : "");
      line.textContent = text;
      line.dataset.line = number;
      if (numbered) line.id = "L" + number;
      lines.append(line);
      number += 1;
    }
    box.replaceChildren(lines);
    mark(box);
  }

  function mark(box) {
    for (const line of box.children) {
      line.classList.toggle("hit", found.has(Number(line.dataset.line)));
      line.classList.toggle("here", Number(line.dataset.line) === here);
    }
  }

  function show(number) {
    const box = log.children[Math.floor((number - 1) / SIZE)];
    if (!box) return false;
    make(box);
    const line = box.children[number - box.first];
    if (!line) return false;
    here = number;
    for (const other of log.querySelectorAll(".line.here")) other.classList.remove("here");
    line.classList.add("here");
    const to = () => (log.scrollTop += line.getBoundingClientRect().top - log.getBoundingClientRect().top - 8);
    to();
    requestAnimationFrame(to); // what is above may have turned out to be of another height
    return true;
  }

  function find(move) {
    const words = search.value.toLowerCase();
    hits = [];
    for (const box of words ? log.children : []) {
      const text = box.textContent.toLowerCase();
      if (!text.includes(words)) continue;
      text.split("\n").forEach((line, place) => line.includes(words) && hits.push(box.first + place));
    }
    found = new Set(hits);
    for (const box of log.children) if (box.firstElementChild) mark(box);
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
    const wanted = /^#L(\d+)$/.exec(location.hash);
    if (!wanted) return false;
    if (!numbered && rest && !rest.hidden && !cut.hidden) {
      all();
      return true;
    }
    return numbered && show(Number(wanted[1]));
  }

  /* The run has ended: its whole log can be had. */
  function ended() {
    if (rest) rest.hidden = false;
  }

  /* Fetch the whole log in the place of its end. */
  async function all() {
    if (rest.disabled) return;
    rest.disabled = true;
    count.textContent = "Loading …";
    try {
      const answer = await fetch(rest.dataset.log);
      if (!answer.ok) throw new Error(String(answer.status));
      const text = await answer.text();
      count.textContent = "";
      cut.hidden = numbered = true;
      clear();
      append(text);
      if (search.value) find(false);
      if (!follow()) log.scrollTop = log.scrollHeight;
    } catch (error) {
      count.textContent = "The log did not come whole (" + error.message + "). Reload the page to try again.";
    }
  }

  if (log) {
    write(log.textContent);
    visible(!log.hidden);
    log.addEventListener("dblclick", function (event) {
      const line = event.target.closest(".line");
      if (line && line.id) {
        history.replaceState(null, "", "#" + line.id);
        show(Number(line.dataset.line));
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
    if (rest) rest.addEventListener("click", all);
    addEventListener("hashchange", follow);
  }
  return { write, follow, visible, ended };
})();
