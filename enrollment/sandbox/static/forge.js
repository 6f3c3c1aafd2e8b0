// New comments and statuses appear by themselves; only parts that changed are touched, so text being typed and open
// folds stay as they are.
(() => {
  const live = document.getElementById("live");
  if (!live) return;
  let last = "";
  const refresh = async () => {
    if (document.hidden) return;
    const answer = await fetch(location.pathname + "?part=live", { headers: { Accept: "text/html" } });
    const text = answer.ok ? await answer.text() : last;
    if (text === last) return;
    last = text;
    const fresh = new DOMParser().parseFromString(text, "text/html").body;
    const wanted = new Map([...fresh.children].map((part) => [part.id, part]));
    for (const part of [...live.children]) if (!wanted.has(part.id)) part.remove();
    for (const [id, part] of wanted) {
      const shown = document.getElementById(id);
      if (!shown) live.append(part);
      else if (shown.innerHTML !== part.innerHTML) shown.innerHTML = part.innerHTML;
    }
  };
  setInterval(() => refresh().catch(() => {}), 3000);
})();
