"use strict";
// Draws the texts of the page from its data: colours, map, numbers. `view` is all state; nothing leaves the page.
const NAMES = { strength: "applied strength", regulator: "regulator alone", dose: "relative dose",
  alone: "what the token says by itself",
  kl: "next-token change (KL, nats)" };
const SCALED = ["strength", "dose"]; // in proportion to the strength; the others do not follow the slider
const LONG = 400; // tokens; a longer text scrolls in a box of its own
const $ = (id) => document.getElementById(id);
const texts = JSON.parse($("data").textContent);
const view = { quantity: "strength", site: -1, factor: 1, peak: 0 };
let colours = [];

function make(tag, kind, content) {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  if (content !== undefined) element.textContent = content;
  return element;
}

function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed.data), (letter) => letter.charCodeAt(0));
  const shares = new DataView(bytes.buffer);
  const values = new Float32Array(bytes.length / 2);
  for (let i = 0; i < values.length; i++) values[i] = shares.getUint16(2 * i, true) / 65535 * packed.peak;
  return values;
}

function visible(token) {
  const marked = token.replace(/\n/g, "¶\n").replace(/\r/g, "␍").replace(/\t/g, "⇥\t");
  return token.trim() ? marked : marked.replace(/ /g, "␣") || "∅";
}

const number = (value) => value === 0 ? "0" : Math.abs(value) < 1e-4 ? value.toExponential(1) : value.toPrecision(3);

function value(text, quantity, token, site) {
  if (quantity === "kl") return text.next.kl[token];
  return site < 0 ? text.means[quantity][token] : text.values[quantity][site * text.tokens.length + token];
}

function average(text, values) {
  const count = text.tokens.length, sums = new Float64Array(count);
  values.forEach((one, i) => { sums[i % count] += one; });
  return sums.map((sum) => sum / Math.max(text.sites.length, 1));
}

const factorOf = (quantity) => SCALED.includes(quantity) ? view.factor : 1;
const mapped = () => view.quantity === "kl" ? "strength" : view.quantity; // what the maps show

// --- one text ---------------------------------------------------------------------------------------------------

function build(text) {
  text.means = {};
  for (const name in text.values) {
    text.values[name] = unpack(text.values[name]);
    text.means[name] = average(text, text.values[name]);
  }
  const section = make("section");
  section.setAttribute("aria-label", text.label);
  section.append(make("h2", "", text.label), make("p", "facts", facts(text)));
  text.spans = text.tokens.map((token, i) => span(text, token, i));
  const beside = text.comparison;
  beside ? compare(section, text, beside) : section.append(...turned(text, text.tokens.length));
  text.spans.forEach((element, i) => { element.tabIndex = i ? -1 : 0; });
  section.append(mapOf(text));
  $("texts").append(section);
}

function facts(text) {
  const means = text.means.strength, mean = means.reduce((sum, one) => sum + one, 0) / means.length;
  const asked = text.asked === null ? "" : `run at strength ${number(text.asked)}, `;
  return `${text.tokens.length} tokens, ${text.sites.length} sites, ${asked}mean applied strength ${number(mean)}`;
}

function line(spans, kind) {
  const element = make("p", spans.length > LONG ? kind + " long" : kind);
  element.dir = "auto";
  element.append(...spans);
  return element;
}

// The tokens up to `stop`, turn by turn in a conversation.
function turned(text, stop) {
  if (!text.turns) return [line(text.spans.slice(0, stop), "tokens")];
  const marked = text.counted.some((one) => one) ? [make("p", "caption", "Underlined tokens count as the answer.")] : [];
  return text.turns.filter((turn) => turn.start < stop).flatMap((turn) => [
    make("h3", "turn", `${turn.role}: mean applied strength ${number(turn.mean_strength)}`),
    line(text.spans.slice(turn.start, Math.min(turn.stop, stop)), "tokens")]).concat(marked);
}

function span(text, token, i) {
  const element = make("span", text.counted?.[i] ? "token counted" : "token", visible(token));
  element.addEventListener("focus", () => point(text, i, view.site));
  element.addEventListener("pointerenter", () => point(text, i, view.site));
  element.addEventListener("keydown", (event) => {
    const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: text.spans.length - 1 }[event.key];
    if (to === undefined || !text.spans[to]) return;
    event.preventDefault();
    text.spans.forEach((other) => { if (other.tabIndex === 0) other.tabIndex = -1; });
    text.spans[to].tabIndex = 0;
    text.spans[to].focus();
  });
  return element;
}

function compare(section, text, beside) {
  const columns = make("div", "beside"), steered = make("div"), unsteered = make("div");
  const start = beside.prompt_tokens, first = beside.first_difference;
  const plain = beside.unsteered.map((token) => make("span", "", visible(token)));
  const ours = text.spans.slice(start);
  let said = "Both continuations are the same.";
  if (first !== null) {
    for (const spans of [ours, plain]) if (spans[first]) spans[first].classList.add("first");
    const [one, other] = [text.tokens[start + first], beside.unsteered[first]].map(
      (token) => token === undefined ? "the end" : `“${visible(token)}”`);
    said = `◆ First difference: token ${first + 1} of the continuation, steered ${one}, unsteered ${other}.`;
  }
  steered.append(make("h3", "", "Steered"), line(ours, "tokens steered"));
  unsteered.append(make("h3", "", "Unsteered"), line(plain, "tokens unsteered"));
  columns.append(steered, unsteered);
  section.append(make("h3", "", "Prompt"), ...turned(text, start), columns,
    make("p", "caption difference", said));
}

// --- the map: the part that is in sight, an image of one pixel a cell, stretched --------------------------------------

function mapOf(text) {
  const box = make("div", "map"), names = make("div", "names"), scroll = make("div", "scroll");
  const space = make("div", "space"), canvas = make("canvas"), caption = make("p", "caption");
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Map of ${text.tokens.length} tokens by ${text.sites.length} sites; arrow keys move`);
  space.append(canvas);
  scroll.append(space);
  box.append(names, scroll, make("span"), caption);
  Object.assign(text, { names, scroll, space, canvas, caption, cell: null, pixels: make("canvas") });
  scroll.addEventListener("scroll", () => later(text));
  const under = (event) => {
    const edge = canvas.getBoundingClientRect();
    const token = Math.floor((event.clientX - edge.left + scroll.scrollLeft) / text.width);
    const site = Math.floor((event.clientY - edge.top) / text.height);
    if (text.tokens[token] !== undefined && text.sites[site] !== undefined) point(text, token, site);
  };
  canvas.addEventListener("pointermove", under);
  canvas.addEventListener("pointerdown", under);
  canvas.addEventListener("focus", () => point(text, text.cell?.token ?? 0, Math.max(text.cell?.site ?? 0, 0)));
  canvas.addEventListener("keydown", (event) => step(text, event));
  new ResizeObserver(() => measure(text)).observe(scroll);
  return box;
}

function step(text, event) {
  const move = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1],
    PageDown: [25, 0], PageUp: [-25, 0] }[event.key];
  if (!move) return;
  event.preventDefault();
  const within = (at, count) => Math.max(0, Math.min(count - 1, at));
  const from = text.cell || { token: 0, site: 0 };
  const token = within(from.token + move[0], text.tokens.length);
  const left = token * text.width, seen = text.scroll.clientWidth;
  if (left < text.scroll.scrollLeft || left + text.width > text.scroll.scrollLeft + seen)
    text.scroll.scrollLeft = left - seen / 2;
  point(text, token, within(Math.max(from.site, 0) + move[1], text.sites.length));
}

function measure(text) {
  const sites = text.sites.length, room = text.scroll.clientWidth;
  text.height = Math.max(6, Math.min(16, Math.floor(360 / Math.max(sites, 1))));
  text.width = Math.max(7, Math.min(26, room / Math.max(text.tokens.length, 1)));
  const tall = text.height * sites, wide = Math.min(room, text.width * text.tokens.length), ratio = devicePixelRatio || 1;
  text.space.style.width = `${text.width * text.tokens.length}px`;
  text.canvas.style.width = `${wide}px`;
  text.canvas.style.height = `${tall}px`;
  text.canvas.width = Math.round(wide * ratio);
  text.canvas.height = Math.round(tall * ratio);
  label(text);
  draw(text);
}

function label(text) {
  const shared = text.sites.length > 1 ? text.sites.reduce((start, site) => {
    let same = 0;
    while (same < start.length && start[same] === site[same]) same++;
    return start.slice(0, same);
  }).replace(/\d+$/, "") : "";
  const every = Math.ceil(14 / text.height);
  text.names.replaceChildren();
  let widest = 1;
  text.sites.forEach((site, i) => {
    if (i % every) return;
    const name = make("span", "", site.slice(shared.length).slice(0, 14));
    name.style.top = `${(i + .5) * text.height}px`;
    widest = Math.max(widest, name.textContent.length);
    text.names.append(name);
  });
  text.names.style.width = `${widest + 1}ch`;
  text.caption.textContent = `Map: ${NAMES[mapped()]}, 0 to ${number(text.peak)}` + (shared ? `; sites ${shared}…` : "");
}

function later(text) {
  if (text.waiting) return;
  text.waiting = true;
  requestAnimationFrame(() => { text.waiting = false; draw(text); });
}

function draw(text) {
  const { canvas, pixels, width, height } = text, count = text.tokens.length, sites = text.sites.length;
  if (!width || !count || !sites || !canvas.width) return;
  const from = Math.floor(text.scroll.scrollLeft / width);
  const to = Math.min(count, Math.ceil((text.scroll.scrollLeft + canvas.clientWidth) / width));
  const values = text.values[mapped()], gain = 255 / (text.peak || 1) * factorOf(mapped());
  const image = new ImageData(to - from, sites), cells = new Uint32Array(image.data.buffer);
  for (let site = 0, i = 0; site < sites; site++)
    for (let token = from; token < to; token++, i++)
      cells[i] = colours[Math.min(255, Math.round(values[site * count + token] * gain))];
  pixels.width = to - from;
  pixels.height = sites;
  pixels.getContext("2d").putImageData(image, 0, 0);
  const pen = canvas.getContext("2d"), ratio = canvas.width / canvas.clientWidth;
  pen.setTransform(ratio, 0, 0, ratio, -text.scroll.scrollLeft * ratio, 0);
  pen.imageSmoothingEnabled = false;
  pen.clearRect(text.scroll.scrollLeft, 0, canvas.clientWidth, sites * height);
  pen.drawImage(pixels, from * width, 0, (to - from) * width, sites * height);
  if (!text.cell) return;
  const { token, site } = text.cell, look = getComputedStyle(document.body);
  for (const [name, wide] of [["--paper", 5], ["--focus", 2.5]]) { // two lines, so that one shows on any cell
    pen.lineWidth = wide;
    pen.strokeStyle = look.getPropertyValue(name).trim();
    pen.strokeRect(token * width, site < 0 ? 1 : site * height, width, site < 0 ? sites * height - 2 : height);
  }
}

function palette() {
  const look = getComputedStyle(document.documentElement), pen = make("canvas").getContext("2d");
  const strip = pen.createLinearGradient(0, 0, 256, 0);
  ["--cold", "--warm", "--top"].forEach((name, i) => strip.addColorStop(i / 2, look.getPropertyValue(name).trim()));
  pen.canvas.width = 256;
  pen.fillStyle = strip;
  pen.fillRect(0, 0, 256, 1);
  colours = new Uint32Array(pen.getImageData(0, 0, 256, 1).data.buffer);
}

// --- numbers and controls -------------------------------------------------------------------------------------------

let here = null;

function point(text, token, site) {
  if (here && here.cell) {
    here.spans[here.cell.token].classList.remove("here");
    const left = here;
    here.cell = null;
    if (left !== text) later(left);
  }
  here = text;
  text.cell = { token, site };
  text.spans[token].classList.add("here");
  later(text);
  read(text, token, site);
}

function read(text, token, site) {
  const where = site < 0 ? `mean over ${text.sites.length} sites` : text.sites[site];
  const parts = Object.keys(text.values).map((name) =>
    `${NAMES[name]} ${number(value(text, name, token, site) * factorOf(name))}`);
  if (text.next) parts.push(`KL ${number(text.next.kl[token])} nats`);
  const best = (all) => all.slice(0, 5).map(([next, p]) => `${visible(next)} ${(100 * p).toFixed(1)} %`).join(", ");
  const rest = ` · token ${token + 1} of ${text.tokens.length} · ${where}\n${parts.join(" · ")}`;
  const next = text.next ? `\nnext, unsteered: ${best(text.next.before[token])}` +
    `\nnext, steered: ${best(text.next.after[token])}` : "";
  $("readout").replaceChildren(make("b", "", visible(text.tokens[token]).trim()), rest + next);
}

function recolour() {
  view.peak = 0;
  for (const text of texts)
    text.tokens.forEach((_, i) => { view.peak = Math.max(view.peak, value(text, view.quantity, i, view.site)); });
  for (const text of texts) {
    text.peak = text.values[mapped()].reduce((most, one) => Math.max(most, one), 0);
    text.spans.forEach((element, i) => element.style.setProperty(
      "--value", (value(text, view.quantity, i, view.site) / (view.peak || 1)).toFixed(4)));
  }
  reweight();
}

function reweight() {
  const factor = factorOf(view.quantity), asked = texts[0].asked;
  $("texts").style.setProperty("--factor", factor);
  $("strength").disabled = !SCALED.includes(view.quantity);
  const same = texts.every((text) => text.asked === asked) && asked !== null;
  $("factor").textContent = (same ? `${number(asked * view.factor)} ` : "") + `(× ${view.factor.toFixed(2)})`;
  $("peak").textContent = number(view.peak);
  for (const text of texts) { label(text); later(text); }
  if (here && here.cell) read(here, here.cell.token, here.cell.site);
}

function start() {
  palette();
  texts.forEach((text) => build(text));
  const known = [...Object.keys(texts[0].values), ...(texts[0].next ? ["kl"] : [])];
  $("quantity").append(...known.map((name) => new Option(NAMES[name], name)));
  $("site").append(new Option("mean over sites", -1), ...texts[0].sites.map((site, i) => new Option(site, i)));
  $("quantity").addEventListener("change", (event) => { view.quantity = event.target.value; recolour(); });
  $("site").addEventListener("change", (event) => { view.site = Number(event.target.value); recolour(); });
  $("strength").addEventListener("input", (event) => { view.factor = event.target.value / 100; reweight(); });
  $("reset").addEventListener("click", () => { $("strength").value = 100; view.factor = 1; reweight(); });
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { palette(); texts.forEach(draw); });
  recolour();
}

start();
