// The guest's initramfs, without the VMM under test: Debian's cloud kernel in plain QEMU.

import { describe, expect, test } from "bun:test";
import { guestInitrd, guestKernel, guestRun } from "./guest-image.ts";
import { lockLab } from "./lock.ts";
import { findTool, labMissing } from "./tools.ts";

const reason = labMissing();
if (reason !== undefined) console.warn(`skipped: guest image tests: ${reason}`);
const testLimitMs = 300_000;

interface Boot {
  /** Words added to the kernel command line. */
  append?: string;
  /** Typed line by line, each when the prompt is there. */
  typed?: readonly string[];
  initrd?: string;
}

async function boot(options: Boot): Promise<string> {
  const qemu = await findTool("qemu-system-x86_64");
  const kernel = await guestKernel("cloud");
  const initrd = options.initrd ?? (await guestInitrd());
  const unlock = await lockLab();
  const append = `console=ttyS0 quiet panic=-1 ${options.append ?? ""}`;
  const guest = Bun.spawn(
    ["setpriv", "--pdeathsig", "KILL", "--", "timeout", "60", ...qemu.command]
      .concat(["-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "256", "-nodefaults"])
      .concat(["-display", "none", "-serial", "stdio", "-no-reboot"])
      .concat(["-kernel", kernel, "-initrd", initrd, "-append", append]),
    { env: qemu.env, stdin: "pipe", stdout: "pipe" },
  );
  let console = "";
  let answered = 0;
  for await (const chunk of guest.stdout.pipeThrough(new TextDecoderStream())) {
    console += chunk;
    const prompts = console.split("guest# ").length - 1;
    const line = options.typed?.[answered];
    if (prompts <= answered || line === undefined) continue;
    answered += 1;
    guest.stdin.write(`${line}\n`);
    guest.stdin.flush();
  }
  await guest.exited;
  await unlock();
  return console.replaceAll("\r", "");
}

describe.skipIf(reason !== undefined)("the guest", () => {
  test(
    "runs the script of its command line, with added files, and powers off",
    async () => {
      const tool = new TextEncoder().encode("#!/bin/sh\necho from the tool: $1\n");
      const initrd = await guestInitrd([{ path: "opt/lib/tool", bytes: tool }]);
      const console = await boot({
        initrd,
        append: guestRun("/opt/lib/tool 'a b'; nproc; exit 5"),
      });
      expect(console).toMatch(/^.*ssihv-guest: ready cpus=2 nodes=1 uptime=[0-9.]+$/m);
      expect(console).toContain("from the tool: a b\n2\nssihv-guest: exit 5\n");
      expect(console).toContain("reboot: Power down");
    },
    testLimitMs,
  );

  test(
    "without a script answers on the serial console and reboots when told",
    async () => {
      // Ctrl-C must end what the shell runs: a command that ignored it would go on.
      const interrupted = "sh -c 'kill -INT $$; echo deaf'";
      const typed = ["echo sum $((6 * 7))", interrupted, "tty; reboot"];
      const console = await boot({ typed });
      expect(console).toContain("\nsum 42\n");
      expect(console).not.toContain("\ndeaf\n");
      expect(console).toContain("\n/dev/ttyS0\n");
      expect(console).toContain("reboot: Restarting system");
    },
    testLimitMs,
  );

  test(
    "gives a shell after its script when asked for both",
    async () => {
      const append = `${guestRun("echo the script ran; exit 3")} ssihv.shell`;
      const console = await boot({ append, typed: ["echo the shell ran; exit"] });
      expect(console).toMatch(/\nthe script ran\nssihv-guest: exit 3\n.*\nthe shell ran\n/s);
      expect(console).toContain("reboot: Power down");
    },
    testLimitMs,
  );
});

test("the initramfs is the same file for the same content, another for other content", async () => {
  const bytes = new Uint8Array([1]);
  const paths = [
    await guestInitrd([{ path: "a", bytes }]),
    await guestInitrd([{ path: "a", bytes }]),
    await guestInitrd([{ path: "b", bytes }]),
  ];
  expect(paths[0]).toBe(paths[1] ?? "");
  expect(paths[0]).not.toBe(paths[2] ?? "");
  for (const path of new Set(paths)) await Bun.file(path).delete();
});

test("a script that would not fit the command line is refused", () => {
  expect(() => guestRun("x".repeat(1500))).toThrow("too long");
});
