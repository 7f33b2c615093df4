// Measures of a source file's shape: long functions, wide lines, the head comment. Works on text as
// biome and zig fmt leave it, where a block ends at the first line indented like its start.

export interface LongFunction {
  readonly line: number;
  readonly name: string;
  readonly lines: number;
}

/** Declarations, methods on one line, and arrow functions with a name. */
const typescriptStart = [
  /^\s*(?:export )?(?:async )?function\*? ?(\w+)/,
  /^\s+(?:\w+ )*(?!(?:if|for|while|switch|catch)\b)(\w+)\(.*\)(?:: [^=]*)? \{$/,
  /^\s*(?:export )?const (\w+) = (?:async )?\(.*=> \{$/,
];
const zigStart = [/^\s*(?:pub |export |inline |noinline )*fn (\w+)\(/];

/** Functions longer than `limit` lines, signature and closing brace included. */
export function longFunctions(path: string, text: string, limit: number): LongFunction[] {
  const lines = text.split("\n");
  const start = path.endsWith(".zig") ? zigStart : typescriptStart;
  const found: LongFunction[] = [];
  lines.forEach((line, i) => {
    const name = start.map((pattern) => pattern.exec(line)?.[1]).find((found) => found);
    if (name === undefined) return;
    // A generic type's body is a container: its functions are looked at one by one.
    if (/\) type \{$/.test(line)) return;
    const indent = /^\s*/.exec(line)?.[0] ?? "";
    const end = lines.findIndex((other, at) => at > i && other.startsWith(`${indent}}`));
    const length = end - i + 1;
    if (end > 0 && length > limit) found.push({ line: i + 1, name, lines: length });
  });
  return found;
}

/** Numbers of the lines wider than `limit` columns (characters, not bytes). */
export function wideLines(text: string, limit: number): number[] {
  return text.split("\n").flatMap((line, i) => ([...line].length > limit ? [i + 1] : []));
}

/** Lines of the comment a file starts with, a shebang left out. */
export function headCommentLines(text: string): number {
  const lines = text.replace(/^#!.*\n/, "").split("\n");
  const end = lines.findIndex((line) => !/^(\/\/|#)/.test(line));
  return end < 0 ? lines.length : end;
}
