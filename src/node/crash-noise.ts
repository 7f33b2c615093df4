// Reads the stderr of an engine child line by line and takes out the runtime's crash report, which
// calls every fault in native code "a bug in Bun" and asks to report it there: the fault is ours,
// and the last words in the shared page tell it better.
// Invariants: a line that is not part of such a report is passed on unchanged and in order; memory
// is bounded by LINE_MAX and TAIL_LINES.

/** A crash report starts with a rule of these, then a line with the runtime's version. */
const RULE = /^={20,}$/;
const REPORT_HEAD = /^Bun v\d/;
/** The last line that matters of a report is its link. */
const REPORT_END = /bun\.report\//;
const PANIC = /^panic(?:\([^)]*\))?: (.*)$/;

const LINE_MAX = 4096;
const TAIL_LINES = 40;
/** Longest report seen is 20 lines; anything after this many is not the report's. */
const REPORT_LINES_MAX = 64;

export class CrashNoiseFilter {
  private partial = "";
  private heldRule: string | undefined;
  private reportLines = 0;
  private readonly decoder = new TextDecoder();
  private readonly lines: string[] = [];
  /** What the runtime's report said happened, if there was one. */
  panic: string | undefined;

  /** Complete lines to show, the runtime's report left out. */
  push(chunk: Uint8Array): string[] {
    const shown: string[] = [];
    const text = this.partial + this.decoder.decode(chunk, { stream: true });
    const lines = text.split("\n");
    this.partial = lines.pop() ?? "";
    if (this.partial.length > LINE_MAX) {
      lines.push(this.partial);
      this.partial = "";
    }
    for (const line of lines) this.takeLine(line.slice(0, LINE_MAX), shown);
    return shown;
  }

  /** What was held back when the stream ended. */
  end(): string[] {
    const shown: string[] = [];
    if (this.partial !== "") this.takeLine(this.partial, shown);
    this.partial = "";
    if (this.heldRule !== undefined) this.show(this.heldRule, shown);
    this.heldRule = undefined;
    return shown;
  }

  /** The newest lines that were shown. */
  tail(): string {
    return this.lines.join("\n");
  }

  private takeLine(line: string, shown: string[]): void {
    if (this.reportLines > 0) {
      this.reportLines--;
      const panic = PANIC.exec(line)?.[1];
      if (panic !== undefined) this.panic = panic;
      if (REPORT_END.test(line)) this.reportLines = 0;
      return;
    }
    if (this.heldRule !== undefined) {
      const rule = this.heldRule;
      this.heldRule = undefined;
      if (REPORT_HEAD.test(line)) {
        this.reportLines = REPORT_LINES_MAX;
        return;
      }
      this.show(rule, shown);
    }
    if (RULE.test(line)) this.heldRule = line;
    else this.show(line, shown);
  }

  private show(line: string, shown: string[]): void {
    shown.push(line);
    this.lines.push(line);
    if (this.lines.length > TAIL_LINES) this.lines.shift();
  }
}
