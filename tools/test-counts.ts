// How many tests passed, failed and were skipped, read from what the test programs print last.
// A program that fails without saying so, or says nothing, counts as one failure.

export interface Counts {
  readonly passed: number;
  readonly failed: number;
  readonly skipped: number;
}

export const none: Counts = { passed: 0, failed: 0, skipped: 0 };

export function add(a: Counts, b: Counts): Counts {
  return {
    passed: a.passed + b.passed,
    failed: a.failed + b.failed,
    skipped: a.skipped + b.skipped,
  };
}

export function lastLine({ passed, failed, skipped }: Counts): string {
  return `${passed} passed, ${failed} failed, ${skipped} skipped`;
}

/** How a program tells its counts: exit status alone, our Zig runner's line, or bun's summary. */
export type Dialect = "status" | "zig" | "bun";

function lastNumber(output: string, pattern: RegExp): number | undefined {
  const found = [...output.matchAll(pattern)].at(-1)?.[1];
  return found === undefined ? undefined : Number(found);
}

function printed(dialect: Dialect, output: string): Counts | undefined {
  if (dialect === "zig") {
    const line = [...output.matchAll(/^(\d+) passed, (\d+) failed, (\d+) skipped$/gm)].at(-1);
    if (line === undefined) return undefined;
    const [passed = 0, failed = 0, skipped = 0] = line.slice(1).map(Number);
    return { passed, failed, skipped };
  }
  const passed = lastNumber(output, /^ *(\d+) pass$/gm);
  const failed = lastNumber(output, /^ *(\d+) fail$/gm);
  if (passed === undefined || failed === undefined) return undefined;
  return { passed, failed, skipped: lastNumber(output, /^ *(\d+) skip$/gm) ?? 0 };
}

export function countsOf(dialect: Dialect, output: string, exitCode: number): Counts {
  if (dialect === "status") {
    return exitCode === 0 ? { ...none, passed: 1 } : { ...none, failed: 1 };
  }
  const counts = printed(dialect, output) ?? none;
  const silent = counts.failed === 0 && (exitCode !== 0 || counts.passed + counts.skipped === 0);
  return silent ? { ...counts, failed: 1 } : counts;
}

/** Names of skipped tests as the program printed them: what a machine lacks is said aloud. */
export function skippedNames(output: string): string[] {
  return [...output.matchAll(/^(?:\(skip\)|SKIP) (.+)$/gm)].map(([, name = ""]) => name);
}

/** A failed test, with the first line of the error that came before its name, as bun tells it. */
export interface Failure {
  readonly name: string;
  readonly error?: string;
}

/** Failed tests, in order and once each (bun lists them twice, the second time without errors). */
export function failures(output: string): Failure[] {
  const found = new Map<string, Failure>();
  let error: string | undefined;
  for (const [, kind, words = ""] of output.matchAll(/^(\(\w+\)|FAIL|error:) (.+)$/gm)) {
    if (kind === "error:") {
      error ??= words;
      continue;
    }
    const failed = kind === "(fail)" || kind === "FAIL";
    if (failed && !found.has(words)) {
      found.set(words, { name: words, ...(error !== undefined && { error }) });
    }
    error = undefined;
  }
  return [...found.values()];
}
