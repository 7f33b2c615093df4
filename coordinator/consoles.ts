// Guests' consoles over the API: any number of readers, each from the kept history on, and one
// writer at a time, who is so for as long as its own reading lasts.

import { randomBytes } from "node:crypto";

import { SsihvError } from "../src/base/errors.ts";
import type { Vms } from "./vms.ts";

/** A reader that is slower than its guest by more than this is let go. */
const UNREAD_BYTES_MAX = 4 << 20;

export interface OpenConsole {
  readonly stream: ReadableStream<Uint8Array>;
  /** With which to write; undefined: somebody else writes, or it was not asked for. */
  readonly writer: string | undefined;
}

export class Consoles {
  private readonly vms: Vms;
  /** The writer of each run. */
  private readonly writers = new Map<string, string>();

  constructor(vms: Vms) {
    this.vms = vms;
  }

  async open(name: string, write: boolean): Promise<OpenConsole> {
    const { session, run } = await this.vms.console(name);
    const writer = write && !this.writers.has(run) ? randomBytes(16).toString("hex") : undefined;
    if (writer !== undefined) this.writers.set(run, writer);
    let close: (() => void) | undefined;
    const release = () => {
      close?.();
      close = undefined;
      if (this.writers.get(run) === writer) this.writers.delete(run);
    };
    // Once it is over nothing more may be said to the reader, though some may be on its way.
    let over = false;
    const finish = (end: () => void) => {
      if (over) return;
      over = true;
      release();
      end();
    };
    const opened = Promise.withResolvers<ReadableStreamDefaultController<Uint8Array>>();
    const stream = new ReadableStream<Uint8Array>(
      { start: opened.resolve, cancel: () => finish(() => undefined) },
      new ByteLengthQueuingStrategy({ highWaterMark: UNREAD_BYTES_MAX }),
    );
    const controller = await opened.promise;
    try {
      close = await session.openConsole(run, {
        onData: (bytes) => {
          if (over) return;
          controller.enqueue(bytes);
          if ((controller.desiredSize ?? 0) > 0) return;
          finish(() => controller.error(new Error("this reader is too slow")));
        },
        onEnd: () => finish(() => controller.close()),
      });
      if (over) release();
    } catch (error) {
      release();
      throw error;
    }
    return { stream, writer };
  }

  async input(name: string, writer: string, data: string): Promise<void> {
    const { session, run } = await this.vms.console(name);
    if (this.writers.get(run) !== writer) {
      throw new SsihvError("vm_busy", `somebody else writes to the console of VM ${name}`, {
        hint: "open it again once that one has left",
      });
    }
    await session.order({ type: "console_input", run, data });
  }
}
