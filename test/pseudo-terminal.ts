// A program on a pseudo-terminal, as a user at a terminal sees it: what it prints, what is typed,
// and whether the terminal is as before when it has ended.

import { expect } from "bun:test";

export class PseudoTerminal implements AsyncDisposable {
  text = "";
  readonly child: Bun.Subprocess;
  private readonly waiting: { text: string; done: () => void }[] = [];

  constructor(args: string[]) {
    const decoder = new TextDecoder();
    this.child = Bun.spawn(args, {
      terminal: {
        cols: 80,
        rows: 24,
        data: (_: unknown, bytes: Uint8Array) => {
          this.text += decoder.decode(bytes, { stream: true });
          for (const { text, done } of this.waiting) if (this.text.includes(text)) done();
        },
      },
    });
  }

  /** Resolves when `text` was printed; throws when the program ended, or time did, without. */
  async until(text: string, seconds = 30): Promise<void> {
    if (this.text.includes(text)) return;
    const printed = Promise.withResolvers<void>();
    const without = (what: string) => {
      if (!this.text.includes(text)) {
        printed.reject(new Error(`${what} without "${text}":\n${this.text}`));
      }
    };
    this.waiting.push({ text, done: printed.resolve });
    const timer = setTimeout(() => without(`${seconds} s`), seconds * 1000);
    void this.child.exited.then(() => without("ended"));
    await printed.promise.finally(() => clearTimeout(timer));
  }

  type(text: string): void {
    this.child.terminal?.write(text);
  }

  /** Hangs up, as closing the window does, so that a failed test leaves no program behind. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.child.terminal?.close();
    await this.child.exited;
  }
}

/** Runs `args` in a shell on a terminal; then its status and the terminal's mode are printed. */
export function inShell(args: readonly string[]): PseudoTerminal {
  const quoted = args.map((arg) => `'${arg}'`).join(" ");
  return new PseudoTerminal(["sh", "-c", `${quoted}; echo "status=$?"; stty -a; echo all-done`]);
}

/** `text` holds `stty -a` of a terminal that edits lines, echoes and has its signal keys. */
export function expectCooked(text: string): void {
  expect(text).toMatch(/[ \n]icanon /);
  expect(text).toMatch(/[ \n]echo /);
  expect(text).toMatch(/[ \n]isig /);
}
