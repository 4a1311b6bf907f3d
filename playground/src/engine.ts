// The network in the browser: its files, one step through the graph, and decoding. Nothing here knows the page.
import * as ort from "onnxruntime-web/wasm";

/** Rows (length, n_embd), or a cache (n_layer, 2, 1, n_kv_head, length, D). */
export type Block = { data: Float32Array; length: number };
export type Look = Float32Array[]; // of each layer (n_head, S): the attention of one position to all up to itself
export type Written = { token: number; look: Look };
export type Question = [question: string, answer: string, fromScratch: string | null];
type Nearest = [token: string, cosine: number][];
/** What playground/export.py writes about a prompt. */
export type About = {
  task: string; unit: string; question_format: string; stop: string; stops: number[];
  instruction: number[]; example: number[]; tuned: [shortest: number, longest: number]; spread: number; moved: number[];
  words: { init_token: string | null; init_nearest: Nearest; nearest: Nearest }[];
  curves: Record<string, Record<string, [right: number, asked: number]>>;
  questions: Record<string, Question[]>;
};
/** Rows before and after tuning, or where there are none caches before and after. */
export type Prompt = { about: About; rows: Block[]; caches: Block[] };
type Base = { parameters: number; n_head: number; n_embd: number; block_size: number; cache: number[]; bos: number[] };
type Index = { base: Base; bytes: number[]; texts: string[]; prompts: string[] };

export const NOTHING: Block = { data: new Float32Array(0), length: 0 };

/** An error whose message tells the reader what to do. */
export class Remedy extends Error {}

async function load(name: string): Promise<ArrayBuffer> {
  const reply = await fetch(name).catch(() => undefined);
  if (!reply?.ok) {
    const remedy = "Build the page again with “make playground”, and serve the whole folder.";
    throw new Remedy(`${name} is missing (${reply?.status ?? "no answer"}). ${remedy}`);
  }
  const bytes = await reply.arrayBuffer(), [a, b] = new Uint8Array(bytes);
  if (a !== 0x1f || b !== 0x8b) return bytes; // a server may have inflated it
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

export class Network {
  private turn: Promise<unknown> = Promise.resolve();
  private constructor(readonly index: Index, private session: ort.InferenceSession) {}

  static async load() {
    if (typeof WebAssembly === "undefined") {
      const remedy = "Open it in a current Firefox, Chrome, Edge or Safari.";
      throw new Remedy(`This page needs WebAssembly, which this browser lacks or has switched off. ${remedy}`);
    }
    const [index, model, runtime] = await Promise.all(["index.json", "model.onnx.gz", "runtime.wasm.gz"].map(load));
    ort.env.wasm.wasmBinary = runtime;
    ort.env.wasm.numThreads = 1; // more of them need headers that most static servers do not send
    const session = await ort.InferenceSession.create(new Uint8Array(model));
    return new Network(JSON.parse(new TextDecoder().decode(index)), session);
  }

  /** The file of a prompt: safetensors, with what is known about it as JSON in the header. */
  async prompt(name: string): Promise<Prompt> {
    const bytes = await load(`${name}.safetensors`), size = Number(new DataView(bytes).getBigUint64(0, true));
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 8, size)));
    const both = (key: string, axis: number) => {
      const { shape, data_offsets: [from, to] } = header[key], middle = (from + to) / 2;
      return [[from, middle], [middle, to]].map(([a, b]) =>
        ({ data: new Float32Array(bytes.slice(8 + size + a, 8 + size + b)), length: shape[axis] }));
    };
    return { about: JSON.parse(header.__metadata__.about), rows: both("rows", 1), caches: both("cache", 5) };
  }

  encode(text: string) {
    return [...new TextEncoder().encode(text)].map((byte) => this.index.bytes[byte]);
  }

  text(tokens: number[]) {
    return tokens.map((t) => this.index.texts[t] ?? "").join("");
  }

  /** Rows, then tokens, behind a past -> logits of each of them, the cache of all, the attention of the last one. */
  async run(rows: Block, tokens: number[], past: Block, looking = false) {
    const { n_head, n_embd, block_size, cache } = this.index.base, T = rows.length + tokens.length, S = past.length + T;
    if (S > block_size)
      throw new Remedy(`Prompt and question have ${S} positions, and the network reads ${block_size}: shorten the question.`);
    const feeds = {
      rows: new ort.Tensor("float32", rows.data, [1, rows.length, n_embd]),
      tokens: new ort.Tensor("int64", BigInt64Array.from(tokens, BigInt), [1, tokens.length]),
      past_key_values: new ort.Tensor("float32", past.data, cache.with(4, past.length)),
    };
    const attention = this.session.outputNames.filter((name) => looking && name.startsWith("attention_"));
    const wanted = ["logits", "present_key_values", ...attention];
    const done = this.turn.then(() => this.session.run(feeds, wanted)); // one at a time
    this.turn = done.catch(() => {});
    const out = await done, of = (name: string) => out[name].data as Float32Array;
    const last = (i: number) => (Math.floor(i / S) * T + T - 1) * S + (i % S); // in (1, n_head, T, S)
    const look = attention.map((name) => Float32Array.from({ length: n_head * S }, (_, i) => of(name)[last(i)]));
    return { logits: of("logits"), cache: { data: of("present_key_values"), length: S }, look };
  }

  async prefill(rows: Block, tokens: number[] = []): Promise<Block> {
    return rows.length + tokens.length ? (await this.run(rows, tokens, NOTHING)).cache : NOTHING;
  }

  /** The likeliest token after each position. */
  private likeliest(logits: Float32Array) {
    const V = this.index.texts.length;
    return Array.from({ length: logits.length / V }, (_, t) => {
      let best = t * V;
      for (let i = best; i < (t + 1) * V; i++) if (logits[i] > logits[best]) best = i;
      return best - t * V;
    });
  }

  /** Greedy decoding, a token at a time, up to a token of `stops`. */
  async *write(tokens: number[], past: Block, stops: number[], most: number, looking = true): AsyncGenerator<Written> {
    for (let n = 0; n < most; n++) {
      const { logits, cache, look } = await this.run(NOTHING, tokens, past, looking), token = this.likeliest(logits).at(-1)!;
      yield { token, look };
      if (stops.includes(token)) return;
      [tokens, past] = [[token], cache];
    }
  }

  /** What stands after a question: the true answer where each of its tokens is the likeliest, else decoded. */
  async answer({ question_format, stops }: About, [question, truth]: Question, past: Block, signal: AbortSignal) {
    const asked = this.encode(question_format.replace("{}", question)), target = this.encode(truth);
    const { logits } = await this.run(NOTHING, [...asked, ...target.slice(0, -1)], past);
    if (this.likeliest(logits).slice(asked.length - 1).every((token, i) => token === target[i])) return truth;
    const written: number[] = [];
    for await (const { token } of this.write(asked, past, stops, target.length, false)) {
      if (signal.aborted) break;
      written.push(token);
    }
    return this.text(written);
  }
}

/** Some of a block's positions, `width` numbers for each wherever it stands. */
export function keep(block: Block, positions: number[], width: number): Block {
  const lines = block.data.length / (block.length * width), data = new Float32Array(lines * positions.length * width);
  for (let line = 0; line < lines; line++)
    positions.forEach((p, i) => {
      const from = (line * block.length + p) * width;
      data.set(block.data.subarray(from, from + width), (line * positions.length + i) * width);
    });
  return { data, length: positions.length };
}

/** Between a start, t = 0, and an end, t = 1. */
export function between([start, end]: Block[], t: number): Block {
  return { data: start.data.map((x, i) => x + t * (end.data[i] - x)), length: start.length };
}

/** What stands behind the last `=` of an answer, "" where it was cut off: the final answer, as in tasks/__init__.py. */
export function finalAnswer(text: string, stop: string) {
  const [answer, ...rest] = text.split(stop);
  return rest.length ? answer.slice(answer.lastIndexOf("=") + 1) : "";
}
