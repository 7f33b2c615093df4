// Lead and joining hosts over 127.0.0.1 with fake engines: the whole way from the key to the end
// of the VM, and everyone who must be turned away.

import { expect, test } from "bun:test";
import { closeSync, openSync } from "node:fs";
import { join } from "node:path";
import { SsihvError } from "../base/errors.ts";
import { freePorts } from "../base/free-ports.fixture.ts";
import { buildInfo } from "./build-info.ts";
import type { ParentPage } from "./engine-process.ts";
import { type JoinDeps, JoinSession } from "./join.ts";
import type { CpuDump } from "./last-words.ts";
import { SealedChannel } from "./sealed-channel.ts";
import { Vm, type VmEvent, type VmOutcome, type VmPlan } from "./vm.ts";

const COMMAND = [process.execPath, join(import.meta.dir, "fake-engine.fixture.ts")];
const KEY = new Uint8Array(32).fill(5);
const HOST = "127.0.0.1";
/** The channel's, and after it those of lanes. */
const LANE_PORTS = 4;

function page(words = ""): ParentPage {
  const fd = openSync("/dev/null", "r+");
  const text = new TextEncoder().encode(words);
  const kind = words === "" ? 0 : 1;
  return {
    fd,
    close: () => closeSync(fd),
    cpuDump: () => ({ valid: 0 }) as CpuDump,
    lastWords: () => ({ kind, signo: 0, vcpu: 1, text_len: text.length, address: 0n, text }),
  };
}

function planOf(port: number, cmdline: string, nodes = 2, peerTimeoutMs = 5000): VmPlan {
  return {
    name: "test",
    nodes: Array.from({ length: nodes }, (_, id) => ({ id, vcpus: 1, memoryBytes: 2 ** 27 })),
    kernel: "/dev/null",
    cmdline,
    pageTables: "auto",
    options: {
      onReset: "stop",
      clockDilation: 1,
      peerTimeoutMs,
      stallFreezeMs: 300,
      holdUsMax: 0,
      plainMemory: false,
      pinVcpus: false,
      report: false,
    },
    door: { listen: { host: HOST, port }, key: KEY, keyFile: "vm.key" },
  };
}

class Lead {
  readonly port = freePorts(LANE_PORTS);
  readonly events: VmEvent[] = [];
  readonly vm: Vm;
  readonly outcome: Promise<VmOutcome>;
  console = "";

  constructor(
    cmdline: string,
    nodes = 2,
    onEvent?: (event: VmEvent, lead: Lead) => void,
    lent?: VmPlan["nodes"],
  ) {
    const plan = planOf(this.port, cmdline, nodes);
    this.vm = new Vm(
      { ...plan, nodes: [...plan.nodes, ...(lent ?? [])] },
      {
        onConsole: (chunk) => {
          this.console += new TextDecoder().decode(chunk);
        },
        onEvent: (event) => {
          this.events.push(event);
          onEvent?.(event, this);
        },
      },
      { createPage: () => page(), command: COMMAND, graceMs: 60_000 },
    );
    this.outcome = this.vm.run();
  }

  notices(): string[] {
    return this.events.flatMap((event) => (event.event === "notice" ? [event.text] : []));
  }
}

interface JoinerExtra {
  key?: Uint8Array;
  words?: string;
  waitMs?: number;
  check?: JoinDeps["check"];
  memoryOnly?: boolean;
}

function joiner(port: number, extra: JoinerExtra = {}) {
  const events: string[] = [];
  const session = new JoinSession(
    {
      lead: { host: HOST, port },
      key: extra.key ?? KEY,
      waitMs: extra.waitMs ?? 5000,
      memoryOnly: extra.memoryOnly ?? false,
    },
    {
      createPage: () => page(extra.words),
      command: COMMAND,
      graceMs: 2000,
      retryMs: 20,
      ...(extra.check !== undefined && { check: extra.check }),
      onEvent: (event) => events.push(event.event),
    },
  );
  return { session, events, outcome: session.run() };
}

/** A lead that speaks the protocol so far, then says `then` and nothing more. */
function fakeLead(then: object[], build = buildInfo(), host = "young") {
  return Bun.listen<SealedChannel>({
    hostname: HOST,
    port: 0,
    socket: {
      open: (socket) => {
        socket.data = new SealedChannel("lead", KEY, {
          write: (bytes) => void socket.write(bytes),
          onMessage: () => undefined,
        });
        for (const message of [{ type: "hello", build, host }, ...then]) socket.data.send(message);
      },
      data: (socket, bytes) => socket.data.feed(bytes),
    },
  });
}

function welcomeOf(peerTimeoutMs: number) {
  const { name, nodes } = planOf(1, "");
  return { type: "welcome", vm: name, node: 1, nodes, peerTimeoutMs };
}

/** A host that greets and then says `then`; what it hears goes to `hear`. */
function fakeHost(
  port: number,
  then: object[],
  hear: (type: string, message: unknown) => void = () => undefined,
  build = buildInfo(),
) {
  let channel: SealedChannel | undefined;
  return Bun.connect({
    hostname: HOST,
    port,
    socket: {
      open: (socket) => {
        channel = new SealedChannel("join", KEY, {
          write: (bytes) => void socket.write(bytes),
          onMessage: (message) => hear((message as { type: string }).type, message),
        });
        for (const message of [{ type: "hello", build, host: "elder" }, ...then]) {
          channel.send(message);
        }
      },
      data: (_, bytes) => channel?.feed(bytes),
    },
  });
}

/** A host that lends memory, until its engine is paused: then it says `last`, or is gone. */
function fakeLender(port: number, last: object | undefined) {
  const capabilities = { pid: 9, abiHash: "0", tscKhz: 1, pageTables: "strict" };
  const words = [{ type: "ready", capabilities }, { type: "started" }];
  const hello = { type: "hello", build: buildInfo(), host: "elder", memoryOnly: true };
  return Bun.connect<SealedChannel>({
    hostname: HOST,
    port,
    socket: {
      open: (socket) => {
        socket.data = new SealedChannel("join", KEY, {
          write: (bytes) => void socket.write(bytes),
          onMessage: (heard) => {
            if ((heard as { message?: { type: string } }).message?.type !== "pause") return;
            if (last === undefined) socket.end();
            else socket.data.send(last as { type: string });
          },
        });
        socket.data.send(hello);
        for (const message of words) socket.data.send({ type: "engine", message } as never);
      },
      data: (socket, bytes) => socket.data.feed(bytes),
    },
  });
}

function failure(outcome: VmOutcome) {
  if (outcome.kind !== "failed") throw new Error(`expected a failure, got ${outcome.reason}`);
  return outcome.error;
}

test("two hosts: the guest's power-off ends both sides alike", async () => {
  const lead = new Lead("say=up only=1 notice=remote summary stop=powered_off");
  const host = joiner(lead.port);
  const powered = { kind: "stopped", reason: "powered_off", node: 1 };
  expect(await lead.outcome).toMatchObject(powered);
  expect(await host.outcome).toMatchObject(powered);
  expect(host.events).toEqual(["joined", "notice"]);
  expect(lead.console).toBe("up");
  expect(lead.notices()).toEqual(["remote"]);
  const command = `ssihv join ${HOST}:${lead.port} --key-file vm.key`;
  expect(lead.events[0]).toEqual({ event: "waiting", missing: 1, command });
  expect(lead.events.map(({ event }) => event)).toContain("joined");
  expect(lead.vm.summaries().length).toBe(1);
});

test("hosts that lend memory and hosts that run vCPUs take places of their kind", async () => {
  const lent = [{ id: 2, vcpus: 0, memoryBytes: 0, lentBytes: 2 ** 26 }];
  const lead = new Lead("only=1 stop=powered_off", 2, undefined, lent);
  const lender = joiner(lead.port, { memoryOnly: true });
  while (!lender.events.includes("joined")) await Bun.sleep(5);
  const second = failure(await joiner(lead.port, { memoryOnly: true }).outcome);
  expect(second.message).toContain("has all its memory nodes, it waits for hosts that run vCPUs");
  expect(second.hint).toContain("leave --memory-only out");
  const host = joiner(lead.port);
  const powered = { kind: "stopped", reason: "powered_off", node: 1 };
  expect(await lead.outcome).toMatchObject(powered);
  expect(await host.outcome).toMatchObject(powered);
  expect(await lender.outcome).toMatchObject(powered);
  const command = `ssihv join ${HOST}:${lead.port} --key-file vm.key`;
  const lending = { event: "waiting", missing: 1, command: `${command} --memory-only` };
  expect(lead.events[0]).toEqual({ event: "waiting", missing: 1, command });
  expect(lead.events[1]).toEqual({ ...lending, memoryOnly: true } as never);
  expect(lead.events.find(({ event }) => event === "joined")).toMatchObject({ node: 2 });
});

test("a host that lends memory leaves, and the VM goes on without it", async () => {
  const lent = [{ id: 1, vcpus: 0, memoryBytes: 0, lentBytes: 2 ** 26 }];
  const why = "its user ended it there (SIGTERM)";
  const onEvent = ({ event }: VmEvent, self: Lead) => {
    if (event === "started") lender.session.leave(why);
    if (event === "memory_lost") self.vm.stop();
  };
  const lead = new Lead("say=up", 1, onEvent, lent);
  const lender = joiner(lead.port, { memoryOnly: true });
  expect(await lender.outcome).toMatchObject({ kind: "stopped", reason: "requested" });
  expect(await lead.outcome).toMatchObject({ kind: "stopped", reason: "requested", node: 0 });
  const lost = lead.events.filter(({ event }) => event === "memory_lost");
  expect(lost).toMatchObject([{ node: 1, text: expect.stringContaining(why) }]);
});

const LENT = [{ id: 1, vcpus: 0, memoryBytes: 0, lentBytes: 2 ** 26 }];

test("a joined host's word that its engine was reaped is told to the others", async () => {
  const onEvent = (event: VmEvent, self: Lead) => {
    if (event.event === "started") self.vm.togglePause();
    if (event.event === "notice" && event.text.endsWith("has ended")) self.vm.stop();
  };
  const lead = new Lead("only=1 dies=pause", 1, onEvent, LENT);
  const lender = joiner(lead.port, { memoryOnly: true });
  expect(await lead.outcome).toMatchObject({ reason: "requested" });
  await lender.outcome;
  expect(lead.notices()).toEqual(["got pause", "node 1 has ended"]);
});

test("no other word about a joined host's engine is told: it may be running still", async () => {
  const exit = { reaped: false, code: 0, signal: null, stderrTail: "" };
  const left = { type: "leave", why: "its user ended it there (SIGTERM)" };
  for (const last of [left, { type: "exit", exit }, undefined]) {
    const onEvent = (event: VmEvent, self: Lead) => {
      if (event.event === "started" || event.event === "memory_lost") self.vm.togglePause();
      if (event.event === "notice" && event.text === "got resume") self.vm.stop();
    };
    const lead = new Lead("", 1, onEvent, LENT);
    await fakeLender(lead.port, last);
    expect(await lead.outcome).toMatchObject({ reason: "requested" });
    // Node 0 hears what it is sent in order.
    expect(lead.notices()).toEqual(["got pause", "got resume"]);
  }
});

test("a host that runs vCPUs does not become a memory node unasked", async () => {
  const lent = [{ id: 1, vcpus: 0, memoryBytes: 0, lentBytes: 2 ** 26 }];
  const lead = new Lead("stop=powered_off", 1, undefined, lent);
  const error = failure(await joiner(lead.port).outcome);
  expect(error.message).toContain("has all its compute nodes, it waits for hosts that lend memory");
  expect(error.hint).toContain("add --memory-only");
  lead.vm.stop();
  await lead.outcome;
});

test("a joining host waits for a lead that is not there yet", async () => {
  const port = freePorts(LANE_PORTS);
  const host = joiner(port);
  while (!host.events.includes("waiting")) await Bun.sleep(5);
  const vm = new Vm(
    planOf(port, "stop=powered_off"),
    { onConsole: () => undefined, onEvent: () => undefined },
    { createPage: () => page(), command: COMMAND },
  );
  expect(await vm.run()).toMatchObject({ reason: "powered_off" });
  expect(await host.outcome).toMatchObject({ reason: "powered_off" });
  expect(host.events).toEqual(["waiting", "joined"]);
});

test("a lead that never comes is an error that names it and the way out", async () => {
  const port = freePorts(LANE_PORTS);
  const error = failure(await joiner(port, { waitMs: 60 }).outcome);
  expect(error.code).toBe("node_unreachable");
  expect(error.message).toContain(`no VM to join at ${HOST}:${port}`);
  expect(error.hint).toContain("ssihv run --listen");
});

test("the lead's plan names lanes and a key made for this run, and node 0 says it", async () => {
  const lead = new Lead("only=0 plan stop=powered_off");
  const host = joiner(lead.port);
  await Promise.all([lead.outcome, host.outcome]);
  const { lane } = JSON.parse(lead.console) as {
    lane: { listen: string; peers: unknown; key: string };
  };
  expect(lane.listen).toBe(`${HOST}:${lead.port + 1}`);
  expect(lane.peers).toEqual([{ node: 1, address: `${HOST}:${lead.port + 2}` }]);
  expect(lane.key).toMatch(/^[0-9a-f]{64}$/);
  expect(lane.key).not.toBe(Buffer.from(KEY).toString("hex"));
});

test("a wrong key and a stranger are turned away aloud and take no place", async () => {
  const lead = new Lead("stop=powered_off");
  const wrong = failure(await joiner(lead.port, { key: new Uint8Array(32).fill(6) }).outcome);
  expect(wrong.code).toBe("peer_refused");
  expect(wrong.hint).toContain("same key file");
  const closed = Promise.withResolvers<void>();
  await Bun.connect({
    hostname: HOST,
    port: lead.port,
    socket: {
      open: (socket) => void socket.write("GET / HTTP/1.1\r\n\r\n"),
      data: () => undefined,
      close: () => closed.resolve(),
    },
  });
  await closed.promise;
  const host = joiner(lead.port);
  expect(await host.outcome).toMatchObject({ reason: "powered_off" });
  expect(await lead.outcome).toMatchObject({ reason: "powered_off" });
  const turned = lead.notices().filter((text) => text.includes("turned away"));
  expect(turned.length).toBe(2);
  expect(turned[1]).toContain("does not speak the join protocol");
});

test("another build is refused by name on both sides, and takes no place", async () => {
  const lead = new Lead("stop=powered_off");
  const refusal = Promise.withResolvers<unknown>();
  const build = { version: "0.0.1", commit: "old", abi: "1/0" };
  const hear = (type: string, message: unknown) => {
    if (type === "refused") refusal.resolve(message);
  };
  await fakeHost(lead.port, [], hear, build);
  expect(await refusal.promise).toMatchObject({ message: expect.stringContaining("0.0.1") });
  expect(lead.notices()[0]).toContain("host elder runs ssihv 0.0.1 (commit old, ABI 1/0)");
  const host = joiner(lead.port);
  expect(await host.outcome).toMatchObject({ reason: "powered_off" });
  await lead.outcome;
});

test("a lead of another build is refused by the joining host", async () => {
  const other = fakeLead([], { version: "9.0.0", commit: "new", abi: "9/9" });
  const error = failure(await joiner(other.port).outcome);
  other.stop(true);
  expect(error.code).toBe("peer_refused");
  expect(error.message).toContain("host young runs ssihv 9.0.0 (commit new, ABI 9/9)");
});

test("one host too many hears that the VM is complete", async () => {
  const lead = new Lead("");
  const first = joiner(lead.port);
  while (!first.events.includes("joined")) await Bun.sleep(5);
  const error = failure(await joiner(lead.port).outcome);
  expect(error.code).toBe("peer_refused");
  expect(error.message).toContain("is complete");
  lead.vm.stop();
  expect(await lead.outcome).toMatchObject({ reason: "requested" });
  expect(await first.outcome).toMatchObject({ reason: "requested" });
});

test("three nodes: two hosts take one each", async () => {
  const lead = new Lead("only=2 stop=powered_off", 3);
  const hosts = [joiner(lead.port), joiner(lead.port)];
  expect(await lead.outcome).toMatchObject({ reason: "powered_off", node: 2 });
  for (const host of hosts) expect(await host.outcome).toMatchObject({ node: 2 });
  const joined = lead.events.flatMap((event) => (event.event === "joined" ? [event.node] : []));
  expect(joined.sort()).toEqual([1, 2]);
});

test("an engine that dies on the other host: its last words reach both sides", async () => {
  const lead = new Lead("only=1 segv");
  const host = joiner(lead.port, { words: "index out of bounds" });
  const error = failure(await lead.outcome);
  expect(error.code).toBe("engine_dead");
  expect(error.message).toMatch(
    /the engine of node 1 \(pid \d+ on host .+\) was killed by SIGSEGV/,
  );
  expect(error.message).toContain("broken invariant on vCPU 1: index out of bounds");
  expect(failure(await host.outcome).message).toBe(error.message);
});

test("an engine that dies on the lead ends the other host's too", async () => {
  const lead = new Lead("only=0 exit=9");
  const host = joiner(lead.port);
  const error = failure(await lead.outcome);
  expect(error.message).toContain("node 0");
  expect(failure(await host.outcome).message).toBe(error.message);
});

test("an engine that fails on the other host keeps code and hint on both sides", async () => {
  const lead = new Lead("only=1 fail=cpu_incompatible");
  const host = joiner(lead.port);
  for (const outcome of [await lead.outcome, await host.outcome]) {
    const error = failure(outcome);
    expect(error.code).toBe("cpu_incompatible");
    expect(error.message).toContain("node 1");
    expect(error.hint).toBe("scripted hint");
  }
});

test("a host whose user leaves ends the VM with its reason", async () => {
  const lead = new Lead("say=up", 2, (event) => {
    if (event.event === "started") host.session.leave("its user ended it there (SIGTERM)");
  });
  const host = joiner(lead.port);
  const error = failure(await lead.outcome);
  expect(error.code).toBe("vcpu_lost");
  expect(error.message).toContain("its user ended it there (SIGTERM)");
  expect(await host.outcome).toMatchObject({ kind: "stopped", reason: "requested" });
});

test("stopping a lead that still waits needs no other host", async () => {
  const lead = new Lead("", 2, (event, self) => {
    if (event.event === "engine_ready") self.vm.stop();
  });
  expect(await lead.outcome).toMatchObject({ kind: "stopped", reason: "requested" });
});

test("a port that is taken is an error with the way out, and no engine is started", async () => {
  const taken = Bun.listen({ hostname: HOST, port: 0, socket: { data: () => undefined } });
  const vm = new Vm(
    planOf(taken.port, ""),
    { onConsole: () => undefined, onEvent: () => undefined },
    { createPage: () => Promise.reject(new Error("an engine was started")) as never },
  );
  const error = failure(await vm.run());
  taken.stop(true);
  expect(error.code).toBe("address_invalid");
  expect(error.message).toContain("EADDRINUSE");
});

test("a lead that falls silent is lost, and its engine here with it", async () => {
  const silent = fakeLead([welcomeOf(20)]);
  const error = failure(await joiner(silent.port).outcome);
  silent.stop(true);
  expect(error.code).toBe("vcpu_lost");
  expect(error.message).toContain("VM test: its lead");
  expect(error.message).toContain("nothing was heard from it");
});

test("messages of no known kind end the conversation, on either side", async () => {
  const other = fakeLead([welcomeOf(5000), { type: "engine", message: { type: "format_disk" } }]);
  const error = failure(await joiner(other.port).outcome);
  other.stop(true);
  expect(error.message).toContain("a message of no known kind");
  for (const odd of [{ type: "engine", message: null }, { type: "become_lead" }]) {
    const lead = new Lead("");
    await fakeHost(lead.port, [odd]);
    expect(failure(await lead.outcome).message).toContain("a message of no known kind");
  }
  const rude = new Lead("stop=powered_off");
  const hello = { type: "hello", build: { version: 1 }, host: "elder" };
  await fakeHost(rude.port, [], undefined, hello.build as never);
  const host = joiner(rude.port);
  await Promise.all([rude.outcome, host.outcome]);
  expect(rude.notices()[0]).toContain("it did not greet");
});

test("a host that cannot take its node says why, on both sides", async () => {
  const lead = new Lead("");
  const check = () => {
    throw new SsihvError("memory_insufficient", "too small", { hint: "buy more" });
  };
  const host = joiner(lead.port, { check });
  for (const outcome of [await lead.outcome, await host.outcome]) {
    const error = failure(outcome);
    expect(error.code).toBe("memory_insufficient");
    expect(error.message).toContain("too small");
    expect(error.hint).toBe("buy more");
  }
});

test("a host that does not answer any more is not waited for when its vCPU is lost", async () => {
  const lead = new Lead("only=0 stop=vcpu_lost");
  const capabilities = { pid: 9, abiHash: "0", tscKhz: 1, pageTables: "strict" };
  await fakeHost(lead.port, [{ type: "engine", message: { type: "ready", capabilities } }]);
  expect(await lead.outcome).toMatchObject({ kind: "stopped", reason: "vcpu_lost", node: 0 });
});

test("an engine that finds its peers gone ends its command, though the lead is mute", async () => {
  const plan = { node: 1, cmdline: "stop=vcpu_lost" };
  const start = { type: "engine", message: { type: "start", plan } };
  // The engine may not be there yet for one that is sent at once: the channel keeps the order.
  const mute = fakeLead([welcomeOf(60_000), start]);
  const outcome = await joiner(mute.port).outcome;
  mute.stop(true);
  expect(outcome).toMatchObject({ kind: "stopped", reason: "vcpu_lost", node: 1 });
});
