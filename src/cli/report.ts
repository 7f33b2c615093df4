// The one place that turns an error into words for a person or JSON for a program.
// Invariants: no stack trace unless SSIHV_DEBUG is set; the text says what happened, what to do,
// and the chain of causes; control characters of foreign text (guest, kernel, file names) never
// reach the terminal raw.

import { SsihvError } from "../base/errors.ts";

export interface ReportOptions {
  readonly json: boolean;
  readonly debug?: boolean;
}

/** Causes below the first are rarely read: the chain is cut here. */
const CAUSES_MAX = 8;

/** Tab and newline stay; the rest of C0, DEL and C1 could drive the terminal. */
function isControl(code: number): boolean {
  return (code < 0x20 && code !== 0x09 && code !== 0x0a) || (code >= 0x7f && code < 0xa0);
}

export function printable(text: string): string {
  let out = "";
  for (const char of text) {
    const code = char.codePointAt(0) ?? 0;
    out += isControl(code) ? `\\x${code.toString(16).padStart(2, "0")}` : char;
  }
  return out;
}

function messageOf(error: unknown): string {
  if (error instanceof Error) return error.message || error.name;
  return String(error);
}

function causesOf(error: unknown): string[] {
  const causes: string[] = [];
  let at = error instanceof Error ? error.cause : undefined;
  while (at !== undefined && causes.length < CAUSES_MAX) {
    causes.push(messageOf(at));
    at = at instanceof Error ? at.cause : undefined;
  }
  return causes;
}

function indent(text: string, by: string): string {
  return text.split("\n").join(`\n${by}`);
}

const DEFECT_HINT =
  "this is a defect in ssihv: please report it; SSIHV_DEBUG=1 shows where it happened";

/** Ends without a newline. */
export function formatError(error: unknown, options: ReportOptions): string {
  const ours = error instanceof SsihvError;
  const code = ours ? error.code : "defect_found";
  const hint = ours ? error.hint : DEFECT_HINT;
  const causes = causesOf(error);
  if (options.json) {
    const body = { code, message: messageOf(error), ...(hint !== undefined && { hint }) };
    return JSON.stringify({ error: causes.length > 0 ? { ...body, causes } : body });
  }
  const lines = [`ssihv: ${indent(printable(messageOf(error)), "       ")}`];
  for (const cause of causes) lines.push(`  because: ${indent(printable(cause.trim()), "    ")}`);
  if (hint !== undefined) lines.push(`  try: ${indent(printable(hint), "       ")}`);
  if (options.debug === true && error instanceof Error && error.stack !== undefined) {
    lines.push(error.stack);
  }
  return lines.join("\n");
}
