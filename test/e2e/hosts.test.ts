// `ssihv run --hosts` as its users meet it: two "hosts" on this machine, each behind a real sshd,
// the built binary brought to them, a VM over both, and nothing left whatever ends it.

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { appendFileSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { expectCooked, inShell } from "../pseudo-terminal.ts";
import { key, Listener, powerOff, REMOTE } from "./running-vm.ts";
import { SshHosts } from "./ssh-hosts.ts";
import { binary, type Finished, hasKvm, isRoot, removeRuntimeFolder, run } from "./support.ts";
import { asm, increment, say, writeGuest } from "./tiny-guest.ts";

/** sshd is root's, and serves root. */
const able = isRoot && hasKvm();

let hosts: SshHosts;

beforeAll(async () => {
  if (isRoot) hosts = await SshHosts.start("a", "b");
}, 120_000);

afterAll(async () => {
  await hosts?.[Symbol.asyncDispose]();
  removeRuntimeFolder();
});

function kernel(name: string, ...code: readonly (readonly number[])[]): string {
  const path = `${hosts.folder}/${name}`;
  writeGuest(path, ...code);
  return path;
}

/** These guests run where a Linux would not, hence --accept-unfit. */
function words(guest: string, over: string, ...more: string[]): string[] {
  const shape = ["--kernel", guest, "--memory", "256M", "--name", "tiny", "--accept-unfit"];
  return [binary, "run", "--hosts", over, "--ssh", hosts.ssh, ...shape, ...more];
}

function runOver(over: string, guest: string, ...more: string[]): Promise<Finished> {
  return run(words(guest, over, ...more));
}

/** A VM whose guest has said hello, and waits. */
async function started(over = "a,b", ...more: string[]) {
  const guest = kernel("waiting", increment(REMOTE), say("hello"), key, powerOff);
  const child = Bun.spawn(words(guest, over, ...more), {
    stdin: "pipe",
    stdout: "pipe",
    stderr: "pipe",
    env: process.env,
  });
  const out = new Listener(child.stdout);
  const err = new Listener(child.stderr);
  await out.until("hello").catch(async (error: unknown) => {
    await err.end();
    throw new Error(err.text, { cause: error });
  });
  return { child, out, err };
}

/** Everything of 64 hexadecimal digits that a list of processes shows: arguments, environments. */
function shownSecrets(): Set<string> {
  const found = new Set<string>();
  for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
    for (const file of ["cmdline", "environ"]) {
      let text = "";
      try {
        text = readFileSync(`/proc/${pid}/${file}`, "latin1");
      } catch {
        // It ended meanwhile.
      }
      for (const [word] of text.matchAll(/[0-9a-f]{64}/g)) found.add(word);
    }
  }
  return found;
}

describe.skipIf(!able)("ssihv run --hosts (needs root and /dev/kvm)", () => {
  test("brings ssihv to both, boots over them, and leaves its copy alone", async () => {
    const guest = kernel("off", increment(REMOTE), say("hello"), powerOff);
    const first = await runOver("a,b", guest);
    expect([first.code, first.out]).toEqual([0, "hello"]);
    for (const host of ["a", "b"]) {
      expect(first.err).toContain(`ssihv: host ${host}: copying ssihv there: 0 of `);
      const [copy = ""] = hosts.copies(host);
      expect(statSync(copy).mode & 0o777).toBe(0o700);
      expect(Bun.file(copy).size).toBe(Bun.file(binary).size);
    }
    expect(first.err).toContain("VM tiny: host b joined as node 1");
    expect(first.err).toContain("VM tiny: the guest powered off");
    expect(first.err).toMatch(/[1-9]\d* remote faults? .* 0 mismatches/);
    await hosts.areIdle();

    const again = await runOver("a,b", guest);
    expect(again.code).toBe(0);
    expect(again.err).not.toContain("copying");

    // What lies there under its name is another file: it is replaced.
    appendFileSync(hosts.copies("b")[0] ?? "", "x");
    const mended = await runOver("a,b", guest, "--json");
    expect([mended.code, mended.out]).toEqual([0, "hello"]);
    const events = mended.err
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    const copied = events.filter(({ event }) => event === "copying");
    expect(new Set(copied.map(({ host }) => host))).toEqual(new Set(["b"]));
    expect(events.at(-1)).toMatchObject({ event: "ended", reason: "powered_off", status: 0 });
    expect(Bun.file(hosts.copies("b")[0] ?? "").size).toBe(Bun.file(binary).size);
    await hosts.areIdle();
  });

  test("what is typed reaches the guest; no argument or environment shows a key", async () => {
    const { child, out, err } = await started();
    const [copy = ""] = hosts.copies("a");
    // The copy's hash alone, which also shows that something was looked at.
    expect([...shownSecrets()]).toEqual([copy.split("/").at(-2) ?? ""]);
    child.stdin.write("x");
    await child.stdin.end();
    await Promise.all([out.end(), err.end()]);
    expect([await child.exited, out.text]).toEqual([0, "hello"]);
    expect(err.text).not.toMatch(/[0-9a-f]{64}/);
    await hosts.areIdle();
  });

  test("this host leads without ssh, the guest's debug exit is the status", async () => {
    const guest = kernel("debug", increment(REMOTE), asm.outb(0xf4, 0x10));
    const { code, err } = await runOver("localhost,b", guest);
    expect(err).toContain("host b joined as node 1");
    expect(code).toBe(33);
    await hosts.areIdle();
  });

  test("a host that only lends memory", async () => {
    const pages = eachOf(20_000);
    const guest = kernel("lent", pages, say("hello"), powerOff);
    const shape = ["--memory-hosts", "b", "--node-memory", "64M"];
    const { code, out, err } = await runOver("a", guest, ...shape);
    expect(err).toContain("host b joined as node 1");
    expect([code, out]).toEqual([0, "hello"]);
    await hosts.areIdle();
  });
});

/** Writes to so many pages behind the guest's own. */
function eachOf(pages: number): number[] {
  // mov eax, 32 MiB; mov ecx, pages; inc byte ptr [rax]; add eax, 4096; dec ecx; jnz back.
  const count = [pages & 0xff, (pages >> 8) & 0xff, 0, 0];
  return [0xb8, 0, 0, 0, 2, 0xb9, ...count, 0xfe, 0, 0x05, 0, 0x10, 0, 0, 0xff, 0xc9, 0x75, 0xf5];
}

describe.skipIf(!able)("nothing is left (needs root and /dev/kvm)", () => {
  test("after Ctrl-A X, with the terminal as before", async () => {
    const guest = kernel("typed", increment(REMOTE), say("hello"), asm.waitFor(0x3fd, 0x80));
    await using terminal = inShell(words(guest, "a,b"));
    await terminal.until("hello");
    terminal.type("\x01x");
    await terminal.until("all-done");
    expect(terminal.text).toContain("VM tiny: stopped");
    expect(terminal.text).toContain("status=0");
    expectCooked(terminal.text);
    await hosts.areIdle();
  });

  test("after SIGTERM", async () => {
    const { child, err } = await started();
    child.kill("SIGTERM");
    await err.end();
    expect(await child.exited).toBe(143);
    expect(err.text).toContain("VM tiny: stopped");
    await hosts.areIdle();
  });

  test("after kill -9 of the command", async () => {
    const { child } = await started();
    expect(hosts.processes("b").length).toBeGreaterThanOrEqual(3);
    child.kill("SIGKILL");
    await child.exited;
    await hosts.areIdle();
  });

  test("after kill -9 of the command while ssihv is copied", async () => {
    await cutWhileCopying();
    expect(hosts.copies("b")).toEqual([]);
    await hosts.areIdle();
  });

  test.each(["a", "b"])("after the connection to %s is cut: it is named", async (cut) => {
    const { child, err } = await started();
    // The sshd of the connection, as an administrator ends it.
    for (const pid of hosts.processes(cut).slice(0, 1)) process.kill(pid, "SIGKILL");
    await err.end();
    expect(await child.exited).toBe(10);
    expect(err.text).toContain(`host ${cut}: its connection ended`);
    await hosts.areIdle();
  });
});

/** Ends the command while a part of the file is on the other host. */
async function cutWhileCopying(): Promise<void> {
  const cache = `${hosts.host("b").home}/.cache`;
  const guest = kernel("never", powerOff);
  const begun = () => hosts.files("b").some((path) => path.includes("/part."));
  for (let attempt = 0; attempt < 20; attempt++) {
    await run(["rm", "-rf", cache]);
    const child = Bun.spawn(words(guest, "b"), { stdout: "ignore", stderr: "ignore" });
    while (child.exitCode === null && !begun()) await Bun.sleep(1);
    child.kill("SIGKILL");
    await child.exited;
    // Quicker than we looked: once more.
    if (child.signalCode === "SIGKILL") return;
  }
  throw new Error("no copy was seen under way");
}

describe.skipIf(!isRoot)("hosts that cannot be used (needs root)", () => {
  test("all are named with the reason, and nothing is left on the others", async () => {
    const guest = kernel("none", powerOff);
    writeFileSync(`${hosts.folder}/config-2`, "Host away\n  HostName 127.0.0.4\n  Port 1\n");
    appendFileSync(`${hosts.folder}/config-2`, `Include ${hosts.folder}/config\n`);
    const ssh = `ssh -F ${hosts.folder}/config-2`;
    const flags = ["--kernel", guest, "--ssh", ssh, "--hosts", "a,away,no-such-host.invalid"];
    const { code, out, err } = await run([binary, "run", ...flags, "--accept-unfit"]);
    expect([code, out]).toEqual([10, ""]);
    expect(err).toContain("host away cannot be used: ssh: connect to host 127.0.0.4 port 1:");
    expect(err).toContain("host no-such-host.invalid cannot be used:");
    expect(err).toContain(`ssh -F ${hosts.folder}/config-2 -o BatchMode=yes away true`);
    await hosts.areIdle();
  });
});
