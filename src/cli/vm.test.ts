// `ssihv vm` against real `ssihv run` and `ssihv join` commands over fake engines: what each shows,
// which name means which, and how errors are said.

import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { mainHere, type Ran } from "./main-here.fixture.ts";
import { gpaFlag } from "./vm.ts";

const MAIN = [process.execPath, join(import.meta.dir, "fake-main.fixture.ts")];
const KERNEL = MAIN[1] ?? "";
const base = mkdtempSync(join(tmpdir(), "ssihv-vm-"));
afterAll(() => rmSync(base, { recursive: true, force: true }));

const KEY = join(base, "vm.key");
beforeAll(() => writeFileSync(KEY, "5a".repeat(32), { mode: 0o600 }));

/** A folder of admin sockets, and the commands over it. */
class Place implements AsyncDisposable {
  private readonly folder = mkdtempSync(join(base, "run-"));
  private readonly children: ReturnType<Place["spawn"]>[] = [];
  private readonly before = process.env["SSIHV_RUNTIME_DIR"];

  constructor() {
    process.env["SSIHV_RUNTIME_DIR"] = this.folder;
  }

  sockets(): string[] {
    return readdirSync(this.folder).sort();
  }

  /** In this process: a test asks often, and starting costs. */
  vm(...args: string[]): Promise<Ran> {
    return mainHere("vm", ...args);
  }

  async json(...args: string[]): Promise<unknown> {
    const { out, err, status } = await this.vm(...args, "--json");
    expect([err, status]).toEqual(["", 0]);
    return JSON.parse(out);
  }

  /** A VM that runs until the end of the block; returns once its guest has spoken and all nodes
   * have started: which is first is nobody's to say. */
  async run(...flags: string[]) {
    const script = flags.includes("--cmdline") ? [] : ["--cmdline", "only=0 say=up"];
    const shape = ["run", "--kernel", KERNEL, "--memory", "64M", ...script];
    const child = this.start([...shape, ...flags]);
    await child.stdout.getReader().read();
    await until(async () => {
      const vms = (await this.json("list")) as { pid: number; state: string }[];
      return vms.some(({ pid, state }) => pid === child.pid && state === "running");
    });
    return child;
  }

  start(args: string[]) {
    const child = this.spawn(args);
    this.children.push(child);
    return child;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const child of this.children) {
      child.kill("SIGTERM");
      await child.exited;
    }
    if (this.before === undefined) delete process.env["SSIHV_RUNTIME_DIR"];
    else process.env["SSIHV_RUNTIME_DIR"] = this.before;
  }

  private spawn(args: string[]) {
    return Bun.spawn([...MAIN, ...args], {
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
      env: { ...process.env, SSIHV_RUNTIME_DIR: this.folder },
    });
  }
}

async function until(holds: () => Promise<boolean>): Promise<void> {
  while (!(await holds())) await Bun.sleep(10);
}

test("list, show and pages of a VM that runs", async () => {
  await using place = new Place();
  const booted = "only=0 say=Run_/init_as_init_process";
  const demo = await place.run("--name", "demo", "--nodes", "2", "--cmdline", booted);
  expect((await place.vm("list")).out).toMatch(/^NAME .*\ndemo +running +2 +2 +64 +\d+ s +\d+\n$/);
  expect(await place.json("list")).toMatchObject([
    { name: "demo", vm: "demo", role: "lead", state: "running", nodes: 2, pid: demo.pid },
  ]);
  const shown = await place.json("show", "demo");
  expect(shown).toMatchObject({
    state: "running",
    nodes: [0, 1].map((node) => ({ node, silent: null, stats: { node, oldest_fault_us: 1234 } })),
  });
  expect(shown).toMatchObject({ nodes: [{ stats: { bootSeconds: expect.any(Number) } }, {}] });
  expect((await place.vm("show")).out).toMatch(/OLDEST-FAULT-US\n +0 .* 1234\n +1 .* 1234\n$/);
  const pages = await place.vm("pages", "--gpa", "0x1000", "--count", "2");
  expect(pages.out.split("\n")[1]).toMatch(
    /^0x1000 +0 +shared +1 +0,1 +7 +0:ro 1:ro +upgrade by node 1, phase strict; node 0 keeps/,
  );
  expect(await place.json("pages", "--vm", "demo", "--gpa", "4097")).toMatchObject({
    vm: "demo",
    pages: [{ gpa: 4096, home: 0, copies: [{ node: 0 }, { node: 1, waitsFor: "upgrade" }] }],
    silent: [],
  });
});

test("names: the only one, a taken one, a second one, and none after the end", async () => {
  await using place = new Place();
  await place.run();
  const second = await place.run();
  expect(place.sockets()).toEqual(["vm-2.sock", "vm.sock"]);
  const named = place.start(["run", "--kernel", KERNEL, "--name", "vm"]);
  expect(await named.exited).toBe(2);
  expect(await named.stderr.text()).toContain("a VM named vm runs here already (pid ");
  const both = await place.vm("show");
  expect([both.status, both.out]).toEqual([2, ""]);
  expect(both.err).toContain("more than one VM runs here\n  try: name one: vm, vm-2");
  second.kill("SIGTERM");
  await second.exited;
  expect(place.sockets()).toEqual(["vm.sock"]);
  expect((await place.vm("show")).status).toBe(0);
});

test("errors: no VM, none of that name, no such address, wrong flags", async () => {
  await using place = new Place();
  expect(await place.json("list")).toEqual([]);
  const none = await place.vm("show");
  expect(none.status).toBe(2);
  expect(none.err).toContain("no VM of this user runs on this host");
  await place.run("--name", "demo");
  const wrong = await place.vm("show", "dmeo");
  expect(wrong.status).toBe(2);
  expect(wrong.err).toContain("did you mean demo?");
  const hole = await place.vm("pages", "--gpa", "0xc0000000", "--json");
  expect(hole.status).toBe(2);
  expect(JSON.parse(hole.err)).toEqual({
    error: {
      code: "gpa_invalid",
      message: "VM demo: guest address 0xc0000000 is not RAM",
      hint: "its RAM is 0x0 to 0x3ffffff (node 0)",
    },
  });
  const missing = await place.vm("pages");
  expect([missing.status, missing.err.split("\n")[0]]).toEqual([
    2,
    "ssihv: --gpa is missing: which page?",
  ]);
  expect((await place.vm("pages", "--gpa", "0x1000", "--count", "1025")).status).toBe(2);
});

test("an address is hexadecimal or decimal, exactly", () => {
  expect(["0x10", "0X1fFf", "4096"].map(gpaFlag)).toEqual([16, 0x1fff, 4096]);
  for (const text of ["", "0x", "1g", "-1", "1.5", "ff", "0x20000000000000", "9007199254740992"]) {
    expect(() => gpaFlag(text)).toThrow("is not an address");
  }
});

test("an engine that does not answer is named, the others are shown", async () => {
  await using place = new Place();
  await place.run("--nodes", "2", "--cmdline", "only=1 mute only=0 say=up");
  const [shown, { out, status }] = await Promise.all([
    place.json("show"),
    place.vm("pages", "--gpa", "0"),
  ]);
  const { nodes } = shown as { nodes: { silent: string | null }[] };
  expect(nodes.map(({ silent }) => silent)).toEqual([
    null,
    "its engine did not answer within 2.5 s",
  ]);
  expect(status).toBe(0);
  expect(out).toEndWith("node 1: its engine did not answer within 2.5 s\n");
});

test("a command that is stopped does not hold up the list", async () => {
  await using place = new Place();
  const stopped = await place.run("--name", "sleepy");
  stopped.kill("SIGSTOP");
  try {
    const [list, table] = await Promise.all([place.json("list"), place.vm("list")]);
    const [first] = list as { name: string; silent: string }[];
    expect(first?.name).toBe("sleepy");
    expect(first?.silent).toContain("did not answer for 2 s");
    expect(table.out).toContain("sleepy  no answer\n");
  } finally {
    stopped.kill("SIGCONT");
  }
});

test("SIGUSR1: every engine tells what is open, and the VM goes on", async () => {
  await using place = new Place();
  const demo = await place.run("--name", "demo", "--nodes", "2", "--json");
  demo.kill("SIGUSR1");
  const reader = demo.stderr.getReader();
  let err = "";
  await until(async () => {
    err += new TextDecoder().decode((await reader.read()).value);
    return [0, 1].every((node) => err.includes(`"text":"node ${node}: nothing is open"`));
  });
  expect(await place.json("show")).toMatchObject({ state: "running" });
  reader.releaseLock();
});

test("over two hosts: the lead asks all, the joined host its own", async () => {
  await using place = new Place();
  const probe = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data: () => undefined } });
  const address = `127.0.0.1:${probe.port}`;
  probe.stop(true);
  const door = ["--listen", address, "--key-file", KEY];
  const lead = place.start([
    ...["run", "--kernel", KERNEL, "--memory", "64M", "--name", "demo", "--nodes", "2"],
    ...["--cmdline", "only=0 say=up", ...door],
  ]);
  await until(async () => {
    const [first] = (await place.json("list")) as { state: string }[];
    return first?.state === "waiting";
  });
  expect(await place.json("show")).toMatchObject({
    nodes: [{ pid: expect.any(Number) }, { pid: null, silent: "no host has joined with it yet" }],
  });
  const host = place.start(["join", address, "--key-file", KEY]);
  await lead.stdout.getReader().read();
  await until(async () => place.sockets().includes("demo.1.sock"));
  expect(await place.json("show", "demo")).toMatchObject({
    role: "lead",
    nodes: [{ stats: { node: 0 } }, { stats: { node: 1 }, host: expect.any(String) }],
  });
  const { nodes, node, role } = (await place.json("show", "demo/1")) as {
    nodes: object[];
    node: number;
    role: string;
  };
  expect([role, node]).toEqual(["node", 1]);
  expect(nodes).toMatchObject([{ node: 1, stats: { node: 1 } }]);
  // Node 0 has the entry: from here only the copy is known.
  expect(await place.json("pages", "--vm", "demo/1", "--gpa", "0")).toMatchObject({
    pages: [{ home: 0, state: null, copies: [{ node: 1, access: "shared" }] }],
  });
  lead.kill("SIGUSR1");
  const heard = async (child: typeof host, node: number) => {
    const reader = child.stderr.getReader();
    let err = "";
    while (!err.includes(`demo/${node}: node ${node}: nothing is open`)) {
      err += new TextDecoder().decode((await reader.read()).value);
    }
    reader.releaseLock();
  };
  await Promise.all([heard(lead, 1), heard(host, 1)]);
});
