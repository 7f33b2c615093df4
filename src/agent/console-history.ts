// The newest bytes of a guest's console, by their place in all that it ever wrote, so that a reader
// who comes late or falls behind goes on where there still is something.

export interface Piece {
  readonly bytes: Uint8Array;
  /** Where to go on. */
  readonly next: number;
  /** Bytes that were asked for and are gone. */
  readonly lost: number;
}

export class ConsoleHistory {
  private readonly ring: Uint8Array;
  /** Bytes written in all. */
  private end = 0;
  private readonly listeners = new Set<() => void>();

  constructor(size = 256 << 10) {
    this.ring = new Uint8Array(size);
  }

  push(chunk: Uint8Array): void {
    const { ring } = this;
    // Of a chunk larger than the ring only the end stays.
    const kept = chunk.subarray(Math.max(0, chunk.length - ring.length));
    let at = (this.end + chunk.length - kept.length) % ring.length;
    const first = kept.subarray(0, ring.length - at);
    ring.set(first, at);
    at = 0;
    ring.set(kept.subarray(first.length), at);
    this.end += chunk.length;
    for (const listener of this.listeners) listener();
  }

  /** At most `limit` bytes from `from` on. */
  read(from: number, limit: number): Piece {
    const { ring, end } = this;
    const start = Math.max(from, end - ring.length, 0);
    const length = Math.min(limit, end - start);
    const at = start % ring.length;
    const bytes = new Uint8Array(length);
    const first = ring.subarray(at, Math.min(at + length, ring.length));
    bytes.set(first);
    bytes.set(ring.subarray(0, length - first.length), first.length);
    return { bytes, next: start + length, lost: start - from };
  }

  /** Told of every push until the returned function is called. */
  listen(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }
}
