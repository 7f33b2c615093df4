// `ssihv vm` against a coordinator and its agents, all as commands of their own over fake engines:
// what each says, shows and ends with, from a file to a destroyed VM.

import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { freePorts } from "../base/free-ports.fixture.ts";

const MAIN = [process.execPath, join(import.meta.dir, "fake-main.fixture.ts")];
const base = mkdtempSync(join(tmpdir(), "ssihv-vm-cluster-"));
const port = freePorts(3);
const vmPort = freePorts(64);

const env = {
  ...process.env,
  SSIHV_RUNTIME_DIR: join(base, "run"),
  SSIHV_CERTS: join(base, "certs"),
  SSIHV_COORDINATOR: "",
};

type Child = Bun.Subprocess<"pipe", "pipe", "pipe">;
const children: Child[] = [];

function spawn(args: readonly string[]): Child {
  const child = Bun.spawn([...MAIN, ...args], {
    env,
    stdin: "pipe",
    stdout: "pipe",
    stderr: "pipe",
  });
  children.push(child);
  return child;
}

async function ssihv(...args: string[]) {
  const child = Bun.spawn([...MAIN, ...args], { env, stdout: "pipe", stderr: "pipe" });
  const [out, err] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { code: await child.exited, out, err };
}

async function says(child: Child, text: string): Promise<void> {
  let said = "";
  const decoder = new TextDecoder();
  for await (const chunk of child.stderr) {
    said += decoder.decode(chunk, { stream: true });
    if (said.includes(text)) return;
  }
  throw new Error(`it did not say ${text}: ${said}`);
}

/** What a console shows. */
class Screen {
  private readonly child: Child;
  private readonly reader: { read(): Promise<{ done: boolean; value?: Uint8Array | undefined }> };
  private seen = "";

  constructor(child: Child) {
    this.child = child;
    this.reader = child.stdout.getReader();
  }

  async shows(text: string): Promise<void> {
    while (!this.seen.includes(text)) {
      const { done, value } = await this.reader.read();
      if (done) throw new Error(`the console ended without ${text} at ${this.seen}`);
      this.seen += new TextDecoder().decode(value);
    }
  }

  async type(text: string): Promise<void> {
    this.child.stdin.write(text);
    await this.child.stdin.flush();
  }
}

function file(name: string, cmdline: string, nodes = 2, kernel = "/etc/passwd"): string {
  const path = join(base, `${name}.yaml`);
  const shape = Array.from({ length: nodes }, () => "  - { cpus: 1, memory: 128M }").join("\n");
  const text = `name: ${name}\nnodes:\n${shape}\nkernel: ${kernel}\ncmdline: "${cmdline}"\n`;
  writeFileSync(path, text);
  return path;
}

beforeAll(async () => {
  expect((await ssihv("certs", "init")).code).toBe(0);
  const flags = ["--listen", `127.0.0.1:${port}`, "--state", join(base, "state")];
  const vmPorts = ["--vm-ports", String(vmPort)];
  await says(spawn(["coordinator", ...flags, ...vmPorts]), "API on port");
  for (const name of ["host-a", "host-b"]) {
    const token = (await ssihv("cluster", "token", name)).out.trim();
    const state = ["--state", join(base, name), "--cpus", "2", "--memory", "4G"];
    const node = spawn(["node", "--join", "-", "--name", name, ...state]);
    node.stdin.write(`${token}\n`);
    node.stdin.end();
    await says(node, "coordinator: connected");
  }
}, 30_000);

afterAll(async () => {
  for (const child of children) child.kill("SIGTERM");
  await Promise.all(children.map(({ exited }) => exited));
  // Nothing is left: no socket of a VM, an agent or the coordinator.
  const left = readdirSync(env.SSIHV_RUNTIME_DIR);
  rmSync(base, { recursive: true, force: true });
  expect(left).toEqual([]);
}, 30_000);

test("from a file to a VM that runs, its console, and its end", async () => {
  expect((await ssihv("vm", "list")).out).toMatch(/^NAME +STATE .*HOSTS\n$/);
  const made = await ssihv(
    "vm",
    "create",
    "-f",
    file("demo", "say=hello only=0 repeat"),
    "--start",
  );
  expect([made.code, made.out]).toEqual([0, ""]);
  expect(made.err).toMatch(/^ssihv: VM demo: node 0 on host-[ab], node 1 on host-[ab]\n/);
  expect(made.err).toMatch(/VM demo: running after \d+\.\d s\n$/);
  const twice = await ssihv("vm", "start", "demo", "--json");
  expect([twice.code, JSON.parse(twice.err).error.code]).toEqual([2, "vm_busy"]);

  expect((await ssihv("vm", "list")).out).toMatch(/\ndemo +running .* host-[ab],host-[ab]\n$/);
  expect((await ssihv("vm", "list", "--local")).out).toMatch(/\ndemo +running.*\ndemo\/1 +running/);
  const shown = await ssihv("vm", "show");
  expect(shown.out).toMatch(/^Name: +demo\nState: +running.*host-[ab] .* lead\n.*OLDEST-FAULT-US/s);
  const json = JSON.parse((await ssihv("vm", "show", "demo", "--json")).out);
  expect(json).toMatchObject({ state: "running", silent: null, engines: { nodes: [{}, {}] } });
  const pages = await ssihv("vm", "pages", "--gpa", "0x1000", "--json");
  expect(JSON.parse(pages.out)).toMatchObject({ vm: "demo", pages: [{ gpa: 4096, home: 0 }] });

  const top = await ssihv("top", "--interval", "100ms", "--count", "1");
  expect(top.out).toMatch(/^VM +NODE +HOST .*\ndemo +0 +host-[ab] +1 .*\n +1 +host-[ab] +1 /);
  const rates = JSON.parse((await ssihv("top", "demo", "--count", "1", "--json")).out);
  expect(rates).toMatchObject([{ name: "demo", state: "running", nodes: [{}, {}] }]);
  const hosts = rates[0].nodes.map(({ host }: { host: string }) => host).sort();
  expect(hosts).toEqual(["host-a", "host-b"]);
  expect((await ssihv("top", "--local", "--count", "1")).out).toMatch(/\ndemo .*\ndemo\/1 /s);
  const balloon = await ssihv("vm", "balloon", "demo", "64M");
  expect(balloon.out).toStartWith("balloon: 0 of 64 MiB");
  const large = await ssihv("vm", "balloon", "demo", "1G");
  expect([large.code, large.err]).toEqual([2, expect.stringContaining("a balloon of 1024 MiB")]);

  const first = spawn(["vm", "console", "demo"]);
  const typing = new Screen(first);
  await typing.shows("hello");
  const looking = spawn(["vm", "console", "demo"]);
  await says(looking, "somebody else types");
  await typing.type("typed here\n");
  await typing.shows("typed here");
  // One that is killed leaves the right to type to the next; those who look go on looking.
  first.kill("SIGKILL");
  await first.exited;
  const next = spawn(["vm", "console", "demo", "--coordinator", `127.0.0.1:${port}`]);
  const late = new Screen(next);
  await late.shows("hello");
  await late.type("typed next\n");
  await late.shows("typed next");

  const stopped = await ssihv("vm", "stop", "demo");
  expect(stopped.code).toBe(0);
  // On the way it may be seen stopping.
  expect(stopped.err.replace("ssihv: VM demo: stopping\n", "")).toMatch(
    /^ssihv: VM demo: stopped \(requested\) after \d+\.\d s\n$/,
  );
  expect([await next.exited, await looking.exited]).toEqual([0, 0]);
  expect(await looking.stdout.text()).toContain("typed next");
  const none = await ssihv("vm", "console", "demo");
  expect([none.code, none.err]).toEqual([2, expect.stringContaining("it has no console")]);
  expect((await ssihv("top", "--count", "1")).out).toBe("no VM runs\n");
  const idle = await ssihv("top", "demo");
  expect([idle.code, idle.err]).toEqual([2, expect.stringContaining("VM demo does not run")]);
  expect(await ssihv("vm", "destroy", "demo")).toEqual({ code: 0, out: "", err: "" });
  expect((await ssihv("vm", "show", "demo")).code).toBe(2);
}, 60_000);

test("what fails is told by whoever ordered it, with its status", async () => {
  const bad = join(base, "bad.yaml");
  writeFileSync(bad, "name: X\nnodes:\n  - { cpus: 1, memry: 1G }\nkernel: k\n");
  const wrong = await ssihv("vm", "create", "-f", bad);
  expect(wrong.code).toBe(2);
  expect(wrong.err).toContain(`${bad}:1:7: name: expected a name`);
  expect(wrong.err).toContain(`${bad}:3:16: unknown key nodes[0].memry; did you mean memory?`);
  const three = await ssihv("vm", "create", "-f", file("three", "", 3), "--start");
  expect([three.code, three.err]).toEqual([
    2,
    expect.stringContaining("VM three has no place for node"),
  ]);
  expect(three.err).toContain("host host-a: it has node");
  // Refused by the host, and by the engine.
  const kernel = await ssihv("vm", "create", "-f", file("nokernel", "", 1, "/none"), "--start");
  expect(kernel.err).toContain("host-a: --kernel: kernel /none does not exist");
  const dies = await ssihv("vm", "create", "-f", file("dies", "unstarted exit=9", 1), "--start");
  expect([dies.code, dies.err]).toEqual([10, expect.stringContaining("did not come up")]);
  expect(dies.err).toContain("exited with status 9");
  expect((await ssihv("vm", "list")).out).toMatch(/\ndies +failed .*\nnokernel +failed /);
  const forced = await ssihv("vm", "create", "-f", file("forced", "", 1), "--start");
  expect(forced.code).toBe(0);
  const busy = await ssihv("vm", "destroy", "forced");
  expect([busy.code, busy.err]).toEqual([2, expect.stringContaining("is not stopped")]);
  for (const name of ["forced", "dies", "nokernel", "three"]) {
    expect((await ssihv("vm", "destroy", name, "--force")).code).toBe(0);
  }
  expect(JSON.parse((await ssihv("vm", "list", "--json")).out)).toEqual([]);
}, 60_000);

test("a file is applied: created, changed at rest, told where it runs, left alone", async () => {
  const path = join(base, "cluster.yaml");
  const write = (web: string, db: string) => {
    const shape = "nodes: [{ cpus: 1, memory: 128M }], kernel: /etc/passwd";
    const vms = [`name: web, ${shape}, ${web}`, `name: db, ${shape}, ${db}`];
    writeFileSync(path, `cluster: c\nvms:\n${vms.map((vm) => `  - { ${vm} }\n`).join("")}`);
  };
  const apply = (...flags: string[]) => ssihv("cluster", "apply", "-f", path, ...flags);
  const names = async () => {
    const vms = JSON.parse((await ssihv("vm", "list", "--json")).out) as { name: string }[];
    return vms.map(({ name }) => name);
  };
  write("cmdline: say=web", "cmdline: say=db");
  const dry = await apply("--dry-run");
  expect(dry.out).toContain("create   web (1 node(s), 1 vCPU(s), 128 MiB)\n");
  expect(dry.out).toContain("nothing was changed (--dry-run)\n");
  expect([dry.code, await names()]).toEqual([0, []]);
  expect((await apply()).code).toBe(0);
  expect(await names()).toEqual(["db", "web"]);
  const again = await apply("--json");
  expect(JSON.parse(again.out).changes.map(({ action }: { action: string }) => action)).toEqual([
    "same",
    "same",
  ]);

  // One runs, of which nothing is changed, while another is at rest: neither is.
  expect((await ssihv("vm", "start", "web")).code).toBe(0);
  write("cmdline: say=other", "cmdline: say=more");
  const blocked = await apply();
  expect(blocked.code).toBe(2);
  expect(blocked.out).toContain("blocked  web (running)\n           cmdline: ");
  expect(blocked.err).toContain(
    `${path}:3:5: VM web is running, so this cannot be changed: cmdline`,
  );
  expect((await apply("--dry-run")).out).toContain('"say=db" -> "say=more"');
  write("cmdline: say=web", "cmdline: say=more");
  const started = await apply("--start");
  expect(started.code).toBe(0);
  expect(started.out).toContain("same     web (running)\nchange   db (stopped)\n");
  expect(started.err).toContain("VM db: running");
  write("cmdline: say=web", "node_memory: 2M, memory_nodes: 1");
  expect((await apply()).err).toContain(`ssihv: ${path}:4:5: `);
  for (const name of ["web", "db"]) {
    expect((await ssihv("vm", "destroy", name, "--force")).code).toBe(0);
  }
}, 60_000);

test("two agents of one state, and a host that has joined already, are refused", async () => {
  const again = await ssihv("node", "--state", join(base, "host-a"));
  expect([again.code, again.err]).toEqual([2, expect.stringContaining("runs already")]);
  const token = (await ssihv("cluster", "token")).out.trim();
  const joined = await ssihv("node", "--join", token, "--state", join(base, "host-a"));
  expect([joined.code, joined.err]).toEqual([2, expect.stringContaining("has joined a cluster")]);
  const none = await ssihv("node", "--state", join(base, "nobody"));
  expect([none.code, none.err]).toEqual([2, expect.stringContaining("has not joined a cluster")]);
});
