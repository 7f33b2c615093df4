import { expect, test } from "bun:test";

import { ConsoleInputStream, ConsoleOutputStream, type ConsoleStdin } from "./terminal.ts";

class FakeStdin implements ConsoleStdin {
  readonly calls: string[] = [];
  isTTY = true;
  private listener: ((chunk: Uint8Array) => void) | undefined;

  setRawMode(raw: boolean): void {
    this.calls.push(raw ? "raw" : "cooked");
  }
  on(event: string, listener: (chunk: Uint8Array) => void): void {
    if (event === "data") this.listener = listener;
  }
  pause(): void {
    this.calls.push("pause");
  }
  resume(): void {
    this.calls.push("resume");
  }
  type(text: string): void {
    this.listener?.(new TextEncoder().encode(text));
  }
}

test("raw mode is entered and left once, whoever asks how often", () => {
  const stdin = new FakeStdin();
  const input = new ConsoleInputStream(stdin);
  input.restore();
  input.enterRaw();
  input.enterRaw();
  input.reenterRaw();
  input.close();
  input.restore();
  input.reenterRaw();
  expect(stdin.calls).toEqual(["raw", "cooked", "raw", "cooked", "pause"]);
});

test("a pipe is never switched", () => {
  const stdin = new FakeStdin();
  stdin.isTTY = false;
  const input = new ConsoleInputStream(stdin);
  input.enterRaw();
  input.close();
  expect(stdin.calls).toEqual(["pause"]);
  expect(input.isTerminal).toBe(false);
});

test("one chunk at a time: the next is read when the guest took this one", async () => {
  const stdin = new FakeStdin();
  const input = new ConsoleInputStream(stdin);
  const gate = Promise.withResolvers<void>();
  input.start(() => gate.promise);
  stdin.type("a");
  expect(stdin.calls).toEqual(["resume", "pause"]);
  gate.resolve();
  await gate.promise;
  await Promise.resolve();
  expect(stdin.calls).toEqual(["resume", "pause", "resume"]);
  input.close();
  stdin.type("b");
  await Promise.resolve();
  expect(stdin.calls.slice(3)).toEqual(["pause", "pause"]);
});

test("a console nobody reads is told once and drops what follows", async () => {
  let broken = 0;
  let writes = 0;
  const output = new ConsoleOutputStream(() => broken++, {
    on: () => undefined,
    write: (_, done) => {
      writes++;
      done(new Error("EPIPE"));
    },
  });
  await output.write(new Uint8Array(1));
  await output.write(new Uint8Array(1));
  expect([broken, writes]).toEqual([1, 1]);
});
