// A VM that goes on while a test looks at it: `ssihv run` with a guest of a few instructions, its
// console and its words.

import { writeFileSync } from "node:fs";
import { freePorts } from "../../src/base/free-ports.fixture.ts";
import { binary } from "./support.ts";
import { asm } from "./tiny-guest.ts";

/** RAM of node 1: the second half of 256 MiB. */
export const REMOTE = 192 << 20;
const DATA_READY = 1;
const LINE_STATUS = 0x3fd;
export const powerOff = asm.outw(0x604, 0x2000);
/** Waits for a byte and takes it. */
export const key = [...asm.waitFor(LINE_STATUS, DATA_READY), 0x66, 0xba, 0xf8, 0x03, 0xec];

/** What a stream has said so far, and more until it holds `text`. */
export class Listener {
  text = "";
  private readonly reader: { read(): Promise<{ done: boolean; value?: Uint8Array | undefined }> };

  constructor(stream: ReadableStream<Uint8Array>) {
    this.reader = stream.getReader();
  }

  /** Within half a minute; later, and at the end of the stream, an error with what was said. */
  async until(text: string): Promise<void> {
    const late = Promise.withResolvers<never>();
    const timer = setTimeout(() => {
      late.reject(new Error(`30 s without "${text}":\n${this.text}`));
    }, 30_000);
    try {
      while (!this.text.includes(text)) {
        const { done, value } = await Promise.race([this.reader.read(), late.promise]);
        if (done) throw new Error(`ended without "${text}":\n${this.text}`);
        this.text += new TextDecoder().decode(value);
      }
    } finally {
      clearTimeout(timer);
    }
  }

  async end(): Promise<void> {
    for (;;) {
      const { done, value } = await this.reader.read();
      if (done) return;
      this.text += new TextDecoder().decode(value);
    }
  }
}

/** Where another command joins the VM of one: the flags of both, with a key in `folder`. */
export function openDoor(folder: string, address = `127.0.0.1:${freePorts(4)}`) {
  const key = `${folder}/vm.key`;
  writeFileSync(key, "5a".repeat(32), { mode: 0o600 });
  return {
    door: ["--listen", address, "--key-file", key],
    join: [binary, "join", address, "--key-file", key],
  };
}

/** `ssihv run`, ended at the end of the block; what is typed lets its guest go on. */
export function start(kernel: string, ...flags: string[]) {
  const child = Bun.spawn([binary, "run", "--kernel", kernel, "--name", "tiny", ...flags], {
    stdin: "pipe",
    stdout: "pipe",
    stderr: "pipe",
    // With what support.ts added to it.
    env: process.env,
  });
  return {
    child,
    out: new Listener(child.stdout),
    err: new Listener(child.stderr),
    type: (text: string) => {
      child.stdin.write(text);
      return child.stdin.flush();
    },
    [Symbol.asyncDispose]: async () => {
      child.kill("SIGTERM");
      await child.exited;
    },
  };
}
