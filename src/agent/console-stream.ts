// One reader of a guest's console at the other end of the agent's connection: gets the kept history
// and then what comes, as fast as the connection takes it. A reader that falls behind misses the
// oldest bytes, is told how many, and never holds back the guest.

import type { FromAgent } from "../control/messages.ts";
import type { ConsoleHistory } from "./console-history.ts";

const PIECE_BYTES = 16 << 10;
/** While the connection holds more than this, nothing is added. */
const UNSENT_BYTES_MAX = 256 << 10;

export interface StreamSink {
  readonly unsentBytes: number;
  send(message: FromAgent): void;
}

export class ConsoleStream {
  private readonly id: number;
  private readonly history: ConsoleHistory;
  private readonly sink: StreamSink;
  private readonly unlisten: () => void;
  private at = 0;

  constructor(id: number, history: ConsoleHistory, sink: StreamSink) {
    this.id = id;
    this.history = history;
    this.sink = sink;
    this.unlisten = history.listen(() => this.pump());
    this.pump();
  }

  /** Also when the connection has room again. */
  pump(): void {
    while (this.sink.unsentBytes < UNSENT_BYTES_MAX) {
      const { bytes, next, lost } = this.history.read(this.at, PIECE_BYTES);
      // What a reader who comes late does not see is history, not a loss.
      if (lost > 0 && this.at > 0) this.say(`\r\n[${lost} bytes are gone]\r\n`);
      if (bytes.length === 0) return;
      this.at = next;
      this.give(bytes);
    }
  }

  /** The VM has ended: nothing more will come. */
  end(): void {
    this.pump();
    this.close();
    this.sink.send({ type: "console_end", stream: this.id });
  }

  close(): void {
    this.unlisten();
  }

  private say(text: string): void {
    this.give(new TextEncoder().encode(text));
  }

  private give(bytes: Uint8Array): void {
    const data = Buffer.from(bytes).toString("base64");
    this.sink.send({ type: "console", stream: this.id, data });
  }
}
