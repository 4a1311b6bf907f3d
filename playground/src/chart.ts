// Right answers by length: what was measured, and what the reader sees now.
import * as Plot from "@observablehq/plot";
import type { About } from "./engine";

export function chart({ curves, unit, tuned, questions }: About, length: number, now: number | undefined, width: number) {
  const points = Object.entries(curves).flatMap(([who, of]) =>
    Object.entries(of).map(([n, [right, asked]]) => ({ who, length: Number(n), share: right / asked })));
  const at = { x: "length", y: "share" };
  return Plot.plot({
    width, height: 300, marginLeft: 50, marginTop: 32, marginBottom: 40,
    style: { background: "transparent", fontSize: "13px" },
    ariaLabel: "Right answers by length", ariaDescription: `Lines for ${Object.keys(curves).join(", ")}`,
    x: { label: `${unit} →`, ticks: Object.keys(questions).map(Number), tickFormat: "d" },
    y: { label: "↑ right answers", domain: [0, 1], tickFormat: "%", ticks: 5, grid: true },
    color: {
      legend: true, domain: Object.keys(curves),
      range: ["var(--red)", "#d99a2b", "var(--blue)", "#5aa17f", "#a07cc5", "var(--soft)"],
    },
    marks: [
      Plot.rectX([tuned], { x1: tuned[0] - 0.5, x2: tuned[1] + 0.5, fillOpacity: 0.07 }),
      Plot.ruleX([length], { strokeDasharray: "3 3" }),
      Plot.line(points, { ...at, stroke: "who", strokeWidth: 2, marker: "dot" }),
      Plot.dot(now === undefined ? [] : [{ length, share: now }], { ...at, r: 8, strokeWidth: 2.5 }),
    ],
  });
}
