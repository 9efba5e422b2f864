// The page of `quartet serve`. Whatever is shown becomes text, never markup; all addresses are this server's.
"use strict";

const $ = (id) => document.getElementById(id);
const SHOWN_BARS = 8;
let about = null;
let file = null;

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function mib(bytes) {
  return bytes < 2 ** 20 ? `${Math.ceil(bytes / 1024)} KiB` : `${(bytes / 2 ** 20).toFixed(bytes < 2 ** 24 ? 1 : 0)} MiB`;
}

// ------------------------------------------------------------------------------------------------------------ asking

async function begin() {
  about = await (await fetch("/api/about")).json();
  document.title = `${about.title} · ${about.name}`;
  $("title").textContent = about.title;
  $("subtitle").textContent = about.decision ? `${about.name} · ${about.decision}` : about.name;
  $("drop").hidden = !about.takes.length;
  $("file").accept = about.takes.join(",");
  $("takes").textContent = `${about.takes.join(" ").replace(".zip", "or a folder as .zip")} · at most ${mib(about.upload)}`;
  for (const name of about.fields) {
    $("fields").append(make("label", {}, name, make("textarea", { name, rows: 3 })));
  }
  const parts = [...(about.takes.length ? [`-F file=@NAME${about.takes[0]}`] : []), ...about.fields.map((name) => `-F ${name}='...'`)];
  $("command").textContent = `curl ${parts.join(" ")} ${location.origin}/api/predict`;
}

function choose(found) {
  if (!found) return;
  file = found;
  $("chosen").textContent = `${file.name} (${mib(file.size)})`;
  if (!about.fields.length) ask();
}

async function ask() {
  if ($("send").disabled) return;
  const form = new FormData();
  if (file) form.append("file", file);
  for (const area of $("fields").querySelectorAll("textarea")) form.append(area.name, area.value);
  $("answers").replaceChildren();
  $("problem").hidden = true;
  $("send").disabled = true;
  $("state").textContent = "at work ...";
  try {
    if (about.takes.length && !file) throw new Error("Choose a file first.");
    if (file && file.size > about.upload) throw new Error(`${file.name} is too large: this server takes at most ${mib(about.upload)}.`);
    show(await answered(form));
  } catch (error) {
    $("problem").firstElementChild.textContent = error.message;
    $("problem").hidden = false;
  }
  $("send").disabled = false;
  $("state").textContent = "";
}

async function answered(form) {
  let response;
  try {
    response = await fetch("/api/predict", { method: "POST", body: form });
  } catch {
    throw new Error("The server did not answer. Is it still running, and was the file not changed meanwhile?");
  }
  const found = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(found.problem || `The server refused this (${response.status}).`);
  return found;
}

// ----------------------------------------------------------------------------------------------------------- showing

function show(found) {
  $("answers").replaceChildren(...found.predictions.map(card));
  if (found.left_out) {
    const told = `${found.left_out} more in this file are not shown here; quartet predict answers all of them.`;
    $("answers").append(make("section", {}, make("p", { className: "muted" }, told)));
  }
}

function card(one) {
  if (one.problem) {
    return make("section", { className: "warn" }, make("p", { className: "muted" }, one.input), make("p", {}, one.problem));
  }
  const drawn = [...(one.pictures.length ? [pictures(one)] : []), ...(Object.keys(one.curves).length ? [curves(one.curves)] : [])];
  const shown = [...drawn, ...Object.entries(one.texts).map(([name, pieces]) => text(name, pieces))];
  const seen = shown.length ? make("div", {}, ...shown) : null;
  const found = make("div", {}, ...Object.entries(one.bars).flatMap(([name, values]) => bars(name, values, one.answer)));
  const head = make("header", {}, make("p", { className: "muted" }, one.input), make("h2", {}, one.answer));
  if (one.review) head.append(make("span", { className: "warn" }, "A person should look at this one."));
  for (const address of one.files) found.append(make("p", {}, make("a", { href: address, download: "" }, address.split("/").pop())));
  for (const note of one.notes) found.append(make("p", { className: "muted" }, note));
  const parts = [head, ...(seen ? [seen] : []), found, table(one.values)];
  return make("section", { className: seen ? "answer" : "answer plain" }, ...parts);
}

function bars(name, values, answer) {
  const sorted = Object.entries(values).sort((a, b) => b[1] - a[1]);
  const marked = answer in values ? answer : sorted[0][0]; // the decision's class need not be the most probable one
  const rows = sorted.slice(0, SHOWN_BARS).map(([label, value]) => {
    const inner = make("div");
    inner.style.width = `${100 * Math.min(1, Math.max(0, value))}%`;
    const share = make("output", {}, value.toFixed(3));
    return make("div", { className: label === marked ? "bar top" : "bar" }, make("span", {}, label), make("div", {}, inner), share);
  });
  const rest = sorted.length - rows.length;
  return [make("h3", {}, name), ...rows, ...(rest > 0 ? [make("small", {}, `and ${rest} less probable`)] : [])];
}

function pictures(one) {
  const { pictures: base, first, overlay } = one;
  const image = make("img", { alt: `what the model saw of ${one.input}` });
  const over = make("img", { alt: "what it found there" });
  const stack = make("div", { className: overlay && base.length > 1 ? "stack scan" : "stack" }, image, ...(overlay ? [over] : []));
  const label = make("output");
  const turn = (number) => {
    image.src = base[number];
    if (overlay) over.src = base[number].replace(".png", "_over.png");
    label.textContent = `slice ${number + 1} of ${base.length}`;
  };
  turn(first);
  if (base.length === 1 && !overlay) return stack;
  const box = make("input", { type: "checkbox", checked: true });
  box.addEventListener("change", () => { over.hidden = !box.checked; });
  const shown = overlay ? [make("label", {}, box, ` ${overlay}`)] : [];
  if (base.length === 1) return make("div", {}, stack, make("div", { className: "slider" }, ...shown));
  const range = make("input", { type: "range", min: 0, max: base.length - 1, value: first, ariaLabel: "slice" });
  range.addEventListener("input", () => turn(Number(range.value)));
  return make("div", {}, stack, make("div", { className: "slider" }, range, label, ...shown));
}

function curves(channels) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const all = Object.values(channels).flat().filter((value) => value !== null);
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const length = Math.max(...Object.values(channels).map((values) => values.length), 2);
  svg.setAttribute("viewBox", `0 0 ${length - 1} 100`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  const key = make("div", { className: "key" });
  Object.entries(channels).forEach(([name, values], place) => {
    for (const piece of pieces(values)) {
      const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
      line.setAttribute("points", piece.map(([x, y]) => `${x},${96 - (92 * (y - low)) / (high - low || 1)}`).join(" "));
      line.setAttribute("class", `c${place}`);
      svg.append(line);
    }
    key.append(make("span", { className: `c${place}` }, name));
  });
  return make("div", { className: "curves" }, svg, key);
}

// A text whose pieces are the redder the more they count.
function text(name, pieces) {
  const marked = pieces.map(([piece, share]) => {
    const span = make("span", {}, piece);
    span.style.backgroundColor = `rgb(230 40 40 / ${(0.7 * (share || 0)).toFixed(3)})`;
    return span;
  });
  return make("div", {}, make("h3", {}, name), make("p", { className: "text" }, ...marked));
}

// A curve between its gaps.
function pieces(values) {
  const found = [[]];
  values.forEach((value, place) => {
    if (value === null) found.push([]);
    else found[found.length - 1].push([place, value]);
  });
  return found.filter((piece) => piece.length);
}

function table(values) {
  const rows = Object.entries(values).map(([name, value]) => make("tr", {}, make("th", {}, name), make("td", {}, String(value ?? "–"))));
  return make("details", {}, make("summary", {}, "All values"), make("table", {}, make("tbody", {}, ...rows)));
}

// ------------------------------------------------------------------------------------------------------------ events

$("ask").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
$("file").addEventListener("change", () => choose($("file").files[0]));
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") choose(event.dataTransfer.files[0]);
  });
}
begin();
