// Small helpers of the page: elements, keys, and jobs of which only the latest counts.
export const $ = <T extends HTMLElement = HTMLElement>(id: string) => document.getElementById(id) as T;

export function make<K extends keyof HTMLElementTagNameMap>(tag: K, props: object = {}, ...inside: (Node | string)[]) {
  const element = Object.assign(document.createElement(tag), props);
  element.append(...inside);
  return element;
}

export const button = (text: string, props: object, onclick: () => void) => make("button", { type: "button", onclick, ...props }, text);
export const percent = (share: number) => `${Math.round(100 * share)}%`;
export const visible = (text: string) => text.replace(/ /g, "␣").replace(/\n/g, "⏎") || "∎";
export const quoted = (text: string) => `“${visible(text)}”`;
export const sample = <T>(items: T[], n: number) => [...items].sort(() => Math.random() - 0.5).slice(0, n);
export const paint = () => new Promise((done) => setTimeout(done)); // lets the browser draw and hear keys

/** Radio buttons that look like chips. */
export function chips(box: HTMLElement, options: [value: string, text: string][], chosen: string, change: (value: string) => void) {
  box.replaceChildren(...options.map(([value, text]) => {
    const input = make("input", { type: "radio", name: box.id, value, checked: value === chosen, onchange: () => change(value) });
    return make("label", {}, input, make("span", {}, text));
  }));
}

/** One tab stop for all buttons of a box: the arrow keys go from one to the next. */
export function arrows(box: HTMLElement) {
  box.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key], all = [...box.querySelectorAll("button")];
    const next = step && all[all.indexOf(document.activeElement as HTMLButtonElement) + step];
    if (!next) return;
    event.preventDefault();
    for (const one of all) one.tabIndex = one === next ? 0 : -1;
    next.focus();
  };
}

export let fail = (error: unknown) => console.error(error);
export const onFail = (show: typeof fail) => { fail = show; };
const latest = new Map<string, AbortController>(), working = new Set<string>();
export const isBusy = (name: string) => working.has(name);

const isSeen = (place: HTMLElement) => {
  const { top, bottom } = place.getBoundingClientRect();
  return top < innerHeight && bottom > 0;
};

/** Do some work, once the reader sees `place`, if one is given. A job that was begun before under this name is told to stop. */
export async function job(name: string, place: HTMLElement | null, work: (signal: AbortSignal) => Promise<void>) {
  const control = new AbortController(), tell = () => { document.body.dataset.busy = [...working].join(" "); };
  latest.get(name)?.abort();
  latest.set(name, control);
  working.delete(name);
  while (place && !isSeen(place) && !control.signal.aborted) await new Promise((done) => setTimeout(done, 200));
  if (control.signal.aborted) return;
  working.add(name);
  tell();
  await work(control.signal).catch((error) => control.signal.aborted || fail(error));
  if (control.signal.aborted) return;
  working.delete(name);
  tell();
}
