// One end of the conversation between `ssihv run --hosts` and a part: lines to messages, and signs
// of life. Ends once, with the reason: when its stream does, when the other side is silent for too
// long, or when what it says is no message.

import { ALIVE_MS, SILENCE_MS } from "./part-messages.ts";

export interface TalkHooks<In> {
  onMessage(message: In): void;
  /** In words. */
  onEnd(why: string): void;
}

export class Talk<In extends { type: string }, Out extends { type: string }> {
  private readonly write: (line: string) => void;
  private readonly hooks: TalkHooks<In>;
  private readonly silenceMs: number;
  private readonly timer: ReturnType<typeof setInterval>;
  private over = false;
  private heardAt = performance.now();
  private lookedAt = performance.now();

  constructor(
    write: (line: string) => void,
    hooks: TalkHooks<In>,
    { aliveMs = ALIVE_MS, silenceMs = SILENCE_MS } = {},
  ) {
    this.write = write;
    this.hooks = hooks;
    this.silenceMs = silenceMs;
    this.timer = setInterval(() => this.look(aliveMs), aliveMs);
  }

  send(message: Out): void {
    if (!this.over) this.write(`${JSON.stringify(message)}\n`);
  }

  line(text: string): void {
    if (this.over) return;
    this.heardAt = performance.now();
    let message: In;
    try {
      message = JSON.parse(text) as In;
    } catch {
      return this.end(`it said what is no message: ${text.slice(0, 200)}`);
    }
    if (message.type !== "alive") this.hooks.onMessage(message);
  }

  end(why: string): void {
    if (this.over) return;
    this.close();
    this.hooks.onEnd(why);
  }

  /** Nothing more is to be heard or said. */
  close(): void {
    this.over = true;
    clearInterval(this.timer);
  }

  private look(aliveMs: number): void {
    this.write('{"type":"alive"}\n');
    const now = performance.now();
    // We ourselves were held up: what the other side said may still wait unread.
    if (now - this.lookedAt > 4 * aliveMs) this.heardAt = now;
    this.lookedAt = now;
    const silentMs = now - this.heardAt;
    if (silentMs > this.silenceMs)
      this.end(`nothing was heard for ${Math.round(silentMs / 1000)} s`);
  }
}
