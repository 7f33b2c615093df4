// `ssihv run` from the built binary with the real engine on this host's KVM: every way a guest can
// end, its console in both directions, and planted crashes of the engine. The guests are a few
// instructions long, so shadow paging is enough; a Linux boot is the lab's to show.

import { afterAll, describe, expect, test } from "bun:test";
import {
  binary,
  type Finished,
  hasKvm,
  removeRuntimeFolder,
  run,
  temporaryFolder,
} from "./support.ts";
import { asm, say, writeGuest } from "./tiny-guest.ts";

const COM1 = 0x3f8;
const LINE_STATUS = 0x3fd;
const DATA_READY = 1;
const TRANSMIT_EMPTY = 0x20;

const kvm = hasKvm();
afterAll(removeRuntimeFolder);

interface Options {
  readonly flags?: readonly string[];
  readonly input?: string;
  readonly env?: Record<string, string>;
}

async function boot(code: readonly number[][], options: Options = {}): Promise<Finished> {
  using folder = temporaryFolder();
  const kernel = `${folder.path}/bzImage`;
  writeGuest(kernel, ...code);
  const command = [binary, "run", "--kernel", kernel, "--memory", "128M", "--name", "tiny"];
  return await run([...command, ...(options.flags ?? [])], {
    ...(options.input !== undefined && { stdin: new TextEncoder().encode(options.input) }),
    ...(options.env !== undefined && { env: options.env }),
  });
}

const powerOff = asm.outw(0x604, 0x2000);

describe.skipIf(!kvm)("a guest (needs /dev/kvm)", () => {
  test("talks and powers off: console whole on stdout, status 0, one last line", async () => {
    const { code, out, err } = await boot([say("hello"), powerOff]);
    expect(err).toContain("the guest powered off");
    expect(err.trim().split("\n").at(-1)).toMatch(/^ssihv: VM tiny: ran \d+\.\d s, [1-9]\d* exits/);
    expect(out).toBe("hello");
    expect(code).toBe(0);
  });

  test("reads what is typed", async () => {
    const echo = [asm.waitFor(LINE_STATUS, DATA_READY), asm.echo(COM1)];
    const { out, code } = await boot([...echo, ...echo, ...echo, powerOff], { input: "a\x01x" });
    expect(out).toBe("a\x01x");
    expect(code).toBe(0);
  });

  test("talks a lot: not a byte is lost, not even at power-off", async () => {
    const patient = [...asm.waitFor(LINE_STATUS, TRANSMIT_EMPTY), ...asm.outb(COM1, 0x78)];
    const { out, code } = await boot([asm.repeat(20_000, patient), say("|"), powerOff]);
    expect(out.length).toBe(20_001);
    expect(out).toBe(`${"x".repeat(20_000)}|`);
    expect(code).toBe(0);
  });

  test("passes its isa-debug-exit value on", async () => {
    const { code, err } = await boot([asm.outb(0xf4, 0x10)], { flags: ["--json"] });
    expect(code).toBe(33);
    const last: unknown = JSON.parse(err.trim().split("\n").at(-1) ?? "");
    expect(last).toMatchObject({ event: "ended", reason: "debug_exit", code: 16, status: 33 });
  });

  test("resets: the run ends with --no-reboot", async () => {
    const { code, err } = await boot([say("r"), asm.outb(0xcf9, 6)], { flags: ["--no-reboot"] });
    expect(err).toContain("the guest reset");
    expect(code).toBe(6);
    const keyboard = await boot([asm.outb(0x64, 0xfe)], { flags: ["--no-reboot"] });
    expect(keyboard.err).toContain("i8042");
    expect(keyboard.code).toBe(6);
  });

  test("resets: without it, it starts again, also one that halts for good behind it", async () => {
    // The clock's RAM (index 0x40) outlives a reset; the first boot finds it zero.
    const index = asm.outb(0x70, 0x40);
    const times = 30;
    const again = [...asm.outb(0xcf9, 6), ...asm.halt];
    const count = [
      ...[0x66, 0xba, 0x71, 0x00, 0xec, 0xfe, 0xc0, 0xee],
      // cmp al, times; jae past the next reset
      ...[0x3c, times, 0x73, again.length],
    ];
    const { out, code } = await boot([say("b"), index, count, again, powerOff]);
    expect(out).toBe("b".repeat(times));
    expect(code).toBe(0);
  });

  test("faults three times: its registers are shown", async () => {
    const { code, err } = await boot([asm.ud2]);
    expect(err).toContain("triple fault");
    expect(err).toMatch(/rip 0000000001000200\b/);
    expect(code).toBe(8);
  });

  test("halts for good", async () => {
    const { code, err } = await boot([asm.halt]);
    expect(err).toContain("halted for good");
    expect(code).toBe(14);
  });

  test("outlived by its parent when the engine is killed", async () => {
    using folder = temporaryFolder();
    const kernel = `${folder.path}/bzImage`;
    writeGuest(kernel, say("up"), asm.spin);
    const command = [binary, "run", "--kernel", kernel, "--memory", "128M", "--name", "tiny"];
    const child = Bun.spawn([...command, "--json"], {
      stdout: "pipe",
      stderr: "pipe",
      env: process.env,
    });
    await child.stdout.getReader().read();
    const reader = child.stderr.getReader();
    const first = new TextDecoder().decode((await reader.read()).value).split("\n")[0] ?? "";
    const { pid } = JSON.parse(first) as { pid: number };
    process.kill(pid, "SIGKILL");
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      rest += new TextDecoder().decode(value);
    }
    expect(rest).toContain(`node 0 (pid ${pid}) was killed by SIGKILL`);
    expect(rest).toContain("out-of-memory");
    expect(await child.exited).toBe(10);
  });

  test.each([
    ["1", "broken invariant"],
    ["2", "SIGSEGV at address 0x8"],
  ])("outlived by its parent when the engine dies (planted %s)", async (kind, words) => {
    const { code, err } = await boot([asm.spin], { env: { SSIHV_TEST_CRASH: kind } });
    expect(err).toContain("VM tiny: the engine of node 0");
    expect(err).toContain(words);
    expect(err).not.toContain("bug in Bun");
    expect(code).toBe(10);
  });
});
