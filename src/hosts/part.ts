// The part of a VM on a host, for `ssihv run --hosts` elsewhere: leads the VM or joins it, by the
// Vm and JoinSession of `ssihv run` and `ssihv join`, as the messages on stdin say.
// Invariants: when the conversation ends, so does the part, and its engines with it: no VM
// outlives the command that started it. Nothing but messages is written to stdout.

import { SsihvError } from "../base/errors.ts";
import type { EngineSummary } from "../engine/messages.ts";
import type { HostProbe } from "../native/engine-handle.ts";
import { JoinAdmin, openAdmin } from "../node/admin-open.ts";
import type { ParentPage } from "../node/engine-process.ts";
import { checkHost } from "../node/host-check.ts";
import type { HostFacts } from "../node/host-facts.ts";
import { JoinSession } from "../node/join.ts";
import { encodeOutcome } from "../node/join-messages.ts";
import { Vm, type VmEvent, type VmOutcome, type VmPlan } from "../node/vm.ts";
import { checkMemory, warnings } from "../node/vm-request.ts";
import { BootFiles } from "./boot-files.ts";
import {
  type FromPart,
  type JoinOrder,
  type LeadOrder,
  type PartHost,
  PORT_BLOCKS,
  PORTS_PER_VM,
  type ToPart,
  toBase64,
} from "./part-messages.ts";

export interface PartDeps {
  readonly facts: () => HostFacts;
  readonly probe: () => Promise<HostProbe>;
  readonly createPage: () => ParentPage;
  /** Replaces the executable of engines, for tests. */
  readonly engineCommand?: readonly string[];
  readonly env: Readonly<Record<string, string | undefined>>;
  send(message: FromPart): void;
}

/** How long the lead may take to listen, and its port to be reached. */
const JOIN_MS = 30_000;

/** What of the VM is here; ends it all. */
interface Running {
  readonly ended: Promise<VmOutcome>;
  stop(why: string): void;
  killAll(): void;
  dump(): void;
  summaries(): EngineSummary[];
}

export class HostPart {
  private readonly deps: PartDeps;
  private readonly files = new BootFiles();
  private readonly over = Promise.withResolvers<void>();
  private begun = false;
  private running: Running | undefined;
  private vm: Vm | undefined;
  private taken: (() => void) | undefined;
  private given: readonly (readonly [own: string, given: string])[] = [];
  /** Nobody takes the console any more. */
  private cut = false;
  private signal: SsihvError | undefined;
  /** Why nothing is to go on. */
  private stopped: string | undefined;

  constructor(deps: PartDeps) {
    this.deps = deps;
  }

  /** Until the part has ended, or the conversation before there was one. */
  async run(): Promise<void> {
    this.deps.send({ type: "host", host: await this.host() });
    await this.over.promise;
    this.files.close();
  }

  message(message: ToPart): void {
    switch (message.type) {
      case "file":
        return this.file(message);
      case "lead":
        return this.start(() => this.lead(message));
      case "join":
        return this.start(() => this.join(message));
      case "input":
        return void this.type(message.data);
      case "taken":
        return this.taken?.();
      case "stop":
        return this.stop("the command that started the VM ended it");
      case "pause":
        return this.vm?.togglePause();
      case "nmi":
        return this.vm?.nmi();
      case "report":
        return this.vm?.report();
      case "dump":
        return this.running?.dump();
      case "alive":
        return;
    }
  }

  /** Who runs this host ends it: whatever the VM makes of that, it is no end in order. */
  signalled(signal: NodeJS.Signals): void {
    const why = `ssihv was ended there by ${signal}`;
    this.signal ??= new SsihvError("engine_dead", why, {
      hint: "by hand, by the host's shutdown, or by its batch system (scancel, a time limit)?",
    });
    if (!this.begun) this.failed(this.signal);
    this.stop(why);
  }

  /** The conversation is over: nobody is there for whom to go on. */
  lost(why: string): void {
    this.cut = true;
    // What is on its way must not hold up the end.
    this.taken?.();
    if (!this.begun) this.over.resolve();
    this.stop(why);
  }

  private stop(why: string): void {
    this.stopped ??= why;
    this.running?.stop(why);
  }

  /** At once and for good; for the last moments of this process. */
  killAll(): void {
    this.running?.killAll();
  }

  private async host(): Promise<PartHost> {
    const facts = this.deps.facts();
    const check = checkHost(await this.deps.probe(), facts);
    // "client-ip client-port server-ip server-port", ssh(1).
    const [reachedFrom, , reachedAt] = (this.deps.env["SSH_CONNECTION"] ?? "").split(" ");
    return {
      check,
      ...(reachedAt && { reachedAt }),
      ...(reachedFrom && { reachedFrom }),
      freePorts: PORT_BLOCKS.filter(isFree),
    };
  }

  private file({ file, data }: Extract<ToPart, { type: "file" }>): void {
    try {
      this.files.add(file, Buffer.from(data, "base64"));
    } catch (error) {
      this.failed(error);
    }
  }

  private start(begin: () => Promise<Running>): void {
    if (this.begun || this.stopped !== undefined) return;
    this.begun = true;
    void begin()
      .then((running) => this.watch(running))
      .catch((error: unknown) => this.failed(error));
  }

  private async watch(running: Running): Promise<void> {
    this.running = running;
    if (this.stopped !== undefined) running.stop(this.stopped);
    const ended = await running.ended;
    const outcome =
      this.signal === undefined ? ended : ({ kind: "failed", error: this.signal } as const);
    const told = this.inUsersWords(encodeOutcome(outcome));
    this.deps.send({ type: "ended", outcome: told, summaries: running.summaries() });
    this.over.resolve();
  }

  private failed(error: unknown): void {
    const ours =
      error instanceof SsihvError ? error : new SsihvError("engine_failed", String(error));
    const outcome = this.inUsersWords(encodeOutcome({ kind: "failed", error: ours }));
    this.deps.send({ type: "ended", outcome, summaries: [] });
    this.stopped ??= ours.message;
    this.over.resolve();
  }

  /** Boot files have other paths here than those that the user knows. */
  private inUsersWords<T>(value: T): T {
    let text = JSON.stringify(value);
    for (const [own, given] of this.given) {
      text = text.replaceAll(`${own}`, () => JSON.stringify(given).slice(1, -1));
    }
    return JSON.parse(text) as T;
  }

  private planHere({ plan, key, listen }: LeadOrder): VmPlan {
    const kernel = this.files.path("kernel") ?? plan.kernel;
    const initrd = this.files.path("initrd") ?? plan.initrd;
    this.given = [
      [kernel, plan.kernel],
      ...(initrd !== undefined && plan.initrd !== undefined
        ? [[initrd, plan.initrd] as const]
        : []),
    ];
    return {
      ...plan,
      kernel,
      ...(initrd !== undefined && { initrd }),
      // Nobody is to type this key: other parts get it as this one did.
      ...(listen !== undefined && { door: { listen, key: Buffer.from(key, "hex"), keyFile: "" } }),
    };
  }

  private async lead(order: LeadOrder): Promise<Running> {
    const { send, createPage, engineCommand, facts } = this.deps;
    const wanted = this.planHere(order);
    checkMemory(wanted.nodes.slice(0, 1), facts());
    const admin = await openAdmin({ vm: wanted.name, chosen: order.nameChosen });
    const plan = { ...wanted, name: admin.server?.vm ?? wanted.name };
    send({
      type: "named",
      vm: plan.name,
      warnings: [...admin.warnings, ...warnings(plan, facts())],
    });
    const vm = new Vm(
      plan,
      {
        onConsole: (chunk) => this.onConsole(chunk),
        onEvent: (event) => this.onEvent(event),
      },
      {
        ...{ createPage, sandbox: order.sandbox },
        ...(engineCommand !== undefined && { command: engineCommand }),
      },
    );
    this.vm = vm;
    admin.server?.serve(vm);
    return {
      ended: vm.run().finally(() => admin.server?.close()),
      stop: () => vm.stop(),
      killAll: () => {
        vm.killAll();
        admin.server?.close();
      },
      dump: () => vm.dump(),
      summaries: () => vm.summaries(),
    };
  }

  private async join({
    lead,
    key,
    node,
    memoryOnly,
    laneHost,
    hostName,
    sandbox,
  }: JoinOrder): Promise<Running> {
    const { send, createPage, engineCommand, facts } = this.deps;
    const admin = new JoinAdmin();
    const say = (text: string) => send({ type: "notice", text });
    const session: JoinSession = new JoinSession(
      {
        lead,
        key: Buffer.from(key, "hex"),
        waitMs: JOIN_MS,
        ...(laneHost !== undefined && { laneHost }),
        ...{ memoryOnly, node, hostName },
      },
      {
        ...{ createPage, sandbox },
        ...(engineCommand !== undefined && { command: engineCommand }),
        check: ({ nodes }) => checkMemory(nodes.slice(node, node + 1), facts()),
        onEvent: (event) => {
          // What its engine says comes by the lead, too.
          if (event.event !== "joined") return;
          send({ type: "joined" });
          void admin.open(event.welcome.vm, node, session, say);
        },
      },
    );
    return {
      ended: session.run().finally(() => admin.close()),
      stop: (why) => session.leave(why),
      killAll: () => {
        session.killAll();
        admin.close();
      },
      dump: () => session.dump(),
      summaries: () => [],
    };
  }

  private onEvent(event: VmEvent): void {
    this.deps.send({ type: "event", event: this.inUsersWords(event) });
  }

  private async onConsole(chunk: Uint8Array): Promise<void> {
    if (this.cut) return;
    const taken = Promise.withResolvers<void>();
    this.taken = taken.resolve;
    this.deps.send({ type: "console", data: toBase64(chunk) });
    await taken.promise;
  }

  private async type(data: string): Promise<void> {
    await this.vm?.writeConsole(Buffer.from(data, "base64"));
    this.deps.send({ type: "typed" });
  }
}

/** Nobody listens on any port of a VM that begins there. */
function isFree(first: number): boolean {
  const data = () => undefined;
  const hostname = "0.0.0.0";
  for (let port = first; port < first + PORTS_PER_VM; port++) {
    try {
      Bun.listen({ hostname, port, socket: { data } }).stop(true);
    } catch {
      // Whatever is the matter with it, it is not free.
      return false;
    }
  }
  return true;
}
