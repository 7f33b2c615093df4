// A sealed channel on a TCP socket: queues what the socket does not take at once, notices a peer
// that fell silent, and ends exactly once with the reason. Both ends of a join use it.
// Invariants: a message handler that throws ends this channel and nothing else; after `onEnd`
// nothing is sent or delivered.

import { type Role, SealedChannel } from "./sealed-channel.ts";

export interface JoinChannelHooks {
  onMessage(message: unknown): void;
  /** `why` in words; an SsihvError when the peer's bytes were refused. */
  onEnd(why: Error): void;
}

/** A peer is asked for a sign of life this often per silence limit. */
const SIGNS_PER_LIMIT = 4;

export class JoinChannel {
  /** The IP address of the other side, IPv4 also where the socket is IPv6. */
  readonly remoteHost: string;
  private readonly socket: Bun.Socket<JoinChannel>;
  private readonly sealed: SealedChannel;
  private readonly hooks: JoinChannelHooks;
  private readonly queue: Uint8Array[] = [];
  private closing = false;
  private ended = false;
  private heardAt = performance.now();
  private timer: ReturnType<typeof setInterval> | undefined;
  private readonly gone = Promise.withResolvers<void>();

  constructor(
    socket: Bun.Socket<JoinChannel>,
    role: Role,
    key: Uint8Array,
    hooks: JoinChannelHooks,
  ) {
    this.socket = socket;
    this.hooks = hooks;
    this.remoteHost = socket.remoteAddress.replace(/^::ffff:(?=\d+\.)/i, "");
    socket.setNoDelay(true);
    this.sealed = new SealedChannel(role, key, {
      write: (bytes) => this.write(bytes),
      onMessage: (message) => {
        if (!this.ended) hooks.onMessage(message);
      },
    });
  }

  send(message: { readonly type: string }): void {
    if (!this.ended && !this.closing) this.sealed.send(message);
  }

  /** From now on both sides must be heard within `limitMs`; the peer does the same. */
  keepAlive(limitMs: number): void {
    const everyMs = limitMs / SIGNS_PER_LIMIT;
    let checkedAt = performance.now();
    this.heardAt = checkedAt;
    clearInterval(this.timer);
    this.timer = setInterval(() => {
      const now = performance.now();
      // We ourselves were held up (stopped, starved): what the peer said may still wait unread.
      if (now - checkedAt > 2 * everyMs) this.heardAt = now;
      checkedAt = now;
      if (now - this.heardAt > limitMs) {
        this.end(new Error(`nothing was heard from it for ${(limitMs / 1000).toFixed(1)} s`));
      } else this.send({ type: "alive" });
    }, everyMs);
  }

  /** Closes once everything is sent, but within `limitMs`; resolves when the socket is gone. */
  async close(limitMs: number): Promise<void> {
    const timer = setTimeout(() => this.end(new Error("it did not close in time")), limitMs);
    this.closing = true;
    this.flush();
    await this.gone.promise;
    clearTimeout(timer);
  }

  /** Ends at once; `onEnd` hears why. */
  end(why: Error): void {
    if (this.ended) return;
    this.ended = true;
    clearInterval(this.timer);
    this.queue.length = 0;
    this.socket.terminate();
    this.gone.resolve();
    this.hooks.onEnd(why);
  }

  received(bytes: Uint8Array): void {
    if (this.ended) return;
    this.heardAt = performance.now();
    try {
      this.sealed.feed(bytes);
    } catch (error) {
      this.end(error instanceof Error ? error : new Error(String(error)));
    }
  }

  flush(): void {
    while (!this.ended) {
      const next = this.queue[0];
      if (next === undefined) break;
      const taken = this.socket.write(next);
      if (taken < 0) return;
      if (taken < next.length) {
        this.queue[0] = next.subarray(taken);
        return;
      }
      this.queue.shift();
    }
    if (this.closing && !this.ended) this.socket.end();
  }

  private write(bytes: Uint8Array): void {
    if (this.ended) return;
    this.queue.push(bytes);
    if (this.queue.length === 1) this.flush();
  }
}

function lost(error: Error | undefined): Error {
  if (error === undefined) return new Error("the connection was closed");
  const errno = "code" in error ? ` (${String(error.code)})` : "";
  return new Error(`the connection broke${errno}`, { cause: error });
}

/** Handlers of a socket whose `data` is its channel; absent until `open` made it. */
export const CHANNEL_HANDLERS = {
  data: (socket: Bun.Socket<JoinChannel>, bytes: Uint8Array) => socket.data?.received(bytes),
  drain: (socket: Bun.Socket<JoinChannel>) => socket.data?.flush(),
  end: (socket: Bun.Socket<JoinChannel>) => socket.data?.end(lost(undefined)),
  close: (socket: Bun.Socket<JoinChannel>, error?: Error) => socket.data?.end(lost(error)),
  error: (socket: Bun.Socket<JoinChannel>, error: Error) => socket.data?.end(error),
};
