// Bytes for the stdin of a command on a lab host: a second virtio-serial port, which QEMU offers
// here as a Unix socket. A port is one stream without borders, so a command's input begins after a
// line with its name (host-agent.sh waits for it), and a host feeds one command at a time. The end
// of the stream is the end of the command's input; a command that reads slowly holds it back.

import { connect, type Socket } from "node:net";
import type { ReadableStreamDefaultReader } from "node:stream/web";

export class HostInput {
  readonly #reader: ReadableStreamDefaultReader<Uint8Array>;
  readonly #socket: Socket;

  constructor(socketPath: string, id: string, stream: ReadableStream<Uint8Array>) {
    this.#reader = stream.getReader();
    // Half open: ending our side must not drop what QEMU has yet to read.
    this.#socket = connect({ path: socketPath, allowHalfOpen: true });
    // A socket that breaks is a host that is gone, which is told by whoever waits for the command.
    this.#socket.on("error", () => this.#socket.destroy());
    void this.#pump(id);
  }

  /** After the command's end: nothing more is read from the stream. */
  async stop(): Promise<void> {
    this.#socket.destroy();
    await this.#reader.cancel();
  }

  async #pump(id: string): Promise<void> {
    // The newline in front ends what an earlier command left unread.
    await this.#write(new TextEncoder().encode(`\n${id}\n`));
    for (;;) {
      const { value, done } = await this.#reader.read();
      if (done) break;
      await this.#write(value);
    }
    this.#socket.end();
  }

  /** Resolves when the bytes are on their way, or never will be. */
  #write(bytes: Uint8Array): Promise<void> {
    if (this.#socket.destroyed) return Promise.resolve();
    return new Promise((resolve) => {
      this.#socket.once("close", resolve);
      this.#socket.write(bytes, () => {
        this.#socket.off("close", resolve);
        resolve();
      });
    });
  }
}
