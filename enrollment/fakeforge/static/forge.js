// Show new comments and statuses automatically. Only replaces parts that changed on the server, so that text being
// typed, open folds and selections are kept.
(() => {
  const live = document.getElementById("live");
  if (!live) return;
  const known = new Map([...live.children].map((part) => [part.id, part.innerHTML]));
  const refresh = async () => {
    if (document.hidden) return;
    const answer = await fetch(location.pathname + "?part=live", { headers: { Accept: "text/html" } });
    if (!answer.ok) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").body;
    const parts = [...fresh.children];
    const ids = new Set(parts.map((part) => part.id));
    for (const part of [...live.children]) if (!ids.has(part.id)) part.remove();
    let before = null;
    for (const part of parts) {
      const html = part.innerHTML;
      let shown = document.getElementById(part.id);
      if (!shown) {
        shown = part;
        if (before) before.after(part);
        else live.prepend(part);
      } else if (known.get(part.id) !== html) {
        shown.innerHTML = html;
      }
      known.set(part.id, html);
      before = shown;
    }
  };
  setInterval(() => refresh().catch(() => {}), 3000);
})();
