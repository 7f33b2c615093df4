// Engines shut in, as the kernel tells it of them while their guest runs.

import { afterAll, describe, expect, test } from "bun:test";
import { chmodSync, existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

import type { VmShown } from "../../src/node/vm-view.ts";
import { childrenOf, ECHO, until } from "./cluster-processes.ts";
import { binary, hasKvm, isRoot, removeRuntimeFolder, run, temporaryFolder } from "./support.ts";
import { asm, increment, say, writeGuest } from "./tiny-guest.ts";

afterAll(removeRuntimeFolder);

const REMOTE = 192 << 20;
const FIRST_USER = 0x7000_0000;

/** Fields of /proc/PID/task/TID/status that every thread of a process agrees on. */
function ofAllThreads(pid: number, field: string): string {
  const values = readdirSync(`/proc/${pid}/task`).flatMap((tid) => {
    try {
      const text = readFileSync(`/proc/${pid}/task/${tid}/status`, "utf8");
      return new RegExp(`^${field}:[ \\t]*(.*)$`, "m").exec(text)?.[1]?.trim() ?? "absent";
    } catch {
      // A thread that has just ended.
      return [];
    }
  });
  return [...new Set(values)].join(" and ");
}

interface Running extends AsyncDisposable {
  readonly engines: readonly number[];
  readonly console: () => string;
  show(): Promise<VmShown>;
  type(text: string): void;
  ended(): Promise<number>;
}

async function start(name: string, kernel: string, ...flags: string[]): Promise<Running> {
  const command = ["run", "--name", name, "--kernel", kernel, "--memory", "256M", ...flags];
  const child = Bun.spawn([binary, ...command], {
    env: process.env,
    stdin: "pipe",
    stdout: "pipe",
    stderr: "inherit",
  });
  let console = "";
  void (async () => {
    const decoder = new TextDecoder();
    for await (const chunk of child.stdout) console += decoder.decode(chunk);
  })();
  await until("the guest says hello", () => console.includes("hello"));
  return {
    engines: childrenOf(child.pid),
    console: () => console,
    show: async () => {
      const { out } = await run([binary, "vm", "show", name, "--json"]);
      return JSON.parse(out) as VmShown;
    },
    type: (text) => {
      child.stdin.write(text);
      child.stdin.flush();
    },
    ended: () => child.exited,
    [Symbol.asyncDispose]: async () => {
      child.kill("SIGTERM");
      await child.exited;
    },
  };
}

describe.skipIf(!hasKvm() || !isRoot)("an engine that runs a guest (needs /dev/kvm, root)", () => {
  test("is a user of its VM's own, without root's rights, all threads filtered", async () => {
    using folder = temporaryFolder("/tmp");
    const kernel = join(folder.path, "guest");
    writeGuest(kernel, increment(REMOTE), say("hello"), ECHO);
    await using vm = await start("shut-in", kernel, "--nodes", "2", "--cpus", "2");
    expect(vm.engines.length).toBe(2);
    const { nodes } = await vm.show();
    const user = nodes[0]?.sandbox?.user ?? 0;
    expect(user).toBeGreaterThanOrEqual(FIRST_USER);
    for (const pid of vm.engines) {
      expect(ofAllThreads(pid, "Uid")).toBe(Array(4).fill(user).join("\t"));
      expect(ofAllThreads(pid, "Gid")).toBe(Array(4).fill(user).join("\t"));
      expect(ofAllThreads(pid, "Groups")).toBe("");
      expect(ofAllThreads(pid, "NoNewPrivs")).toBe("1");
      expect(ofAllThreads(pid, "Seccomp")).toBe("2");
      // Nothing, but in containers what lets the pager come before a spinning vCPU: CAP_SYS_NICE.
      const capabilities = ofAllThreads(pid, "CapEff")
        .split(" and ")
        .map((text) => `0x${text}`);
      for (const each of capabilities) expect(BigInt(each) & ~(1n << 23n)).toBe(0n);
    }
    for (const { sandbox } of nodes) {
      expect(sandbox).toEqual({ user, filter: true, missing: [] });
    }
    const { out } = await run([binary, "vm", "show", "shut-in"]);
    expect(out).toContain(
      `sandbox of node 0, 1: user ${user}; no new privileges, system calls filtered\n`,
    );
  });

  test("starts its guest anew from an image that its user may not read", async () => {
    using folder = temporaryFolder("/tmp");
    const kernel = join(folder.path, "guest");
    // 0xfe to port 0x64 is a reset.
    const typed = [...asm.waitFor(0x3fd, 1), ...asm.echo(0x3f8)];
    writeGuest(kernel, say("hello"), typed, asm.outb(0x64, 0xfe), asm.spin);
    chmodSync(kernel, 0o600);
    await using vm = await start("anew", kernel);
    vm.type("x");
    await until("it says hello again", () => vm.console().split("hello").length === 3);
  });

  test("is as it was before where its user turns that off", async () => {
    using folder = temporaryFolder("/tmp");
    const kernel = join(folder.path, "guest");
    writeGuest(kernel, say("hello"), ECHO);
    await using vm = await start("open", kernel, "--sandbox", "off");
    for (const pid of vm.engines) {
      expect([ofAllThreads(pid, "Seccomp"), ofAllThreads(pid, "NoNewPrivs")]).toEqual(["0", "0"]);
      expect(existsSync(`/proc/${pid}`)).toBe(true);
    }
    const { nodes } = await vm.show();
    expect(nodes[0]?.sandbox).toEqual({
      filter: false,
      missing: ["it was turned off (--sandbox off)"],
    });
  });

  test("is not started where the sandbox is required and cannot be", async () => {
    using folder = temporaryFolder("/tmp");
    const kernel = join(folder.path, "guest");
    writeGuest(kernel, say("hello"), ECHO);
    chmodSync(folder.path, 0o700);
    const flags = ["--nodes", "2", "--cpus", "2", "--memory", "256M", "--sandbox", "required"];
    const command = [binary, "run", "--kernel", kernel, ...flags];
    const { code, err } = await run(command, { env: { TMPDIR: folder.path } });
    expect([code, err]).toEqual([4, expect.stringContaining("is closed to other users")]);
  });
});
