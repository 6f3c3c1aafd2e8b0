/* The buttons that copy a command. Without this script they are not shown. */
"use strict";

document.documentElement.classList.add("scripted");
document.addEventListener("click", async function (event) {
  const button = event.target.closest("button.copy");
  if (!button) return;
  const code = button.parentElement.querySelector("code");
  getSelection().selectAllChildren(code);
  let done = false;
  try {
    await navigator.clipboard.writeText(code.textContent);
    done = true;
  } catch {
    done = document.execCommand("copy"); // without https there is no clipboard
  }
  button.textContent = done ? "Copied" : "Press Ctrl+C";
  setTimeout(function () {
    button.textContent = "Copy";
  }, 2000);
});
