// An element with a class and a text, which is never read as HTML.
export function element(kind, name, text = "") {
  const made = document.createElement(kind);
  if (name) made.className = name;
  if (text) made.textContent = text;
  return made;
}

export function button(name, text, act) {
  const made = element("button", name, text);
  made.type = "button";
  made.addEventListener("click", act);
  return made;
}

// A button that copies what `read` returns, and says that it did.
export function copier(read) {
  return button("copy", "Copy", async ({ currentTarget: made }) => {
    made.textContent = (await copy(read())) ? "Copied" : "Not allowed";
    setTimeout(() => { made.textContent = "Copy"; }, 1500);
  });
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { // over plain HTTP from another machine browsers have no clipboard, but still the command
    const area = element("textarea", "hidden");
    area.value = text;
    document.body.append(area);
    area.select();
    const isDone = document.execCommand("copy");
    area.remove();
    return isDone;
  }
}

// What is kept in this browser. Where it keeps nothing (a private window may refuse), all is as at the first visit.
export function recall(name) {
  try {
    return localStorage.getItem(name) ?? "";
  } catch {
    return "";
  }
}

export function remember(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // the next visit begins anew
  }
}
