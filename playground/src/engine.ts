// The network in the browser: files, one step through the graph, caches, decoding. Nothing here knows the page.
import * as ort from "onnxruntime-web/wasm";

export type Block = { data: Float32Array; length: number }; // rows (length, n_embd), or a cache, in which length is axis 4
export type Look = Float32Array[]; // of each layer (n_head, S): the attention of one position to all up to it
export type Written = { token: number; look: Look };
export type Question = [question: string, answer: string, fromScratch: string | null];
type Nearest = [token: string, cosine: number][];
export type About = {
  name: string; task: string; unit: string; question_format: string; stop: string; stops: number[];
  instruction: number[]; example: number[]; tuned: [number, number];
  words: { init_token: string | null; init_nearest: Nearest; nearest: Nearest }[];
  curves: Record<string, Record<string, [right: number, asked: number]>>;
  questions: Record<string, Question[]>;
};
export type Prompt = { about: About; rows: Block[]; caches: Block[] }; // before tuning and after it; one of the two is empty
type Base = { name: string; parameters: number; n_head: number; n_embd: number; block_size: number; cache: number[]; bos: number[] };
type Index = { base: Base; bytes: number[]; texts: string[]; prompts: string[] };

export const NOTHING: Block = { data: new Float32Array(0), length: 0 };

/** An error whose message tells the reader what to do. */
export class Remedy extends Error {}

async function load(name: string): Promise<ArrayBuffer> {
  const reply = await fetch(name).catch(() => undefined);
  if (!reply?.ok) throw new Remedy(`${name} is missing (${reply?.status ?? "no answer"}). Build the page again with “make playground”, and serve the whole folder.`);
  const bytes = await reply.arrayBuffer(), [a, b] = new Uint8Array(bytes);
  if (a !== 0x1f || b !== 0x8b) return bytes; // a server may have inflated it
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

const json = async (name: string) => JSON.parse(new TextDecoder().decode(await load(name)));

export class Network {
  private turn: Promise<unknown> = Promise.resolve();
  private constructor(readonly index: Index, private session: ort.InferenceSession) {}

  static async load() {
    if (typeof WebAssembly === "undefined")
      throw new Remedy("This page needs WebAssembly, which this browser lacks or has switched off. Open it in a current Firefox, Chrome, Edge or Safari.");
    const [index, model, runtime] = await Promise.all([json("index.json"), load("model.onnx.gz"), load("runtime.wasm.gz")]);
    ort.env.wasm.wasmBinary = runtime;
    ort.env.wasm.numThreads = 1; // more need headers that most static servers do not send
    return new Network(index, await ort.InferenceSession.create(new Uint8Array(model)));
  }

  /** The file of a prompt: safetensors, with a JSON text in its header. */
  async prompt(name: string): Promise<Prompt> {
    const bytes = await load(`${name}.safetensors`), size = Number(new DataView(bytes).getBigUint64(0, true));
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 8, size)));
    const both = (key: string, axis: number) => {
      const { shape, data_offsets: [from, to] } = header[key], half = (to - from) / 2;
      return [0, 1].map((i) => ({ data: new Float32Array(bytes.slice(8 + size + from + i * half, 8 + size + from + (i + 1) * half)), length: shape[axis] }));
    };
    return { about: JSON.parse(header.__metadata__.about), rows: both("rows", 1), caches: both("cache", 5) };
  }

  encode(text: string) {
    return [...new TextEncoder().encode(text)].map((byte) => this.index.bytes[byte]);
  }

  text(tokens: number[]) {
    return tokens.map((t) => this.index.texts[t] ?? "").join("");
  }

  /** Rows, then tokens, behind a past -> logits of each position, the cache of all of them, the attention of the last. */
  async run(rows: Block, tokens: number[], past: Block, looking = false) {
    const { n_head, n_embd, block_size, cache } = this.index.base, T = rows.length + tokens.length, S = past.length + T;
    if (S > block_size) throw new Remedy(`The prompt and the question have ${S} positions, and the network reads ${block_size}: ask something shorter.`);
    const feeds = {
      rows: new ort.Tensor("float32", rows.data, [1, rows.length, n_embd]),
      tokens: new ort.Tensor("int64", BigInt64Array.from(tokens, BigInt), [1, tokens.length]),
      past_key_values: new ort.Tensor("float32", past.data, cache.with(4, past.length)),
    };
    const attention = looking ? this.session.outputNames.filter((name) => name.startsWith("attention_")) : [];
    const done = this.turn.then(() => this.session.run(feeds, ["logits", "present_key_values", ...attention])); // one at a time
    this.turn = done.catch(() => {});
    const out = await done, of = (name: string) => out[name].data as Float32Array;
    const look = attention.map((name) => // (1, n_head, T, S): the last position's
      Float32Array.from({ length: n_head * S }, (_, i) => of(name)[(Math.floor(i / S) * T + T - 1) * S + (i % S)]));
    return { logits: of("logits"), cache: { data: of("present_key_values"), length: S }, look };
  }

  async prefill(rows: Block, tokens: number[] = []) {
    return (await this.run(rows, tokens, NOTHING)).cache;
  }

  /** The likeliest token after each position of some logits. */
  private likeliest(logits: Float32Array) {
    const V = this.index.texts.length;
    return Array.from({ length: logits.length / V }, (_, t) => {
      let best = t * V;
      for (let i = best; i < (t + 1) * V; i++) if (logits[i] > logits[best]) best = i;
      return best - t * V;
    });
  }

  /** Greedy decoding, a token at a time, up to a token of `stops`. */
  async *write(tokens: number[], past: Block, stops: number[], most: number): AsyncGenerator<Written> {
    for (let n = 0; n < most; n++) {
      const { logits, cache, look } = await this.run(NOTHING, tokens, past, true), token = this.likeliest(logits).at(-1)!;
      yield { token, look };
      if (stops.includes(token)) return;
      [tokens, past] = [[token], cache];
    }
  }

  /** What stands after a question: the true answer where each of its tokens is the likeliest, which one pass tells, else decoded. */
  async answer(about: About, [question, truth]: Question, past: Block, signal: AbortSignal) {
    const asked = this.encode(about.question_format.replace("{}", question)), target = this.encode(truth);
    const { logits } = await this.run(NOTHING, [...asked, ...target.slice(0, -1)], past);
    const found = this.likeliest(logits).slice(asked.length - 1);
    if (found.every((token, i) => token === target[i])) return truth;
    const written: number[] = [];
    for await (const { token } of this.write(asked, past, about.stops, target.length)) {
      if (signal.aborted) break;
      written.push(token);
    }
    return this.text(written);
  }
}

/** Some of a cache's positions, in their order. */
export function keep(cache: Block, positions: number[], width: number): Block {
  const lines = cache.data.length / (cache.length * width), data = new Float32Array(lines * positions.length * width);
  for (let line = 0; line < lines; line++)
    positions.forEach((p, i) => {
      const from = (line * cache.length + p) * width;
      data.set(cache.data.subarray(from, from + width), (line * positions.length + i) * width);
    });
  return { data, length: positions.length };
}

/** Between a start and an end: t = 0 is the start. */
export function between([start, end]: Block[], t: number): Block {
  return { data: start.data.map((x, i) => x + t * (end.data[i] - x)), length: start.length };
}

/** An answer behind its last `=`, or "" where it was cut off, as in tasks/__init__.py. */
export function finalAnswer(text: string, stop: string) {
  const [answer, ...rest] = text.split(stop);
  return rest.length ? answer.slice(answer.lastIndexOf("=") + 1) : "";
}
