// One VM: starts an engine per node on this host, or node 0's here and lets other hosts join with
// the rest, brings them up together, and reports how it ended. This is the composition that
// `ssihv run` drives; it knows no terminal.
// Invariants: the first engine to end decides the outcome; then every other engine is told to stop,
// and killed when it does not within GRACE_MS, so nothing keeps running; `run` always resolves and
// by then no child lives and no socket is left.

import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { isErrorCode, messageOf, SsihvError } from "../base/errors.ts";
import type { MemoryCostsGiven } from "../config/memory-costs.ts";
import type {
  EngineCapabilities,
  EngineOptions,
  EnginePlan,
  EngineSummary,
  FromEngine,
  LanePlan,
  NodePlan,
  PageTablesMode,
  Question,
  SandboxState,
  StoppedReason,
  ToEngine,
} from "../engine/messages.ts";
import { isMemoryNode } from "../vmm/memory-budget.ts";
import { BootClock } from "./boot-clock.ts";
import { engineBytesMax, type Groups } from "./control-group.ts";
import {
  describeDeath,
  type Engine,
  type EngineExit,
  type EngineHooks,
  EngineProcess,
  type ParentPage,
} from "./engine-process.ts";
import type { HostPort } from "./join-address.ts";
import { type LanePlace, remoteLane } from "./join-lane.ts";
import { JoinListener, joinCommand } from "./join-listener.ts";
import { type Asked, Questions } from "./questions.ts";
import { RemoteEngine } from "./remote-engine.ts";
import {
  giveBack,
  giveFolder,
  type LanePlaces,
  type SandboxMode,
  type SandboxWish,
  sandboxFor,
} from "./sandbox.ts";
import { agreeOnCpu } from "./vm-cpu.ts";
import type { VmFacts, VmObserved, VmState } from "./vm-view.ts";

/** How long an engine may take to stop when told to. */
export const GRACE_MS = 5000;

/** How other hosts join a VM; every node but 0 is then theirs. */
export interface VmDoor {
  readonly listen: HostPort;
  readonly key: Uint8Array;
  /** As the user named it, to show what to type elsewhere. */
  readonly keyFile: string;
}

export interface VmPlan {
  readonly name: string;
  /** Compute nodes first. */
  readonly nodes: readonly NodePlan[];
  /** Memory nodes that keep each page which its home has not. */
  readonly frameCopies?: number;
  readonly memoryCosts?: MemoryCostsGiven;
  /** What its balloon is to take at first; absent: it has none. */
  readonly balloonBytes?: number;
  readonly kernel: string;
  readonly initrd?: string;
  readonly cmdline: string;
  readonly pageTables: PageTablesMode | "auto";
  readonly options: Omit<EngineOptions, "pageTables">;
  /** Addresses the engines' lanes listen on, one per node; absent: sockets in a private folder. */
  readonly addresses?: readonly string[];
  /** Absent: every engine runs on this host. */
  readonly door?: VmDoor;
}

export type VmEvent =
  /** `missing` hosts have yet to join, by `command`; `memoryOnly`: to lend memory. */
  | {
      readonly event: "waiting";
      readonly missing: number;
      readonly command: string;
      readonly memoryOnly?: boolean;
    }
  | { readonly event: "joined"; readonly node: number; readonly host: string }
  | { readonly event: "engine_ready"; readonly node: number; readonly pid: number }
  | { readonly event: "started"; readonly pageTables: PageTablesMode }
  /** Linux runs init; seconds since the start. */
  | { readonly event: "booted"; readonly seconds: number }
  | { readonly event: "notice"; readonly node: number; readonly text: string }
  | { readonly event: "stderr"; readonly node: number; readonly text: string }
  /** A memory node is gone; the VM goes on where its pages have another copy. */
  | { readonly event: "memory_lost"; readonly node: number; readonly text: string }
  | { readonly event: "paused" | "resumed" }
  | { readonly event: "summary"; readonly summary: EngineSummary };

export type VmOutcome =
  | {
      readonly kind: "stopped";
      readonly node: number;
      readonly reason: StoppedReason;
      readonly code: number | undefined;
      readonly detail: string | undefined;
      /** Registers of the vCPU that stopped, where the engine recorded them. */
      readonly registers: string | undefined;
    }
  | { readonly kind: "failed"; readonly error: SsihvError };

export interface VmHooks {
  onConsole(chunk: Uint8Array): Promise<void> | void;
  onEvent(event: VmEvent): void;
}

export interface VmDeps {
  readonly createPage: () => ParentPage;
  /** Of its engines on this host; auto unless said. */
  readonly sandbox?: SandboxMode;
  /** Where each gets a control group. */
  readonly groups?: Groups;
  readonly command?: readonly string[];
  readonly graceMs?: number;
}

interface Member {
  readonly engine: Engine;
  /** A memory node: it lends memory and decides nothing. */
  readonly memoryOnly: boolean;
  capabilities: EngineCapabilities | undefined;
  sandbox: SandboxState | undefined;
  started: boolean;
  /** Said `stopped` or `failed`: its exit is then no surprise. */
  spoke: boolean;
  failed: boolean;
  gone: boolean;
}

/** Its user ended it. */
export const REQUESTED: VmOutcome = {
  kind: "stopped",
  node: 0,
  reason: "requested",
  code: undefined,
  detail: undefined,
  registers: undefined,
};

export class Vm implements VmObserved {
  private readonly members: Member[] = [];
  private readonly ended = Promise.withResolvers<VmOutcome>();
  private readonly deps: VmDeps;
  private readonly plan: VmPlan;
  private readonly hooks: VmHooks;
  private stopping = false;
  private paused = false;
  private laneFolder: string | undefined;
  private laneKey: string | undefined;
  private listener: JoinListener | undefined;
  private readonly remote = new Map<number, RemoteEngine>();
  private cpuModel: unknown;
  private readonly boot = new BootClock();
  private readonly latest = new Map<number, EngineSummary>();
  private readonly questions = new Questions("lead");
  private sandbox: SandboxWish = { mode: "auto" };
  private startedAt: number | undefined;

  constructor(plan: VmPlan, hooks: VmHooks, deps: VmDeps) {
    this.plan = plan;
    this.hooks = hooks;
    this.deps = deps;
  }

  async run(): Promise<VmOutcome> {
    let outcome: VmOutcome;
    try {
      this.open();
      outcome = await this.ended.promise;
    } catch (error) {
      outcome = { kind: "failed", error: asSsihvError(error) };
    }
    await this.windDown(outcome);
    await this.listener?.close(outcome);
    return outcome;
  }

  /** The newest numbers of every engine that gave some; node 0 has the console, so the boot too. */
  summaries(): EngineSummary[] {
    const sorted = [...this.latest.values()].sort((a, b) => a.node - b.node);
    return sorted.map((each) => this.withBoot(each));
  }

  private withBoot(summary: EngineSummary): EngineSummary {
    const { seconds } = this.boot;
    if (seconds === undefined || summary.node !== 0) return summary;
    return { ...summary, bootSeconds: seconds };
  }

  async writeConsole(bytes: Uint8Array): Promise<void> {
    await this.members[0]?.engine.writeConsole(bytes);
  }

  togglePause(): void {
    this.paused = !this.paused;
    this.broadcast({ type: this.paused ? "pause" : "resume" });
    this.hooks.onEvent({ event: this.paused ? "paused" : "resumed" });
  }

  nmi(): void {
    this.members[0]?.engine.send({ type: "nmi" });
  }

  report(): void {
    this.broadcast({ type: "report" });
  }

  /** Every engine tells on stderr what is open. */
  dump(): void {
    for (const { engine, gone } of this.members) if (!gone) engine.dump();
  }

  facts(): VmFacts {
    const up = this.startedAt;
    return {
      name: this.plan.name,
      role: "lead",
      state: this.state(),
      ...(up !== undefined && { uptimeSeconds: (performance.now() - up) / 1000 }),
      shape: this.plan.nodes,
      nodes: this.members.map(({ engine: { node, pid }, sandbox }) => {
        const host = this.remote.get(node)?.host?.name;
        return {
          node,
          ...(host !== undefined && { host }),
          ...(pid !== 0 && { pid }),
          ...(sandbox !== undefined && { sandbox }),
        };
      }),
    };
  }

  async ask(node: number, question: Question): Promise<Asked> {
    const member = this.members.find(({ engine }) => engine.node === node);
    if (member?.capabilities !== undefined) {
      const answer = await this.questions.ask(member.engine, question);
      if (answer.kind !== "summary") return answer;
      return { kind: "summary", summary: this.withBoot(answer.summary) };
    }
    const free = this.remote.get(node)?.free === true;
    const why = free ? "no host has joined with it yet" : "its engine is not up yet";
    throw new SsihvError("vm_silent", why, { hint: "ask again when the VM runs" });
  }

  private state(): VmState {
    if (this.stopping) return "stopping";
    if (this.startedAt !== undefined) return this.paused ? "paused" : "running";
    return [...this.remote.values()].some(({ free }) => free) ? "waiting" : "starting";
  }

  /** Ends the VM as its user asked; `run` resolves with reason "requested". */
  stop(): void {
    this.end(REQUESTED);
  }

  /** At once and for good; for the last moments of the parent itself. */
  killAll(): void {
    for (const member of this.members) if (!member.gone) member.engine.kill();
    this.removeLaneFolder();
  }

  /** Starts what runs here; the door first, since a port that is taken ends it all. */
  private open(): void {
    const { door, nodes } = this.plan;
    this.sandbox = sandboxFor(this.deps.sandbox ?? "auto", lanePlaces(this.plan));
    if (door !== undefined) {
      for (const { id } of nodes.slice(1)) this.reserve(id);
      this.listen(door);
    }
    for (const { id } of nodes) if (!this.remote.has(id)) this.spawn(id);
    this.members.sort((a, b) => a.engine.node - b.engine.node);
    if (door !== undefined) this.tellWaiting(door);
  }

  private spawn(node: number): void {
    const page = this.deps.createPage();
    this.add(node, (hooks) => this.spawnProcess(node, page, hooks));
  }

  /** Keeps a node for a host that will join. */
  private reserve(node: number): void {
    this.add(node, (hooks) => {
      const engine = new RemoteEngine(this.plan.name, node, hooks);
      this.remote.set(node, engine);
      return engine;
    });
  }

  private add(node: number, make: (hooks: EngineHooks) => Engine): void {
    const hooks: EngineHooks = {
      onMessage: (message) => this.onMessage(member, message),
      onStderr: (text) => this.hooks.onEvent({ event: "stderr", node, text }),
      onConsole: (chunk) => this.onConsole(chunk),
    };
    const member: Member = {
      engine: make(hooks),
      memoryOnly: isMemoryNode(this.plan.nodes[node]),
      capabilities: undefined,
      sandbox: undefined,
      started: false,
      spoke: false,
      failed: false,
      gone: false,
    };
    this.members.push(member);
    void member.engine.exited.then((exit) => this.onExit(member, exit));
  }

  private listen(door: VmDoor): void {
    const { name, nodes, options } = this.plan;
    this.listener = new JoinListener({
      vm: name,
      nodes,
      listen: door.listen,
      key: door.key,
      peerTimeoutMs: options.peerTimeoutMs,
      places: [...this.remote.values()],
      onNotice: (text) => this.hooks.onEvent({ event: "notice", node: 0, text }),
      onJoined: ({ node, host }) => {
        this.hooks.onEvent({ event: "joined", node, host: host?.name ?? "" });
        this.tellWaiting(door);
      },
    });
  }

  private tellWaiting(door: VmDoor): void {
    const free = this.members.filter(({ engine }) => this.remote.get(engine.node)?.free === true);
    const command = joinCommand(door.listen, door.keyFile);
    const compute = free.filter(({ memoryOnly }) => !memoryOnly).length;
    if (compute > 0) this.hooks.onEvent({ event: "waiting", missing: compute, command });
    const missing = free.length - compute;
    if (missing === 0) return;
    const lending = `${command} --memory-only`;
    this.hooks.onEvent({ event: "waiting", missing, command: lending, memoryOnly: true });
  }

  private onConsole(chunk: Uint8Array): Promise<void> | void {
    if (this.boot.push(chunk, performance.now()) && this.boot.seconds !== undefined) {
      this.hooks.onEvent({ event: "booted", seconds: this.boot.seconds });
    }
    return this.hooks.onConsole(chunk);
  }

  private spawnProcess(node: number, page: ParentPage, hooks: EngineHooks): EngineProcess {
    const { command, groups } = this.deps;
    try {
      return new EngineProcess({
        vm: this.plan.name,
        node,
        page,
        console: node === 0,
        memoryOnly: isMemoryNode(this.plan.nodes[node]),
        sandbox: this.sandbox,
        ...(groups !== undefined && {
          group: { groups, bytesMax: engineBytesMax(this.plan.nodes, node) },
        }),
        hooks,
        ...(command !== undefined && { command }),
      });
    } catch (error) {
      page.close();
      throw error;
    }
  }

  private onMessage(member: Member, message: FromEngine): void {
    const { node } = member.engine;
    switch (message.type) {
      case "ready":
        member.capabilities = message.capabilities;
        this.hooks.onEvent({ event: "engine_ready", node, pid: member.engine.pid });
        this.startWhenReady();
        return;
      case "sandboxed":
        member.sandbox = message.sandbox;
        return;
      case "started":
        member.started = true;
        if (this.members.every((each) => each.started)) {
          this.startedAt ??= performance.now();
          this.hooks.onEvent({ event: "started", pageTables: this.pageTables() });
        }
        return;
      case "notice":
        this.hooks.onEvent({ event: "notice", node, text: message.text });
        return;
      case "summary": {
        const { type: _, ...summary } = message;
        this.latest.set(node, summary);
        this.hooks.onEvent({ event: "summary", summary });
        return;
      }
      case "answer":
        this.questions.answered(message);
        return;
      case "stopped":
        member.spoke = true;
        if (this.goesOnWithout(member)) {
          // Of an end in order the compute nodes tell.
          if (message.reason !== "requested") {
            this.memoryLost(
              node,
              `${message.reason}${message.detail ? `: ${message.detail}` : ""}`,
            );
          }
          return;
        }
        this.end({
          kind: "stopped",
          node,
          reason: message.reason,
          code: message.code,
          detail: message.detail,
          registers: member.engine.registers(),
        });
        return;
      case "failed":
        member.spoke = true;
        member.failed = true;
        if (this.goesOnWithout(member)) return this.memoryLost(node, message.message);
        this.end({ kind: "failed", error: failure(this.plan, node, message) });
    }
  }

  private onExit(member: Member, exit: EngineExit): void {
    member.gone = true;
    // An engine that was told to stop may go without a word.
    if (this.stopping) return;
    const goesOn = this.goesOnWithout(member);
    // Who said `stopped` has said goodbye to its homes, or ends because the VM does.
    const isSudden = member.failed || !member.spoke;
    if (goesOn && isSudden && exit.reaped) this.tellEnded(member.engine.node);
    if (member.spoke) return;
    const error = describeDeath(member.engine, exit);
    if (goesOn) this.memoryLost(member.engine.node, error.message);
    else this.end({ kind: "failed", error });
  }

  /**
   * The other engines need not wait for its silence. Only the reaped process is proof: one that has
   * said its last word, or whose host is not heard, may still answer them.
   */
  private tellEnded(node: number): void {
    for (const { engine, gone } of this.members) {
      if (!gone) engine.send({ type: "peer_ended", node });
    }
  }

  /** A memory node of a running VM: whether pages went with it, their homes find out. */
  private goesOnWithout(member: Member): boolean {
    return member.memoryOnly && this.members.every((each) => each.started);
  }

  private memoryLost(node: number, text: string): void {
    this.hooks.onEvent({ event: "memory_lost", node, text });
  }

  private startWhenReady(): void {
    const all = this.members.length === this.plan.nodes.length;
    if (this.stopping || !all || !this.members.every((member) => member.capabilities)) return;
    try {
      this.boot.start(performance.now());
      for (const { engine } of this.members) {
        engine.send({ type: "start", plan: this.planFor(engine.node) });
      }
    } catch (error) {
      this.end({ kind: "failed", error: asSsihvError(error) });
    }
  }

  private pageTables(): PageTablesMode {
    if (this.plan.pageTables !== "auto") return this.plan.pageTables;
    // One host whose page walks write decides for all: the protocol is one for the VM.
    const any = this.members.some((member) => member.capabilities?.pageTables === "replicated");
    return any && this.computeCount > 1 ? "replicated" : "strict";
  }

  private get computeCount(): number {
    return this.plan.nodes.filter((node) => !isMemoryNode(node)).length;
  }

  private planFor(node: number): EnginePlan {
    const { name, nodes, kernel, initrd, cmdline, options } = this.plan;
    const { frameCopies, memoryCosts, balloonBytes } = this.plan;
    const lane = nodes.length > 1 ? this.laneFor(node) : undefined;
    const cpuModel = this.computeCount > 1 ? this.agreedCpu() : undefined;
    return {
      name,
      node,
      nodes,
      kernel,
      cmdline,
      options: { ...options, pageTables: this.pageTables() },
      ...(initrd !== undefined && { initrd }),
      ...(cpuModel !== undefined && { cpuModel }),
      ...(lane !== undefined && { lane }),
      ...(frameCopies !== undefined && { frameCopies }),
      ...(memoryCosts !== undefined && { memoryCosts }),
      ...(balloonBytes !== undefined && { balloonBytes }),
    };
  }

  private agreedCpu(): unknown {
    const compute = this.members.filter(({ memoryOnly }) => !memoryOnly);
    this.cpuModel ??= agreeOnCpu(
      compute.flatMap(({ capabilities }) => capabilities ?? []),
      this.plan.options.clockDilation,
    );
    return this.cpuModel;
  }

  private laneFor(node: number): LanePlan {
    // Made anew for every run and sent to joined hosts under the key of the file, so that no engine
    // of an earlier run can link to this one.
    this.laneKey ??= randomBytes(32).toString("hex");
    const { door, nodes } = this.plan;
    if (door !== undefined) {
      const places = nodes.map(({ id }): LanePlace => this.remote.get(id)?.host ?? {});
      return { ...remoteLane(door.listen, places, node), key: this.laneKey };
    }
    return {
      listen: this.laneAddress(node),
      peers: nodes
        .filter((peer) => peer.id !== node)
        .map((peer) => ({ node: peer.id, address: this.laneAddress(peer.id) })),
      key: this.laneKey,
    };
  }

  private laneAddress(node: number): string {
    const given = this.plan.addresses?.[node];
    if (given !== undefined) return given;
    // mkdtemp makes the folder for this user alone (mode 0700).
    if (this.laneFolder === undefined) {
      this.laneFolder = mkdtempSync(join(tmpdir(), "ssihv-"));
      giveFolder(this.laneFolder, this.sandbox);
    }
    return `unix:${join(this.laneFolder, `node-${node}`)}`;
  }

  private end(outcome: VmOutcome): void {
    this.stopping = true;
    this.ended.resolve(outcome);
  }

  private broadcast(message: ToEngine): void {
    for (const { engine } of this.members) engine.send(message);
  }

  private async windDown(outcome: VmOutcome): Promise<void> {
    this.stopping = true;
    this.broadcast({ type: "stop" });
    // A host that is gone cannot stop in order, and one that is not has found the VM ended too.
    if (outcome.kind === "stopped" && outcome.reason === "vcpu_lost") {
      for (const remote of this.remote.values()) remote.kill();
    }
    // An engine that failed has no guest to end and nothing more to say.
    for (const member of this.members) if (member.failed) member.engine.kill();
    const all = Promise.all(this.members.map((member) => member.engine.exited));
    const timer = setTimeout(() => this.killAll(), this.deps.graceMs ?? GRACE_MS);
    await all;
    clearTimeout(timer);
    this.removeLaneFolder();
    giveBack(this.sandbox);
    for (const { engine } of this.members) engine.release();
  }

  private removeLaneFolder(): void {
    if (this.laneFolder !== undefined) rmSync(this.laneFolder, { recursive: true, force: true });
    this.laneFolder = undefined;
  }
}

function lanePlaces({ nodes, door, addresses }: VmPlan): LanePlaces {
  if (addresses?.some((each) => each.startsWith("unix:"))) return "given";
  return nodes.length > 1 && door === undefined && addresses === undefined ? "own folder" : "none";
}

function asSsihvError(error: unknown): SsihvError {
  if (error instanceof SsihvError) return error;
  const message = messageOf(error);
  return new SsihvError("engine_failed", `an engine could not be started: ${message}`, {
    cause: error,
  });
}

function failure(
  plan: VmPlan,
  node: number,
  message: Extract<FromEngine, { type: "failed" }>,
): SsihvError {
  const code = isErrorCode(message.code) ? message.code : "engine_failed";
  const where = plan.nodes.length > 1 ? `node ${node}: ` : "";
  return new SsihvError(code, `VM ${plan.name}: ${where}${message.message}`, {
    ...(message.hint !== undefined && { hint: message.hint }),
  });
}
