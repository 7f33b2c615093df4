// JSON messages over a stream, one a line, both ways. Ends exactly once, with the reason: when the
// stream does, when a line is too long or no JSON, when a handler throws, when the other side is
// silent for too long, or when it does not read what it is sent.

import type { Duplex } from "node:stream";

import { messageOf } from "../base/errors.ts";

export interface LineChannelHooks {
  onMessage(message: unknown): void;
  /** In words. */
  onEnd(why: string): void;
}

const LINE_BYTES_MAX = 4 << 20;
const UNREAD_BYTES_MAX = 16 << 20;
const NEWLINE = 0x0a;
/** Silence is looked at this often per limit. */
const LOOKS_PER_LIMIT = 4;

export class LineChannel {
  private readonly stream: Duplex;
  private readonly hooks: LineChannelHooks;
  private parts: Uint8Array[] = [];
  private held = 0;
  private over = false;
  private heardAt = performance.now();
  private timer: ReturnType<typeof setInterval> | undefined;

  constructor(stream: Duplex, hooks: LineChannelHooks) {
    this.stream = stream;
    this.hooks = hooks;
    stream.on("data", (bytes: Uint8Array) => this.received(bytes));
    stream.on("end", () => this.end("it closed the connection"));
    stream.on("close", () => this.end("the connection was closed"));
    stream.on("error", (error) => this.end(`the connection broke (${error.message})`));
  }

  get ended(): boolean {
    return this.over;
  }

  send(message: object): void {
    if (this.over) return;
    this.stream.write(`${JSON.stringify(message)}\n`);
    if (this.stream.writableLength > UNREAD_BYTES_MAX) this.end("it does not read");
  }

  /** From now on the other side must be heard within `limitMs`. */
  expectWithin(limitMs: number): void {
    clearInterval(this.timer);
    this.heardAt = performance.now();
    let lookedAt = this.heardAt;
    const everyMs = limitMs / LOOKS_PER_LIMIT;
    this.timer = setInterval(() => {
      const now = performance.now();
      // We ourselves were held up: what the other side said may still wait unread.
      if (now - lookedAt > 2 * everyMs) this.heardAt = now;
      lookedAt = now;
      const silentMs = now - this.heardAt;
      if (silentMs > limitMs) this.end(`nothing was heard for ${(silentMs / 1000).toFixed(1)} s`);
    }, everyMs);
  }

  /** Sends what is written, then closes. */
  close(): void {
    this.stream.end();
    clearInterval(this.timer);
  }

  end(why: string): void {
    if (this.over) return;
    this.over = true;
    clearInterval(this.timer);
    this.stream.destroy();
    this.hooks.onEnd(why);
  }

  private received(bytes: Uint8Array): void {
    this.heardAt = performance.now();
    let rest = bytes;
    while (!this.over) {
      const end = rest.indexOf(NEWLINE);
      const piece = end < 0 ? rest : rest.subarray(0, end);
      this.held += piece.length;
      if (this.held > LINE_BYTES_MAX) return this.end("it sent a line that is too long");
      this.parts.push(piece);
      if (end < 0) return;
      const line = Buffer.concat(this.parts).toString("utf8");
      this.parts = [];
      this.held = 0;
      rest = rest.subarray(end + 1);
      this.line(line);
    }
  }

  private line(line: string): void {
    try {
      this.hooks.onMessage(JSON.parse(line));
    } catch (error) {
      this.end(messageOf(error));
    }
  }
}
