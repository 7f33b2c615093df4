// A VM over several hosts as the command that starts it has it: a link to each host
// (host-link.ts), of which the first leads and the others join, and the VM's key, which crosses
// these links alone. For `ssihv run` it is what the Vm of this host is without --hosts.
// Invariants: the lead decides the outcome, unless it is lost; by the time `run` resolves every
// part has ended, or its host has been unreachable for a while; what fails before the VM begins
// throws from `prepare`, with every host that has a problem named and nothing left on any.

import { randomBytes } from "node:crypto";
import { networkInterfaces } from "node:os";

import { SsihvError } from "../base/errors.ts";
import type { EngineSummary, SandboxMode } from "../engine/messages.ts";
import type { HostPort } from "../node/join-address.ts";
import { decodeOutcome } from "../node/join-messages.ts";
import { REQUESTED, type VmEvent, type VmHooks, type VmOutcome, type VmPlan } from "../node/vm.ts";
import { isMemoryNode } from "../vmm/memory-budget.ts";
import { listenAt, type Reached } from "./addresses.ts";
import type { Payload } from "./bootstrap.ts";
import { HostLink } from "./host-link.ts";
import { type FromPart, type PartHost, toBase64 } from "./part-messages.ts";
import type { Reach } from "./reach.ts";

/** A host and the way there; absent: it is this one. */
export interface HostPlace {
  readonly name: string;
  readonly reach?: Reach;
  /** IP address that the other hosts reach it at, where the user said so. */
  readonly address?: string;
}

export interface HostsRequest {
  /** The first leads; those that only lend memory are last, as in the plan. */
  readonly hosts: readonly [HostPlace, ...HostPlace[]];
  readonly plan: Omit<VmPlan, "door">;
  readonly listen?: HostPort;
  readonly nameChosen: boolean;
  readonly acceptUnfit: boolean;
  readonly sandbox: SandboxMode;
  /** What starts a part on this host. */
  readonly ownPart: readonly string[];
  /** What is brought to the others. */
  readonly payload: () => Payload;
  onCopying(host: string, bytes: number, total: number): void;
  onNotice(text: string): void;
}

/** The lead ends in order within this, or it is taken to be gone. */
const STOP_MS = 15_000;

interface Member {
  readonly node: number;
  readonly place: HostPlace;
  readonly link: HostLink;
  readonly memoryOnly: boolean;
  /** The lead has given it its node. */
  joined: boolean;
  /** It told its end. */
  ended: boolean;
}

type Told = Exclude<FromPart, { type: "host" | "alive" }>;

export class HostsVm {
  private readonly request: HostsRequest;
  private readonly members: Member[] = [];
  private readonly named = Promise.withResolvers<string>();
  private readonly ended = Promise.withResolvers<VmOutcome>();
  private readonly early: (() => void)[] = [];
  private readonly latest = new Map<number, EngineSummary>();
  private hooks: VmHooks | undefined;
  private typed: (() => void) | undefined;
  /** The lead has a VM, which speaks for itself. */
  private begun = false;
  private running = false;
  private over = false;
  private vmName: string;

  private constructor(request: HostsRequest) {
    this.request = request;
    this.vmName = request.plan.name;
    this.named.promise.catch(() => undefined);
  }

  /** Until the lead has begun. */
  static async prepare(request: HostsRequest): Promise<HostsVm> {
    const vm = new HostsVm(request);
    try {
      await vm.connect();
      await vm.begin();
    } catch (error) {
      await vm.closeAll();
      throw error;
    }
    return vm;
  }

  /** The VM's name on the host that leads it. */
  get name(): string {
    return this.vmName;
  }

  /** What happens from now on, and what did since the VM began, is told to these. */
  telling(hooks: VmHooks): this {
    this.hooks = hooks;
    return this;
  }

  async run(): Promise<VmOutcome> {
    for (const each of this.early.splice(0)) each();
    this.running = true;
    const outcome = await this.ended.promise;
    await this.closeAll();
    return outcome;
  }

  summaries(): EngineSummary[] {
    return [...this.latest.values()].sort((a, b) => a.node - b.node);
  }

  async writeConsole(bytes: Uint8Array): Promise<void> {
    if (this.over) return;
    const typed = Promise.withResolvers<void>();
    this.typed = typed.resolve;
    this.lead.send({ type: "input", data: toBase64(bytes) });
    await typed.promise;
  }

  togglePause(): void {
    this.lead.send({ type: "pause" });
  }

  nmi(): void {
    this.lead.send({ type: "nmi" });
  }

  report(): void {
    this.lead.send({ type: "report" });
  }

  /** The lead tells the engines of all hosts. */
  dump(): void {
    this.lead.send({ type: "dump" });
  }

  stop(): void {
    this.lead.send({ type: "stop" });
    setTimeout(() => this.end(REQUESTED), STOP_MS).unref();
  }

  /** For the last moments of this process: the parts end when they find it gone. */
  killAll(): void {
    for (const { link } of this.members) link.kill();
  }

  private get lead(): HostLink {
    const first = this.members[0];
    if (first === undefined) throw new Error("no host is connected");
    return first.link;
  }

  private async connect(): Promise<void> {
    const { hosts, ownPart, payload, plan } = this.request;
    const copy = hosts.some(({ reach }) => reach !== undefined) ? payload() : undefined;
    for (const [node, place] of hosts.entries()) {
      const hooks = {
        onMessage: (message: Told) => this.onMessage(member, message),
        onStderr: (line: string) => this.notice(node, `host ${place.name}: ${line}`),
        onCopying: (bytes: number, total: number) => {
          this.request.onCopying(place.name, bytes, total);
        },
        onLost: (error: SsihvError) => this.onLost(member, error),
      };
      const { name, reach } = place;
      const link =
        reach === undefined || copy === undefined
          ? HostLink.here(name, ownPart, hooks)
          : HostLink.there(name, reach, copy, hooks);
      const member: Member = {
        ...{ node, place, link },
        memoryOnly: isMemoryNode(plan.nodes[node]),
        joined: node === 0,
        ended: false,
      };
      this.members.push(member);
    }
    const reached = await Promise.allSettled(this.members.map(({ link }) => link.host));
    const problems = reached.flatMap((each, node) => {
      if (each.status === "rejected") return [each.reason as SsihvError];
      return this.judge(this.members[node], each.value);
    });
    if (problems.length > 0) throw together(problems);
  }

  /** What keeps the host from taking its node. */
  private judge(member: Member | undefined, { check }: PartHost): SsihvError[] {
    // Memory is lent without KVM.
    if (member === undefined || member.memoryOnly || check.verdict !== "unfit") return [];
    const lacking = check.lines.filter(
      ({ required, state }) => required && (state === "missing" || state === "not_run"),
    );
    const { name } = member.place;
    const first = lacking[0];
    const what = lacking.map(({ title, detail }) => `${title}: ${detail}`);
    const message = `host ${name} is unfit: ${what[0]}`;
    if (this.request.acceptUnfit) {
      this.request.onNotice(message);
      return [];
    }
    const more = "ssihv check there tells all; --accept-unfit tries";
    const hint = `on ${name}: ${first?.fix ?? ""} (${more})`;
    return [new SsihvError("host_unfit", message, { hint })];
  }

  private async begin(): Promise<void> {
    const { plan, nameChosen, sandbox } = this.request;
    const { lead } = this;
    const key = randomBytes(32).toString("hex");
    const listen = this.members.length > 1 ? await this.listen() : undefined;
    if (lead.reach !== undefined) {
      await lead.sendFile("kernel", plan.kernel);
      if (plan.initrd !== undefined) await lead.sendFile("initrd", plan.initrd);
    }
    const door = listen === undefined ? {} : { listen };
    lead.send({ type: "lead", plan, key, nameChosen, sandbox, ...door });
    const failed = this.ended.promise.then((outcome) => {
      if (outcome.kind === "failed") throw outcome.error;
      throw new SsihvError("engine_failed", `host ${lead.name} ended before the VM began`);
    });
    this.vmName = await Promise.race([this.named.promise, failed]);
    // From here on its end is the outcome of `run`.
    failed.catch(() => undefined);
    if (listen === undefined) return;
    for (const { node, link, place, memoryOnly } of this.members.slice(1)) {
      const { address } = place;
      const lane = address === undefined ? {} : { laneHost: address };
      const order = { lead: listen, key, node, memoryOnly, hostName: place.name, sandbox };
      link.send({ type: "join", ...order, ...lane });
    }
  }

  private async listen(): Promise<HostPort> {
    const [lead, ...others] = await Promise.all(
      this.members.map(async ({ place, link }): Promise<Reached> => {
        const { reachedAt, reachedFrom, freePorts } = await link.host;
        const address = place.address ?? place.reach?.address;
        return {
          name: place.name,
          here: place.reach === undefined,
          ...(address !== undefined && { address, isChosen: place.address !== undefined }),
          ...(reachedAt !== undefined && { reachedAt }),
          ...(reachedFrom !== undefined && { reachedFrom }),
          freePorts,
        };
      }),
    );
    if (lead === undefined) throw new Error("no host is connected");
    const own = Object.values(networkInterfaces()).flatMap((all) => all ?? []);
    return listenAt(
      this.request.listen,
      [lead, ...others],
      own.map(({ address }) => address),
    );
  }

  private onMessage(member: Member, message: Told): void {
    switch (message.type) {
      case "named":
        for (const warning of message.warnings) {
          this.notice(0, `host ${member.place.name}: ${warning}`);
        }
        this.begun = true;
        return this.named.resolve(message.vm);
      case "event":
        return this.onEvent(message.event);
      case "console":
        return void this.onConsole(member, Buffer.from(message.data, "base64"));
      case "typed":
        return this.typed?.();
      case "joined":
        member.joined = true;
        return;
      case "notice":
        return this.notice(member.node, `host ${member.place.name}: ${message.text}`);
      case "ended":
        member.ended = true;
        return this.onEnded(member, decodeOutcome(message.outcome), message.summaries);
    }
  }

  private onEvent(event: VmEvent): void {
    // Nobody is to type anything: the hosts join by themselves.
    if (event.event === "waiting") return;
    if (event.event === "summary") this.latest.set(event.summary.node, event.summary);
    this.whenRunning((hooks) => hooks.onEvent(event));
  }

  private async onConsole(member: Member, chunk: Uint8Array): Promise<void> {
    await new Promise<void>((done) => {
      this.whenRunning((hooks) => void Promise.resolve(hooks.onConsole(chunk)).then(done));
    });
    member.link.send({ type: "taken" });
  }

  private onEnded(member: Member, outcome: VmOutcome, summaries: readonly EngineSummary[]): void {
    for (const summary of summaries) this.latest.set(summary.node, summary);
    // Of a host that had joined, the lead tells.
    if (member.node !== 0 && (member.joined || outcome.kind === "stopped")) return;
    this.end(outcome.kind === "failed" ? this.failedOn(member, outcome.error) : outcome);
  }

  private onLost(member: Member, error: SsihvError): void {
    if (member.ended || this.over) return;
    // A host that had joined takes itself out of the VM, and the lead tells what becomes of it.
    if (member.node !== 0 && member.joined) this.notice(member.node, error.message);
    else this.end({ kind: "failed", error });
  }

  private failedOn({ node, place }: Member, error: SsihvError): VmOutcome {
    // A VM that runs speaks for itself, but it does not know whose its address is.
    const its = node === 0 && this.begun && !NOT_THE_VMS.has(error.code);
    if (its) return { kind: "failed", error };
    // A host that did not reach the lead: what to type there is not the user's to type.
    const hint = node !== 0 && error.code === "node_unreachable" ? NO_WAY : error.hint;
    const told = new SsihvError(error.code, `host ${place.name}: ${error.message}`, {
      ...(hint !== undefined && { hint }),
    });
    return { kind: "failed", error: told };
  }

  private notice(node: number, text: string): void {
    this.whenRunning((hooks) => hooks.onEvent({ event: "notice", node, text }));
  }

  /** What comes before `run` waits for it. */
  private whenRunning(act: (hooks: VmHooks) => void): void {
    const told = () => this.hooks && act(this.hooks);
    if (this.running) told();
    else this.early.push(told);
  }

  private end(outcome: VmOutcome): void {
    this.over = true;
    this.typed?.();
    this.ended.resolve(outcome);
  }

  private async closeAll(): Promise<void> {
    this.over = true;
    await Promise.all(this.members.map(({ link }) => link.close()));
  }
}

/** What a lead's host has to say, not its VM. */
const NOT_THE_VMS = new Set<string>(["address_invalid", "engine_dead"]);

const NO_WAY =
  "is a firewall between, or has the first host another address for the others? " +
  "say it: --hosts a=10.0.0.1,b";

/** Every host with a problem in one error; the first decides its code. */
function together(problems: readonly SsihvError[]): SsihvError {
  const [first, ...others] = problems;
  if (first === undefined) throw new Error("there is no problem");
  if (others.length === 0) return first;
  const message = problems.map((each) => each.message).join("\n");
  const hint = [...new Set(problems.flatMap(({ hint }) => hint ?? []))].join("\n");
  return new SsihvError(first.code, message, { ...(hint !== "" && { hint }) });
}
