// The page: what is chosen, what the network writes, and what is shown of it.
import { chart } from "./chart";
import { between, finalAnswer, keep, Network, NOTHING, Remedy } from "./engine";
import type { Block, Look, Prompt, Question, Written } from "./engine";
import { $, arrows, button, chips, fail, isBusy, job, make, onFail, paint, percent, quoted, sample, visible } from "./page";
import { explain, rightAnswer } from "./tasks";
import "./style.css";

const KINDS = {
  end: "tuned rows", start: "rows before tuning", instruction: "the task in words", example: "a worked example",
  random: "random rows",
};
type Kind = keyof typeof KINDS;
type Column = { box: HTMLElement; past: Block; tokens: number[]; written: Written[] };

const question = $<HTMLInputElement>("question"), slider = $<HTMLInputElement>("t"), length = $<HTMLInputElement>("length");
const loaded = new Map<string, Prompt>();
let net: Network, prompt: Prompt, kind: Kind = "end", random = NOTHING;
let on: number[] = [], past = NOTHING; // the positions that are switched on, and their cache
let columns: Column[] = [], chosen = { column: 1, i: 0 }, head: [layer: number, head: number] | null = null; // null: all
let fresh: Question[] = [], wanted = "";

function say(text: string, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

onFail((error) => {
  if (!(error instanceof Remedy)) console.error(error);
  const unexpected = `This should not happen: ${error}. Load the page again, or try another browser.`;
  say(error instanceof Remedy ? error.message : unexpected, true);
});

// ---------------------------------------------------------------- what stands before the question

const isText = () => kind === "instruction" || kind === "example";
const isTuned = () => kind === "end" || kind === "start";
const textTokens = () => (kind === "example" ? prompt.about.example : prompt.about.instruction);

/** What each position began as; "·" for random numbers. */
function pieces(): string[] {
  const { rows, caches, about } = prompt, n = rows[1].length || caches[1].length;
  if (isText()) return textTokens().map((t) => net.text([t]));
  return Array.from({ length: n }, (_, i) => (isTuned() && about.words[i]?.init_token) || "·");
}

/** The cache of the positions that are on. Rows and text are read again without the others. */
function makePast(): Promise<Block> | Block {
  const { n_embd, cache } = net.index.base, { rows, caches } = prompt, t = Number(slider.value) / 100;
  if (isText()) return net.prefill(NOTHING, textTokens().filter((_, i) => on.includes(i)));
  if (kind === "random") return net.prefill(keep(random, on, n_embd));
  return rows[1].length ? net.prefill(keep(between(rows, t), on, n_embd)) : keep(between(caches, t), on, cache[5]);
}

/** As many rows as the prompt has, as widely spread as the words of the vocabulary. */
function randomRows(): Block {
  const { rows, about } = prompt;
  const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
  return { data: rows[0].data.map(() => about.spread * normal()), length: rows[0].length };
}

const changed = () => job("past", null, async (signal) => {
  const made = await makePast();
  if (signal.aborted) return;
  past = made;
  ask();
  measure();
  compare();
});

function choose(next: Kind) {
  kind = next;
  if (isTuned()) slider.value = kind === "end" ? "100" : "0";
  slider.disabled = !isTuned();
  if (kind === "random") random = randomRows();
  on = pieces().map((_, i) => i);
  $("h-behind").textContent = `Behind ${KINDS[kind]}`;
  showTiles();
  return changed();
}

/** The questions that are no longer than those of tuning; none of them was tuned on. */
const inDistribution = () => {
  const { questions, tuned } = prompt.about;
  return Object.keys(questions).filter((n) => Number(n) <= tuned[1]).flatMap((n) => questions[n]);
};

async function open(name: string) {
  wanted = name;
  if (!loaded.has(name)) loaded.set(name, await net.prompt(name));
  if (wanted !== name) return; // another one was chosen meanwhile
  prompt = loaded.get(name)!;
  history.replaceState(null, "", `#${name}`);
  const { questions, tuned: [low, high] } = prompt.about, lengths = Object.keys(questions).map(Number);
  const some = [low, Math.round((low + high) / 2), high].map((n) => questions[n] ?? inDistribution());
  const drawn = some.map((of) => sample(of, 1)[0][0]);
  $("examples").replaceChildren(...drawn.map((asked) => button(asked, {}, () => { question.value = asked; ask(); })));
  question.value = drawn[2];
  Object.assign(length, { min: Math.min(...lengths), max: Math.max(...lengths), value: high });
  fresh = sample(inDistribution(), 20);
  const kinds = Object.entries(KINDS).filter(([k]) => k !== "random" || prompt.rows[1].length);
  if (!kinds.some(([k]) => k === kind)) kind = "end";
  chips($("kinds"), kinds, kind, (k) => choose(k as Kind));
  await choose(kind);
}

// ---------------------------------------------------------------- the two answers

const ask = () => job("ask", null, async (signal) => {
  const { question_format, stops } = prompt.about, { bos, block_size } = net.index.base;
  const tokens = net.encode(question_format.replace("{}", question.value)), alone = await net.prefill(NOTHING, bos);
  if (!question.value) throw new Remedy("The question is empty: write one, or press an example.");
  const room = block_size - past.length - 1;
  if (tokens.length > room)
    throw new Remedy(`The question has ${tokens.length} characters, and the network has room for ${room}: shorten it.`);
  if ($("status").classList.contains("error")) say("");
  columns = [{ box: $("alone"), past: alone, tokens, written: [] }, { box: $("behind"), past, tokens, written: [] }];
  await Promise.all(columns.map(async (column, c) => {
    const asked = tokens.map((t) => make("span", { className: "q" }, visible(net.text([t]))));
    const text = make("span", { className: "text" }, ...asked);
    column.box.replaceChildren(text, make("p", { className: "verdict" }));
    const most = Math.min(100, block_size - column.past.length - tokens.length);
    for await (const step of net.write(tokens, column.past, stops, most)) {
      if (signal.aborted) return;
      const i = column.written.push(step) - 1, shown = visible(net.text([step.token])), show = () => select(c, i);
      const props = { className: "a", tabIndex: i ? -1 : 0, ariaLabel: `character ${i + 1}: ${shown}` };
      text.append(button(shown, { ...props, onfocus: show, onpointerenter: show }, show));
      await paint();
    }
    judge(column);
  }));
  if (signal.aborted) return;
  $("announce").textContent = columns.map(({ box }) => `${box.previousElementSibling!.textContent}: ${box.innerText}`).join(". ");
  select(1, Math.min(chosen.i, columns[1].written.length - 1));
});

const textOf = (column: Column) => net.text(column.written.map((step) => step.token));

/** Say right or wrong where the right answer is known, and mark the first wrong character where its steps are, too. */
function judge(column: Column) {
  const { questions, stop } = prompt.about, text = textOf(column), asked = question.value;
  const known = Object.values(questions).flat().find(([q]) => q === asked);
  const truth = known ? finalAnswer(known[1], stop) : rightAnswer(asked), isRight = finalAnswer(text, stop) === truth;
  const verdict = column.box.querySelector(".verdict")!;
  verdict.className = `verdict ${isRight ? "right" : "wrong"}`;
  verdict.textContent = truth === undefined ? "" : isRight ? "✓ right" : `✗ wrong: the answer is ${truth}`;
  const first = isRight || !known ? -1 : [...known[1]].findIndex((character, i) => character !== text[i]);
  column.box.querySelectorAll(".a")[first]?.classList.add("first-wrong");
}

// ---------------------------------------------------------------- rows

function showTiles() {
  const { words, moved } = prompt.about, most = Math.max(...moved), what = isText() ? "Position" : "Row";
  const near = (some: [string, number][]) => some.map(([word]) => quoted(word)).join(", ");
  $("tiles").replaceChildren(...pieces().map((text, i) => {
    const tell = () => {
      const row = isTuned() ? words[i] : undefined, began = text === "·" ? "random numbers" : quoted(text);
      const story = row && ` Nearest words at the start: ${near(row.init_nearest)}; at the end: ${near(row.nearest)}.`
        + ` Tuning moved it by ${percent(moved[i])} of its length.`;
      const off = "It is off, and the others are read without it. Press to switch it on.";
      $("tile").textContent = `${what} ${i + 1}${isTuned() ? " began as" : ":"} ${began}.${story ?? ""} `
        + (on.includes(i) ? "Press to switch it off." : off);
    };
    const toggle = () => {
      on = on.includes(i) ? on.filter((k) => k !== i) : [...on, i].sort((a, b) => a - b);
      tile.ariaPressed = `${on.includes(i)}`;
      tell();
      changed();
    };
    const name = `${what} ${i + 1}, ${text === "·" ? "random" : visible(text)}`;
    const props = { tabIndex: i ? -1 : 0, ariaPressed: "true", ariaLabel: name, onfocus: tell, onpointerenter: tell };
    const tile = button(visible(text), props, toggle);
    tile.style.setProperty("--moved", isTuned() && most ? `${moved[i] / most}` : "0");
    return tile;
  }));
  $("tile").textContent = isTuned() && words.length
    ? "Each tile is a row: the bluer, the further tuning moved it. Point at one to read its nearest words, press it to"
      + " switch it off."
    : "Each tile is a position before the question. Press one to switch it off.";
}

type Answer = (question: Question) => Promise<string>;

/** Ask questions one by one. Each becomes a dot, full where the final answer is right, that asks its question again. */
async function fillDots(
  box: Element, some: Question[], answer: Answer, signal: AbortSignal, tell: (right: number, n: number) => void,
) {
  const { stop } = prompt.about, again = (asked: string) => () => { question.value = asked; ask(); };
  const dots = some.map(([asked], i) => button("", { tabIndex: i ? -1 : 0, ariaLabel: asked }, again(asked)));
  box.replaceChildren(...dots);
  let right = 0;
  for (const [i, item] of some.entries()) {
    while (isBusy("ask") && !signal.aborted) await paint(); // the answer that a reader waits for comes first
    const text = await answer(item), isRight = finalAnswer(text, stop) === finalAnswer(item[1], stop);
    if (signal.aborted) return;
    right += Number(isRight);
    const verdict = isRight ? "right" : "wrong";
    Object.assign(dots[i], { className: verdict, title: item[0] + text, ariaLabel: `${item[0]} ${verdict}` });
    tell(right, i + 1);
    await paint();
  }
}

function measure() {
  const now = past;
  $("right").textContent = "";
  $("dots").replaceChildren(); // what is there is of another prompt
  const tell = (right: number, n: number) => { $("right").textContent = `${right} of ${n} right`; };
  job("measure", $("dots"), (signal) =>
    fillDots($("dots"), fresh, (q) => net.answer(prompt.about, q, now, signal), signal, tell));
}

// ---------------------------------------------------------------- attention

const range = (n: number) => Array.from({ length: n }, (_, i) => i);
const allHeads = (look: Look) => look.flatMap((_, layer) => range(net.index.base.n_head).map((h): [number, number] => [layer, h]));
const ofHead = (look: Look, [layer, h]: [number, number]) => {
  const S = look[layer].length / net.index.base.n_head;
  return look[layer].subarray(h * S, (h + 1) * S);
};
const sum = (some: Float32Array) => some.reduce((a, b) => a + b, 0);

/** Show what one character of an answer stands for, and where the network looked before it wrote it. */
function select(c: number, i: number) {
  const { box, tokens, written, past: { length: P } } = columns[c], { look } = written[i] ?? { look: [] };
  chosen = { column: c, i };
  for (const one of document.querySelectorAll<HTMLElement>("[style*='--look']")) one.style.removeProperty("--look");
  for (const one of document.querySelectorAll(".chosen")) one.classList.remove("chosen");
  const characters = [...box.querySelectorAll<HTMLElement>(".q, .a")], target = characters[tokens.length + i];
  if (!target) return;
  target.classList.add("chosen");
  const meaning = explain(question.value, textOf(columns[c]), i);
  $("meaning").textContent = meaning && `${quoted(target.textContent!)} is ${meaning}`;
  if (!look.length) return;
  const heads = allHeads(look), some = (head ? [head] : heads).map((one) => ofHead(look, one));
  const looked = some[0].map((_, s) => some.reduce((all, w) => all + w[s], 0) / some.length), most = Math.max(...looked);
  const places = [...(c ? on.map((k) => $("tiles").children[k] as HTMLElement) : Array<undefined>(P)), ...characters];
  looked.forEach((w, s) => places[s]?.style.setProperty("--look", (w / most).toFixed(3)));
  const top = (from: number, to: number) => {
    const s = looked.indexOf(Math.max(...looked.subarray(from, to)), from);
    return `${quoted(places[s]?.textContent ?? "")}${s < P ? ` at position ${s + 1}` : ""} (${percent(looked[s])})`;
  };
  const who = head ? `Layer ${head[0] + 1}, head ${head[1] + 1}` : "The mean of all heads";
  const share = sum(looked.subarray(0, P)), there = share > 0.005 ? `, most to ${top(0, P)}` : "";
  const before = P ? ` gave ${percent(share)} of its attention to the prompt${there}, and` : " gave";
  const text = `${before} most in the text to ${top(P, looked.length)}`;
  $("look").textContent = `${who}${text}, before it wrote ${quoted(target.textContent!)}.`;
  showHeads(heads, look, P);
}

function showHeads(heads: [number, number][], look: Look, P: number) {
  const box = $("heads"), pick = (next: typeof head) => { head = next; select(chosen.column, chosen.i); };
  if (box.childElementCount !== heads.length + 1) {
    box.style.setProperty("--columns", `${net.index.base.n_head}`);
    box.replaceChildren(...[null, ...heads].map((one, i) => button("all heads", { tabIndex: i ? -1 : 0 }, () => pick(one))));
  }
  [null, ...heads].forEach((one, i) => {
    const each = box.children[i] as HTMLElement, share = one ? sum(ofHead(look, one).subarray(0, P)) : 0;
    each.ariaPressed = `${one?.join() === head?.join()}`;
    if (!one) return;
    each.textContent = `${one[0] + 1}.${one[1] + 1}  ${percent(share)}`;
    each.ariaLabel = each.title = `layer ${one[0] + 1}, head ${one[1] + 1}: ${percent(share)} to the prompt`;
    each.style.setProperty("--share", share.toFixed(3));
  });
}

// ---------------------------------------------------------------- length

const compare = () => job("compare", $("contenders"), async (signal) => {
  const { about } = prompt, n = Number(length.value), now = past, all = about.questions[n] ?? [];
  const recorded = all.filter(([, , fromScratch]) => fromScratch !== null), some = sample(recorded.length ? recorded : all, 20);
  $("length-is").textContent = `${n} ${n === 1 ? about.unit.replace(/s$/, "") : about.unit}`;
  length.setAttribute("aria-valuetext", $("length-is").textContent!);
  const draw = (share?: number) => $("chart").replaceChildren(chart(about, n, share, Math.min(760, $("chart").clientWidth)));
  const lines: [string, Answer][] = [[KINDS[kind], (q) => net.answer(about, q, now, signal)]];
  if (kind !== "example") {
    const example = await net.prefill(NOTHING, about.example);
    lines.push([KINDS.example, (q) => net.answer(about, q, example, signal)]);
  }
  if (recorded.length) lines.push(["trained from scratch, as its run wrote", async (q) => q[2]!]);
  if (signal.aborted) return;
  draw();
  const boxes = lines.map(([label]) => make("div", { className: "dots", role: "group", ariaLabel: label }));
  boxes.forEach(arrows);
  const line = (label: string, box: HTMLElement) => make("div", { className: "score" }, make("span", {}, label), box, make("span"));
  $("contenders").replaceChildren(...lines.map(([label], i) => line(label, boxes[i])));
  for (const [i, [, answer]] of lines.entries())
    await fillDots(boxes[i], some, answer, signal, (right, asked) => {
      boxes[i].nextElementSibling!.textContent = `${right} of ${asked}`;
      if (!i) draw(right / asked);
    });
});

// ---------------------------------------------------------------- the beginning

async function main() {
  net = await Network.load();
  const { prompts, base } = net.index, hash = decodeURIComponent(location.hash.slice(1));
  $("parameters").textContent = `${(base.parameters / 1e6).toFixed(1)} million`;
  document.querySelector("main")!.hidden = false;
  for (const id of ["tiles", "dots", "heads", "alone", "behind"]) arrows($(id));
  const first = prompts.includes(hash) ? hash : prompts[0];
  chips($("prompts"), prompts.map((name) => [name, name.replaceAll("_", " ")]), first, (name) => open(name).catch(fail));
  $("form").onsubmit = (event) => { event.preventDefault(); ask(); };
  slider.oninput = () => {
    kind = slider.value === "0" ? "start" : "end";
    $("kinds").querySelector<HTMLInputElement>(`[value=${kind}]`)!.checked = true;
    $("h-behind").textContent = `Behind ${KINDS[kind]}${["0", "100"].includes(slider.value) ? "" : `, ${slider.value}% of the way`}`;
    changed();
  };
  length.oninput = compare;
  $("fresh").onclick = () => { fresh = sample(inDistribution(), 20); measure(); };
  say(hash && first !== hash ? `This page has no prompt “${hash}” yet: python -m playground.export --run out/${hash}` : "");
  await open(first);
  for (const name of prompts) if (!loaded.has(name)) loaded.set(name, await net.prompt(name)); // then no network is needed
  document.body.dataset.ready = "";
}

main().catch(fail);
