// `ssihv run --listen` and `ssihv join` from the built binary, with real engines and lanes over
// 127.0.0.1: the guest's end and an engine's death reach both commands. The guests are a few
// instructions long, so shadow paging is enough; a Linux boot is the lab's to show.

import { afterAll, describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { freePorts } from "../../src/base/free-ports.fixture.ts";
import { openDoor } from "./running-vm.ts";
import {
  binary,
  type Finished,
  hasKvm,
  isRoot,
  removeRuntimeFolder,
  run,
  temporaryFolder,
} from "./support.ts";
import { asm, eachPage, increment, say, writeGuest } from "./tiny-guest.ts";

afterAll(removeRuntimeFolder);

interface Both {
  readonly lead: Finished;
  readonly host: Finished;
}

async function boot(
  code: readonly number[][],
  meanwhile: (address: string) => Promise<void> = async () => undefined,
  address = `127.0.0.1:${freePorts(4)}`,
): Promise<Both> {
  using folder = temporaryFolder();
  const kernel = `${folder.path}/bzImage`;
  const { door, join } = openDoor(folder.path, address);
  writeGuest(kernel, ...code);
  const shape = ["--kernel", kernel, "--memory", "256M", "--nodes", "2", "--name", "tiny"];
  shape.push("--report");
  const [lead, host] = await Promise.all([
    run([binary, "run", ...shape, ...door]),
    run(join),
    meanwhile(address),
  ]);
  return { lead, host };
}

/** The engine of the command that joined there; undefined before it started one. */
async function joinedEngine(address: string): Promise<number | undefined> {
  const join = (await Bun.$`pgrep -f ${`join ${address} `}`.nothrow().text()).trim();
  if (join === "") return undefined;
  const engine = (await Bun.$`pgrep -P ${join}`.nothrow().text()).trim();
  return engine === "" ? undefined : Number(engine);
}

/** Cuts every TCP connection to a port of this host, as an administrator can: how many. */
async function cutAll(port: number): Promise<number> {
  return connections(port, ["-K"]);
}

async function connections(port: number, how: string[] = []): Promise<number> {
  const found = await Bun.$`ss ${how} -H -t -n state established dport = :${port}`
    .nothrow()
    .quiet();
  return found.text().trim().split("\n").filter(Boolean).length;
}

/** A cut while the nodes still agree on the clock ends the start, so that is let pass. */
const LINK_UP_MS = 300;

/** Whether this kernel lets us do that (root, INET_DIAG_DESTROY). */
async function canCut(): Promise<boolean> {
  if (Bun.which("ss") === null) return false;
  const closed = Promise.withResolvers<boolean>();
  const data = () => undefined;
  using listener = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data } });
  const socket = { data, close: () => closed.resolve(true), error: () => closed.resolve(true) };
  const probe = await Bun.connect({ hostname: "127.0.0.1", port: listener.port, socket });
  await cutAll(listener.port);
  setTimeout(() => closed.resolve(false), 500);
  const result = await closed.promise;
  probe.terminate();
  return result;
}

const soaking = process.env["SSIHV_SOAK"] === "1";
/** Registers nothing but in `make soak`. */
const testIfSoaking = soaking ? test.skipIf(!(await canCut())) : () => undefined;

/** RAM of node 1: the second half of 256 MiB. */
const REMOTE = 192 << 20;
const powerOff = asm.outw(0x604, 0x2000);

describe.skipIf(!hasKvm())("two commands, one VM (needs /dev/kvm)", () => {
  test("the guest's power-off ends both, and a page did cross", async () => {
    const { lead, host } = await boot([increment(REMOTE), say("hello"), powerOff]);
    expect(lead.out).toBe("hello");
    expect(host.out).toBe("");
    expect(host.err).toContain("VM tiny: this host is node 1 of 2 (1 vCPU(s), 128 MiB)");
    for (const { err } of [lead, host]) expect(err).toContain("VM tiny: the guest powered off");
    expect(lead.err).toMatch(/[1-9]\d* remote faults? .* 0 mismatches/);
    expect([lead.code, host.code]).toEqual([0, 0]);
    // Measured as the lanes came up, before the guest.
    expect(lead.err).toMatch(/node 0: a cache line in [\d.]+ ns, [\d.]+ GB\/s/);
    expect(lead.err).toMatch(/node 0 to node 1: a page in [\d.]+ us, [\d.]+ GB\/s/);
  });

  test("the guest's debug exit value is the status of both", async () => {
    const { lead, host } = await boot([asm.outb(0xf4, 0x10)]);
    expect([lead.code, host.code]).toEqual([33, 33]);
  });

  test("a port that lanes cannot have is named, with what to do", async () => {
    const refused = async (port: number, why: string) => {
      const { lead, host } = await boot([powerOff], undefined, `127.0.0.1:${port}`);
      expect([lead.code, host.code]).toEqual([10, 10]);
      const message = `node 0: cannot listen on 127.0.0.1:${port + 1}: ${why}`;
      for (const { err } of [lead, host]) expect(err).toContain(message);
    };
    const first = freePorts(4);
    const taken = { hostname: "127.0.0.1", port: first + 1, socket: { data: () => undefined } };
    using _ = Bun.listen(taken);
    await refused(first, "something listens there already; choose another port (EADDRINUSE)");
    // Nobody but root can have the port before it, either. Containers often guard none.
    const free = Number(readFileSync("/proc/sys/net/ipv4/ip_unprivileged_port_start", "utf8"));
    if (isRoot && free > 2) await refused(1, "engines give up the privileges that ports below");
  });

  // Time decides how many cuts meet a transfer: for `make soak`, not for a machine under load.
  testIfSoaking("lanes that are cut go on, no page lost (needs ss -K)", async () => {
    const pages = 12_000;
    const increments = eachPage(REMOTE, pages, asm.incrementAt);
    const compares = eachPage(REMOTE, pages, asm.expectAt(1));
    let cuts = 0;
    const code = [increments, compares, say("whole"), powerOff];
    const { lead, host } = await boot(code, async (address) => {
      const lanes = Number(address.split(":")[1]) + 1;
      const end = Date.now() + 20_000;
      while ((await connections(lanes)) === 0 && Date.now() < end) await Bun.sleep(5);
      await Bun.sleep(LINK_UP_MS);
      for (; cuts < 5 && Date.now() < end; await Bun.sleep(30)) {
        cuts += await cutAll(lanes);
      }
    });
    expect(lead.out).toBe("whole");
    expect([lead.code, host.code]).toEqual([0, 0]);
    expect(cuts).toBeGreaterThanOrEqual(5);
    expect(lead.err).toContain("node 1 lane: connected again");
  });

  test("an engine that is killed ends the VM on both sides, which name it", async () => {
    const forever = asm.waitFor(0x3fd, 0x80);
    const { lead, host } = await boot([say("up"), forever], async (address) => {
      for (;;) {
        const pid = await joinedEngine(address);
        if (pid !== undefined) return void process.kill(pid, "SIGKILL");
        await Bun.sleep(5);
      }
    });
    expect([lead.code, host.code]).toEqual([10, 10]);
    // Node 0 may be first to tell: its lane broke.
    const told = /the engine of node 1 \(.*\) was killed by SIGKILL|a vCPU is lost/;
    for (const { err } of [lead, host]) expect(err).toMatch(told);
  });

  test("no lead: said with what to type there", async () => {
    using folder = temporaryFolder();
    const { join } = openDoor(folder.path, "127.0.0.1:1");
    const { code, err } = await run([...join, "--wait", "1ms"]);
    expect(code).toBe(10);
    expect(err).toContain("no VM to join at 127.0.0.1:1 within 1 s: nobody listens there");
    expect(err).toContain("ssihv run --listen");
  });
});
