// What the page knows of the tasks of this project: right final answers of typed questions, and what a step means.

const digits = (text: string) => BigInt(text);
const list = (text: string) => text.split(",").filter(Boolean);

/** The right final answer of a question, or undefined where the page does not know it. */
export function rightAnswer(question: string): string | undefined {
  let m: RegExpMatchArray | null;
  if ((m = question.match(/^(\d+)\+(\d+)[=;]$/))) return `${digits(m[1]) + digits(m[2])}`;
  if ((m = question.match(/^(\d+)\*(\d)=$/))) return `${digits(m[1]) * digits(m[2])}`;
  if ((m = question.match(/^reverse\((\w+)\)=$/))) return [...m[1]].reverse().join("");
  if ((m = question.match(/^last\(([\w,]+)\)=$/))) return list(m[1]).map((word) => word.at(-1)).join("");
  if (/^(x\d+=\d+, )*x\d+=\d+ sum\?$/.test(question))
    return `${[...question.matchAll(/=(\d+)/g)].reduce((sum, [, value]) => sum + Number(value), 0)}`;
}

/** What the character at `i` of an answer stands for, or "". */
export function explain(question: string, answer: string, i: number): string {
  const end = answer.lastIndexOf("="), operation = question.match(/^\d+([+*])/)?.[1];
  if (end >= 0 && i > end) return "the final answer, copied from the steps before it.";
  if (operation) {
    const place = i % 5, [a, b, carry, digit] = answer.slice(i - place, i - place + 4), number = Math.floor(i / 5) + 1;
    if (end >= 0 && i >= end - 3) return `00 says that no digit is left, and ${answer[end - 1]} is the last carry.`;
    const role = ["a digit of the first number", operation === "+" ? "a digit of the second number" : "the multiplier",
      "the carry from the column before", "the digit to write", "the end of the column"][place];
    return `${role}. Column ${number} from the right${digit === undefined ? "" : ` says ${a} ${operation === "+" ? "+" : "×"} ${b} with carry ${carry} writes ${digit}`}.`;
  }
  const item = answer.slice(0, i).split(";").length;
  if (question.startsWith("last(")) return `the last letter of word ${item}, ${list(question.slice(5, -2))[item - 1] ?? "which is not there"}.`;
  if (question.endsWith("sum?")) return `the total of the first ${item === 1 ? "term" : `${item} terms`}.`;
  if (question.startsWith("reverse(")) return `letter ${i + 1} from the end of the word.`;
  return "";
}
