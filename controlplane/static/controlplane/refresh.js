/* Keeps lists fresh: asks for the page again every few seconds, while it is seen, and takes over what changed in its parts
   with `data-refresh`. Without this script the lists stay as served. */
"use strict";

(function () {
  const EVERY = 5000;
  const SLOWEST = 60000;
  let failures = 0;
  let timer = 0;

  function plan() {
    clearTimeout(timer);
    if (!document.hidden) timer = setTimeout(ask, Math.min(SLOWEST, EVERY * 2 ** failures));
  }

  async function ask() {
    try {
      const address = new URL(location.href);
      address.searchParams.set("fresh", ""); // without what has no such part
      const response = await fetch(address, { headers: { Accept: "text/html" }, signal: AbortSignal.timeout(15000) });
      if (!response.ok || response.redirected) throw new Error(String(response.status));
      const news = new DOMParser().parseFromString(await response.text(), "text/html");
      for (const part of document.querySelectorAll("[data-refresh]")) {
        const fresh = news.querySelector('[data-refresh="' + part.dataset.refresh + '"]');
        // What somebody reads by keyboard, or has selected, stays.
        if (!fresh || fresh.innerHTML === part.innerHTML || part.contains(document.activeElement) || selecting(part)) continue;
        part.innerHTML = fresh.innerHTML;
      }
      failures = 0;
    } catch {
      failures = Math.min(failures + 1, 4);
    }
    plan();
  }

  function selecting(part) {
    const selection = document.getSelection();
    return Boolean(selection && !selection.isCollapsed && part.contains(selection.anchorNode));
  }

  document.addEventListener("visibilitychange", plan);
  plan();
})();
