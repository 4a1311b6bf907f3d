// The page: what is chosen, what is written, and what is shown of it.
import * as Plot from "@observablehq/plot";
import { between, finalAnswer, keep, Network, NOTHING, Remedy } from "./engine";
import type { Block, Look, Prompt, Question, Written } from "./engine";
import { explain, rightAnswer } from "./tasks";
import "./style.css";

const KINDS = { end: "rows, tuned", start: "rows, before tuning", instruction: "the task in words", example: "a worked example", random: "random rows" };
type Kind = keyof typeof KINDS;
type Column = { box: HTMLElement; tokens: number[]; written: Written[]; before: number }; // before: positions before the question

const $ = <T extends HTMLElement = HTMLElement>(id: string) => document.getElementById(id) as T;
const question = $<HTMLInputElement>("question"), slider = $<HTMLInputElement>("t"), length = $<HTMLInputElement>("length");
const loaded = new Map<string, Prompt>();
let net: Network, prompt: Prompt, kind: Kind = "end", random: Block, past = NOTHING, on: number[] = [];
let columns: Column[] = [], chosen = { column: 1, i: 0 }, head: [number, number] | null = null;

// ---------------------------------------------------------------- small helpers

function make<K extends keyof HTMLElementTagNameMap>(tag: K, props: object = {}, ...inside: (Node | string)[]) {
  const { data, ...rest } = props as { data?: Record<string, string> };
  const element = Object.assign(document.createElement(tag), rest);
  for (const [name, value] of Object.entries(data ?? {})) element.setAttribute(name, value);
  element.append(...inside);
  return element;
}

/** Radio buttons that look like chips. */
function chips(id: string, options: [value: string, text: string][], value: string, change: (value: string) => void) {
  $(id).replaceChildren(...options.map(([v, text]) => make("label", {},
    make("input", { type: "radio", name: id, value: v, checked: v === value, onchange: () => change(v) }), make("span", {}, text))));
}

/** One tab stop for many buttons: the arrow keys go from one to the next. */
function arrows(box: HTMLElement) {
  box.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key], all = [...box.querySelectorAll("button")];
    const next = all[all.indexOf(document.activeElement as HTMLButtonElement) + (step ?? 0)];
    if (!step || !next) return;
    event.preventDefault();
    for (const button of all) button.tabIndex = button === next ? 0 : -1;
    next.focus();
  });
}

/** Only the latest of the jobs of one name goes on: each is given a signal that says when it is over. */
const jobs = new Map<string, AbortController>();
async function job(name: string, work: (signal: AbortSignal) => Promise<void>) {
  jobs.get(name)?.abort();
  const control = new AbortController();
  jobs.set(name, control);
  document.body.dataset.busy = [...jobs.keys()].join(" ");
  try {
    await work(control.signal);
  } catch (error) {
    if (!control.signal.aborted) fail(error);
  }
  if (jobs.get(name) === control) jobs.delete(name);
  document.body.dataset.busy = [...jobs.keys()].join(" ");
}

function say(text: string, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

function fail(error: unknown) {
  if (!(error instanceof Remedy)) console.error(error);
  say(error instanceof Remedy ? error.message : `This should not happen: ${error}. Load the page again, in another browser if need be.`, true);
}

const paint = () => new Promise((done) => setTimeout(done)); // lets the browser draw and hear keys
const percent = (x: number) => `${Math.round(100 * x)}%`;
const visible = (text: string) => text.replace(/ /g, "␣").replace(/\n/g, "⏎");
const quoted = (text: string) => `“${visible(text)}”`;
const draw = <T>(items: T[], n: number) => [...items].sort(() => Math.random() - 0.5).slice(0, n);

// ---------------------------------------------------------------- what stands before the question

/** The texts of the tiles: what each position began as; "·" for a random row. */
function pieces(): string[] {
  const { words, instruction, example } = prompt.about;
  if (kind === "instruction" || kind === "example") return (kind === "example" ? example : instruction).map((t) => net.text([t]));
  return Array.from({ length: prompt.rows[1].length || prompt.caches[1].length }, (_, i) => (kind !== "random" && words[i]?.init_token) || "·");
}

/** The cache of what is chosen, without the positions that are switched off. */
async function makePast(): Promise<Block> {
  const { rows, caches, about } = prompt, t = Number(slider.value) / 100, inRows = rows[1].length > 0;
  if (kind === "instruction" || kind === "example") return net.prefill(NOTHING, kind === "example" ? about.example : about.instruction);
  if (kind === "random") return net.prefill(random);
  return inRows ? net.prefill(between(rows, t)) : between(caches, t);
}

/** Rows drawn as those before tuning were: as many, of the same spread. */
function drawRandom(): Block {
  const { data, length } = prompt.rows[0], spread = Math.sqrt(data.reduce((sum, x) => sum + x * x, 0) / data.length);
  const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
  return { data: Float32Array.from(data, () => spread * normal()), length };
}

const changed = () => job("past", async (signal) => {
  const whole = await makePast(), width = net.index.base.cache[5];
  if (signal.aborted) return;
  past = on.length < whole.length ? keep(whole, on, width) : whole;
  ask();
  measure();
  compare();
});

/** Another prompt, or another kind of it: all tiles are on. */
function choose(next: Kind) {
  kind = next;
  if (kind === "end") slider.value = "100";
  if (kind === "start") slider.value = "0";
  slider.disabled = kind !== "end" && kind !== "start";
  if (kind === "random") random = drawRandom();
  on = pieces().map((_, i) => i);
  $("h-behind").textContent = `Behind ${kind === "end" || kind === "start" ? "the " : ""}${KINDS[kind]}`;
  showTiles();
  return changed();
}

async function open(name: string) {
  if (!loaded.has(name)) loaded.set(name, await net.prompt(name));
  prompt = loaded.get(name)!;
  history.replaceState(null, "", `#${name}`);
  const { questions, tuned, unit } = prompt.about, lengths = Object.keys(questions).map(Number), inside = tunedOn();
  $("examples").replaceChildren(...[0.2, 0.6, 1].map((part) => {
    const [asked] = draw(questions[Math.round(tuned[0] + part * (tuned[1] - tuned[0]))] ?? inside, 1)[0];
    return make("button", { type: "button", onclick: () => { question.value = asked; ask(); } }, asked);
  }));
  question.value = draw(questions[tuned[1]] ?? inside, 1)[0][0];
  Object.assign(length, { min: Math.min(...lengths), max: Math.max(...lengths), value: tuned[1] });
  length.setAttribute("aria-valuetext", `${length.value} ${unit}`);
  chips("kinds", Object.entries(KINDS).filter(([k]) => k !== "random" || prompt.rows[1].length), kind, (k) => choose(k as Kind));
  fresh = draw(inside, 20);
  await choose(kind === "random" && !prompt.rows[1].length ? "end" : kind);
}

// ---------------------------------------------------------------- the two answers

const ask = () => job("ask", async (signal) => {
  const { about } = prompt, tokens = net.encode(about.question_format.replace("{}", question.value)), { bos, block_size } = net.index.base;
  if (!tokens.length) throw new Remedy("The question is empty: write one, or press an example.");
  say("");
  columns = [await net.prefill(NOTHING, bos), past].map((before, i) => ({ box: $(i ? "behind" : "alone"), tokens, written: [], before: before.length }));
  await Promise.all(columns.map(async (column, i) => {
    showQuestion(column, i);
    const most = Math.min(100, block_size - column.before - tokens.length);
    if (most < 1) throw new Remedy(`The question has ${tokens.length} characters, and behind this prompt the network has room for ${block_size - column.before - 1}: shorten it.`);
    for await (const step of net.write(tokens, i ? past : await net.prefill(NOTHING, bos), about.stops, most)) {
      if (signal.aborted) return;
      addCharacter(column, i, step);
      await paint();
    }
    judge(column);
  }));
  if (!signal.aborted) select(1, Math.min(chosen.i, columns[1].written.length - 1));
});

function showQuestion(column: Column, i: number) {
  const asked = column.tokens.map((t) => make("span", { className: "q" }, visible(net.text([t]))));
  column.box.replaceChildren(make("span", { className: "text", role: "group", ariaLabel: `Answer, ${i ? "behind the prompt" : "base alone"}` }, ...asked), make("p", { className: "verdict" }));
  column.box.onpointerleave = null;
}

function addCharacter(column: Column, i: number, step: Written) {
  const n = column.written.push(step) - 1, text = visible(net.text([step.token]) || "∎");
  const button = make("button", { type: "button", className: "a", tabIndex: n ? -1 : 0, ariaLabel: `character ${n + 1}: ${text}`, onfocus: () => select(i, n), onpointerenter: () => select(i, n), onclick: () => select(i, n) }, text);
  column.box.firstElementChild!.append(button);
}

/** Right or wrong, where the right answer is known, and the first wrong character, where its steps are known too. */
function judge(column: Column) {
  const { about } = prompt, text = net.text(column.written.map((step) => step.token)), asked = question.value;
  const known = Object.values(about.questions).flat().find(([q]) => q === asked), final = known ? finalAnswer(known[1], about.stop) : rightAnswer(asked);
  const verdict = column.box.querySelector(".verdict")!, right = finalAnswer(text, about.stop) === final;
  verdict.textContent = final === undefined ? "" : right ? "✓ right" : `✗ wrong: ${final}`;
  verdict.className = `verdict ${right ? "right" : "wrong"}`;
  const first = known && !right ? [...known[1]].findIndex((c, i) => c !== text[i]) : -1;
  if (first >= 0) column.box.querySelectorAll(".a")[first]?.classList.add("first-wrong");
}

// ---------------------------------------------------------------- rows

function showTiles() {
  const [start, end] = prompt.rows, C = net.index.base.n_embd, isRows = kind === "end" || kind === "start";
  const moved = Array.from({ length: start.length }, (_, i) => {
    const at = (rows: Block, j: number) => rows.data[i * C + j], square = (f: (j: number) => number) => Array.from({ length: C }, (_, j) => f(j) ** 2).reduce((a, b) => a + b);
    return Math.sqrt(square((j) => at(end, j) - at(start, j)) / square((j) => at(start, j)));
  });
  const most = Math.max(...moved), near = (words: [string, number][]) => words.map(([w]) => quoted(w)).join(", ");
  $("tiles").replaceChildren(...pieces().map((text, i) => {
    const words = isRows ? prompt.about.words[i] : undefined;
    const about = () => {
      const began = text === "·" ? `Row ${i + 1}${isRows ? " began as random numbers" : ", of random numbers"}` : isRows ? `Row ${i + 1} began as ${quoted(text)}` : `Position ${i + 1} is ${quoted(text)}`;
      const story = words ? `. Nearest words at the start: ${near(words.init_nearest)}; at the end: ${near(words.nearest)}. Tuning moved it by ${percent(moved[i])} of its length` : "";
      $("tile").textContent = `${began}${story}. ${on.includes(i) ? "Press to switch it off." : "It is switched off: press to switch it on."}`;
    };
    const toggle = () => {
      on = on.includes(i) ? on.filter((k) => k !== i) : [...on, i].sort((a, b) => a - b);
      tile.ariaPressed = `${on.includes(i)}`;
      about();
      changed();
    };
    const tile = make("button", { type: "button", tabIndex: i ? -1 : 0, ariaPressed: "true", ariaLabel: `${isRows ? "row" : "position"} ${i + 1}, ${text === "·" ? "random" : visible(text)}`, onclick: toggle, onfocus: about, onpointerenter: about }, visible(text));
    tile.style.setProperty("--moved", isRows ? `${moved[i] / most || 0}` : "0");
    return tile;
  }));
  $("tile").textContent = isRows ? "Each tile is a row; the bluer it is, the further tuning moved it. Point at one to read its nearest words; press it to switch it off." : "Each tile is a position before the question. Press one to switch it off.";
}

let fresh: Question[] = [];
/** The test questions that are no longer than what the prompt was tuned on. */
const tunedOn = () => Object.entries(prompt.about.questions).filter(([n]) => Number(n) <= prompt.about.tuned[1]).flatMap(([, some]) => some);

/** Ask questions one by one and show each as a dot, filled where the final answer is right. */
async function fillDots(box: HTMLElement, some: Question[], answers: (question: Question) => Promise<string>, signal: AbortSignal, tell: (right: number, asked: number) => void) {
  const { stop } = prompt.about, dots = some.map(([asked]) => make("button", { type: "button", title: asked, tabIndex: -1, ariaLabel: `${asked} not yet asked`, onclick: () => { question.value = asked; ask(); } }));
  dots[0].tabIndex = 0;
  box.replaceChildren(...dots);
  let right = 0;
  for (const [i, item] of some.entries()) {
    while (jobs.has("ask") && !signal.aborted) await paint(); // the answer that a reader waits for comes first
    const text = await answers(item), ok = finalAnswer(text, stop) === finalAnswer(item[1], stop);
    if (signal.aborted) return;
    right += Number(ok);
    Object.assign(dots[i], { className: ok ? "right" : "wrong", title: `${item[0]}${text}`, ariaLabel: `${item[0]} ${ok ? "right" : "wrong"}` });
    tell(right, i + 1);
    await paint();
  }
}

const measure = () => job("measure", async (signal) => {
  const before = past;
  await fillDots($("dots"), fresh, (item) => net.answer(prompt.about, item, before, signal), signal, (right, asked) => {
    $("right").innerHTML = `<b>${right}</b> of ${asked} right`;
  });
});

// ---------------------------------------------------------------- attention

const dark = (share: number) => `${Math.min(1, share).toFixed(3)}`;

/** The attention of the chosen head, or the mean of all, over the positions before a written character. */
function weights(look: Look): Float32Array {
  const S = look[0].length / net.index.base.n_head, heads = head ? [head] : look.flatMap((_, l) => Array.from({ length: net.index.base.n_head }, (_, h) => [l, h]));
  return Float32Array.from({ length: S }, (_, s) => heads.reduce((sum, [l, h]) => sum + look[l][h * S + s], 0) / heads.length);
}

function select(column: number, i: number) {
  const { box, tokens, written, before } = columns[column];
  if (!written[i]) return;
  chosen = { column, i };
  for (const one of document.querySelectorAll<HTMLElement>("[style*='--look']")) one.style.removeProperty("--look");
  for (const one of document.querySelectorAll(".chosen")) one.classList.remove("chosen");
  const characters = [...box.querySelectorAll<HTMLElement>(".q, .a")], tiles = column ? on.map((k) => $("tiles").children[k] as HTMLElement) : [];
  const target = characters[tokens.length + i], text = net.text(written.map((step) => step.token));
  target.classList.add("chosen");
  const meaning = explain(question.value, text, i);
  $("meaning").textContent = meaning && `${target.textContent}: ${meaning}`;
  if (!written[i].look.length) return;
  const looked = weights(written[i].look), most = Math.max(...looked), places = [...(tiles.length ? tiles : Array(before)), ...characters];
  looked.forEach((w, s) => places[s]?.style.setProperty("--look", dark(w / most)));
  const share = looked.slice(0, before).reduce((a, b) => a + b, 0), top = (from: number, to: number) => looked.indexOf(Math.max(...looked.slice(from, to)), from);
  const name = (s: number) => (s < before ? `${quoted(tiles[s]?.textContent ?? "")} at position ${s + 1}` : quoted(places[s]?.textContent ?? ""));
  const part = before ? ` gives ${percent(share)} of its attention to what stands before the question, most to ${name(top(0, before))} (${percent(looked[top(0, before)])}),` : "";
  const s = top(before, looked.length);
  $("look").textContent = `Before it wrote ${quoted(target.textContent!)}, ${head ? `layer ${head[0] + 1}, head ${head[1] + 1}` : "the mean of all heads"}${part}${part ? " and" : " looked most at"} ${percent(looked[s])} to ${name(s)} of the text.`.replace("looked most at", "gave");
  showHeads(written[i].look, before);
}

function showHeads(look: Look, before: number) {
  const S = look[0].length / net.index.base.n_head, pick = (next: typeof head) => { head = next; select(chosen.column, chosen.i); };
  const all = [null, ...look.flatMap((_, l) => Array.from({ length: net.index.base.n_head }, (_, h) => [l, h] as [number, number]))];
  if ($("heads").childElementCount !== all.length) {
    $("heads").style.setProperty("--columns", `${net.index.base.n_head}`);
    $("heads").replaceChildren(...all.map((one, i) => make("button", { type: "button", tabIndex: i ? -1 : 0, onclick: () => pick(one) })));
  }
  all.forEach((one, i) => {
    const share = one ? look[one[0]].slice(one[1] * S, one[1] * S + before).reduce((a, b) => a + b, 0) : 0, button = $("heads").children[i] as HTMLElement;
    button.textContent = one ? percent(share) : "all heads";
    button.ariaLabel = one ? `layer ${one[0] + 1}, head ${one[1] + 1}: ${percent(share)} on the prompt` : "the mean of all heads";
    button.title = button.ariaLabel;
    button.style.setProperty("--share", dark(share));
    button.ariaPressed = `${one?.join() === head?.join()}`;
  });
}

// ---------------------------------------------------------------- length

const compare = () => job("compare", async (signal) => {
  const { about } = prompt, some = draw(about.questions[length.value] ?? [], 20), before = past, name = `the prompt of this page`;
  $("length-is").textContent = `${length.value} ${about.unit}`;
  length.setAttribute("aria-valuetext", $("length-is").textContent!);
  const rows: [string, (item: Question) => Promise<string>][] = [[name, (item) => net.answer(about, item, before, signal)]];
  if (kind !== "example") {
    const example = await net.prefill(NOTHING, about.example);
    rows.push(["a worked example as text", (item) => net.answer(about, item, example, signal)]);
  }
  if (some[0]?.[2] !== null) rows.push(["a network trained from scratch (as its run wrote)", async (item) => item[2] ?? ""]);
  const live: { length: number; share: number }[] = [];
  plot(live);
  $("contenders").replaceChildren(...rows.map(([label]) => make("div", { className: "score" }, make("span", {}, label), make("div", { className: "dots", role: "group", ariaLabel: label }), make("span", {}))));
  for (const box of $("contenders").querySelectorAll<HTMLElement>(".dots")) arrows(box);
  while (jobs.has("measure") && !signal.aborted) await paint();
  for (const [i, [label, answers]] of rows.entries()) {
    const line = $("contenders").children[i];
    await fillDots(line.children[1] as HTMLElement, some, answers, signal, (right, asked) => {
      line.children[2].textContent = `${right} of ${asked}`;
      if (label === name) plot([{ length: Number(length.value), share: right / asked }]);
    });
  }
});

function plot(live: { length: number; share: number }[]) {
  const { curves, unit, tuned, questions } = prompt.about, x = Number(length.value), lengths = Object.keys(questions).map(Number);
  const points = Object.entries(curves).flatMap(([label, of]) => Object.entries(of).map(([n, [right, asked]]) => ({ label, length: Number(n), share: right / asked })));
  $("chart").replaceChildren(Plot.plot({
    width: Math.min(760, $("chart").clientWidth || 760), height: 300, marginLeft: 48, style: { background: "transparent", fontSize: "13px" },
    x: { label: `${unit} →`, ticks: lengths, tickFormat: "d" }, y: { label: "↑ right answers", domain: [0, 1], tickFormat: "%", grid: true },
    color: { legend: true, scheme: "Observable10" }, ariaLabel: "Right answers by length",
    marks: [
      Plot.rectX([tuned], { x1: (d) => d[0] - 0.5, x2: (d) => d[1] + 0.5, fillOpacity: 0.06 }),
      Plot.ruleX([x], { strokeDasharray: "3 3" }),
      Plot.line(points, { x: "length", y: "share", stroke: "label", strokeWidth: 2, marker: "dot" }),
      Plot.dot(live, { x: "length", y: "share", r: 8, strokeWidth: 2.5 }),
    ],
  }));
}

// ---------------------------------------------------------------- the beginning

async function main() {
  net = await Network.load();
  const { prompts, base } = net.index, wanted = decodeURIComponent(location.hash.slice(1));
  $("parameters").textContent = `${(base.parameters / 1e6).toFixed(1)} million`;
  document.querySelector("main")!.hidden = false;
  for (const id of ["tiles", "dots", "heads", "alone", "behind"]) arrows($(id));
  const first = prompts.includes(wanted) ? wanted : prompts[0];
  chips("prompts", prompts.map((name) => [name, name.replace(/-.*/, "").replace(/_/g, " ")]), first, (name) => open(name).catch(fail));
  $("form").onsubmit = (event) => { event.preventDefault(); ask(); };
  slider.oninput = () => {
    if (kind === "start" || kind === "end") kind = slider.value === "0" ? "start" : "end";
    $<HTMLInputElement>("kinds").querySelector<HTMLInputElement>(`[value=${kind}]`)!.checked = true;
    changed();
  };
  length.oninput = compare;
  $("fresh").onclick = () => { fresh = draw(tunedOn(), 20); measure(); };
  await open(first);
  for (const name of prompts) if (!loaded.has(name)) loaded.set(name, await net.prompt(name)); // then no network is needed
  document.body.dataset.ready = "";
}

main().catch(fail);
