// The two ends of the guest's console in this process: what comes from stdin, where the guest's
// bytes go. A terminal is put into raw mode (the guest does the line editing) and always put back:
// `restore` is idempotent and also runs on process exit; a pipe is passed through untouched.
// Invariants: at most one chunk of input is in flight (a slow guest holds back its writer), and at
// most one of output (a slow reader holds back the guest).

import type { ReadStream } from "node:tty";

export interface ConsoleStdin {
  readonly isTTY?: boolean;
  setRawMode?(raw: boolean): unknown;
  on(event: "data", listener: (chunk: Uint8Array) => void): unknown;
  on(event: "error" | "end", listener: () => void): unknown;
  pause(): unknown;
  resume(): unknown;
}

export class ConsoleInputStream {
  private readonly stdin: ConsoleStdin;
  private raw = false;
  private closed = false;

  constructor(stdin: ConsoleStdin = process.stdin as ReadStream) {
    this.stdin = stdin;
  }

  /** Escape keys are read from a terminal only: a pipe may carry any byte. */
  get isTerminal(): boolean {
    return this.stdin.isTTY === true;
  }

  enterRaw(): void {
    if (!this.isTerminal || this.raw) return;
    this.stdin.setRawMode?.(true);
    this.raw = true;
  }

  restore(): void {
    if (!this.raw) return;
    this.raw = false;
    this.stdin.setRawMode?.(false);
  }

  /** After a stop and continue the shell has set its own mode: take ours again. */
  reenterRaw(): void {
    if (!this.raw) return;
    this.stdin.setRawMode?.(false);
    this.stdin.setRawMode?.(true);
  }

  /** Gives chunks one by one; the end of input is not the end of the guest. */
  start(take: (chunk: Uint8Array) => Promise<void>): void {
    this.stdin.on("data", (chunk) => {
      this.stdin.pause();
      void take(chunk).then(() => {
        if (!this.closed) this.stdin.resume();
      });
    });
    // A closed or broken stdin is an end of input.
    this.stdin.on("error", () => this.stdin.pause());
    this.stdin.resume();
  }

  close(): void {
    this.closed = true;
    this.restore();
    this.stdin.pause();
  }
}

export interface ConsoleStdout {
  write(chunk: Uint8Array, done: (error?: Error | null) => void): unknown;
  on(event: "error", listener: (error: Error) => void): unknown;
}

export class ConsoleOutputStream {
  private readonly stdout: ConsoleStdout;
  private readonly broken: () => void;
  private gone = false;

  /** `broken` is called once, when nobody reads the console any more. */
  constructor(broken: () => void, stdout: ConsoleStdout = process.stdout) {
    this.stdout = stdout;
    this.broken = broken;
    stdout.on("error", () => this.lost());
  }

  /** Resolves when the chunk is written; output nobody reads is dropped. */
  write(chunk: Uint8Array): Promise<void> {
    if (this.gone) return Promise.resolve();
    return new Promise((done) => {
      this.stdout.write(chunk, (error) => {
        if (error) this.lost();
        done();
      });
    });
  }

  private lost(): void {
    if (this.gone) return;
    this.gone = true;
    this.broken();
  }
}
