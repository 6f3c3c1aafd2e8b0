/* Live updates on the page of a run or an app's upgrade: polls for changes and inserts them. Without this script the page
   stays as served, and a reload shows the rest. */
"use strict";

(function () {
  const EVERY = 1500;
  const SLOWEST = 30000;

  const root = document.getElementById("run");
  const log = document.getElementById("log");
  if (!root || !log) return;

  if (!root.dataset.live) Log.ended();
  if (!Log.follow()) toEnd();
  root.addEventListener("toggle", (event) => event.target.open && fill(event.target), true); // it does not bubble
  if (!root.dataset.live) return;

  const lamp = document.getElementById("live");
  const lampText = document.getElementById("live-text");
  const still = document.getElementById("still");
  const announce = document.getElementById("announce");
  const what = root.dataset.what || "run";
  const shown = new Map();
  let mark = root.dataset.mark;
  let state = root.dataset.state;
  let failures = 0;
  let timer = 0;
  let asking = false;

  say("live", "live");
  lamp.hidden = false;
  plan(EVERY);
  document.addEventListener("visibilitychange", function () {
    if (document.hidden) clearTimeout(timer);
    else if (root.dataset.live) plan(0);
  });

  function plan(delay) {
    clearTimeout(timer);
    if (!document.hidden) timer = setTimeout(ask, delay);
  }

  async function ask() {
    if (asking) return;
    asking = true;
    try {
      const response = await fetch(root.dataset.live + "?seen=" + encodeURIComponent(mark), {
        headers: { Accept: "application/json" },
        signal: AbortSignal.timeout(15000),
      });
      if (response.status === 403) return stop("Log in again to see updates.");
      if (response.status === 404) return stop("This " + what + " was deleted.");
      if (!response.ok) throw new Error(String(response.status));
      show(await response.json());
      failures = 0;
    } catch (error) {
      failures += 1;
      const wait = Math.min(SLOWEST, EVERY * 2 ** failures);
      say("trouble", "no response from the server, retrying in " + Math.round(wait / 1000) + " s");
      plan(wait);
    } finally {
      asking = false;
    }
  }

  function show(news) {
    for (const [name, html] of Object.entries(news.parts)) replace(name, html, news.final);
    if (news.log !== null) {
      if (!news.more) document.getElementById("log-cut").hidden = !news.cut;
      write(news.log, news.more);
    }
    mark = news.log_mark;
    if (news.state !== state) {
      announce.textContent = "The " + what + " " + news.headline + ".";
      state = news.state;
      document.title = news.title;
      document.querySelector("link[rel=icon]").href = news.favicon;
      for (const form of document.querySelectorAll("#buttons form")) form.hidden = !form.dataset.states.split(" ").includes(state);
    }
    if (news.final) stop("");
    else {
      say("live", "live");
      plan(EVERY);
    }
  }

  /* Replace a part. Keeps open folds and the focus, and does not replace selected text. */
  function replace(name, html, final) {
    const part = root.querySelector('[data-part="' + name + '"]');
    if (!part || shown.get(name) === html || (!final && selecting(part))) return;
    const open = new Map();
    for (const box of part.querySelectorAll("details[data-key]")) open.set(box.dataset.key, box.open);
    const focus = focusable(part).indexOf(document.activeElement);
    part.innerHTML = html;
    for (const box of part.querySelectorAll("details[data-key]")) {
      if (open.has(box.dataset.key)) box.open = open.get(box.dataset.key);
    }
    const again = focus < 0 ? null : focusable(part)[focus];
    if (again) again.focus({ preventScroll: true });
    shown.set(name, html);
  }

  function focusable(part) {
    return Array.from(part.querySelectorAll("a[href], summary, [tabindex]"));
  }

  function selecting(part) {
    const selection = document.getSelection();
    return Boolean(selection && !selection.isCollapsed && part.contains(selection.anchorNode));
  }

  /* Append new lines, so that the text being read does not jump. `more`: it comes after what is shown. */
  function write(text, more) {
    const follow = log.scrollHeight - log.scrollTop - log.clientHeight < 30;
    Log.write(text, more);
    const some = Boolean(text) || more;
    Log.visible(some);
    document.getElementById("log-empty").hidden = some;
    if (follow) toEnd();
  }

  /* Fetch the file of a fold that was opened. */
  async function fill(fold) {
    const output = fold.querySelector("pre[data-file]");
    if (!output || output.textContent) return;
    output.textContent = "…";
    try {
      const response = await fetch(output.dataset.file, { signal: AbortSignal.timeout(60000) });
      output.textContent = response.ok ? await response.text() : "It could not be loaded (" + response.status + ").";
    } catch (error) {
      output.textContent = "It could not be loaded (" + error.message + ").";
    }
    output.scrollTop = output.scrollHeight;
  }

  function toEnd() {
    log.scrollTop = log.scrollHeight;
  }

  function say(kind, text) {
    lamp.className = "live " + kind;
    lampText.textContent = text;
    still.hidden = kind === "live";
  }

  function stop(text) {
    root.dataset.live = "";
    clearTimeout(timer);
    if (text) say("trouble", text);
    else {
      lamp.hidden = still.hidden = true;
      Log.ended();
    }
  }
})();
