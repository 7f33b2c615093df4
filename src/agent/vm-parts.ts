// Starts the parts that the coordinator orders, over the same Vm and JoinSession as `ssihv run` and
// `ssihv join`. What cannot be started is refused at once, with the reason; what fails later is the
// part's end. Each part has the admin socket that `ssihv vm` looks for on this host.

import { SsihvError } from "../base/errors.ts";
import type { AgentQuestion, Order } from "../control/messages.ts";
import type { VmSpec } from "../control/vm-spec.ts";
import { JoinAdmin } from "../node/admin-open.ts";
import { AdminServer } from "../node/admin-server.ts";
import type { Groups } from "../node/control-group.ts";
import type { ParentPage } from "../node/engine-process.ts";
import type { HostFacts } from "../node/host-facts.ts";
import { JoinSession } from "../node/join.ts";
import type { SandboxMode } from "../node/sandbox.ts";
import { Vm, type VmDeps } from "../node/vm.ts";
import { checkMemory, planVm, type VmRequest } from "../node/vm-request.ts";
import { heatOfVm, sampleVm, setBalloon, showPages, showVm } from "../node/vm-view.ts";
import { ConsoleHistory } from "./console-history.ts";
import { endedOf, PartRecord } from "./part.ts";

export interface PartsDeps {
  readonly facts: () => HostFacts;
  readonly createPage: () => ParentPage;
  readonly sandbox?: SandboxMode;
  readonly groups?: Groups;
  /** Replaces the executable of engines, for tests. */
  readonly engineCommand?: readonly string[];
  /** The address at which other hosts reach this one's engines. */
  readonly laneHost: () => string;
  say(text: string): void;
  /** Something about the part is new. */
  onChange(part: PartRecord): void;
}

type LeadOrder = Extract<Order, { type: "lead" }>;
type JoinOrder = Extract<Order, { type: "join" }>;

/** How long the other hosts of a VM may take to come. */
const JOIN_MS = 60_000;

const DEFAULTS = {
  clockDilation: 1,
  peerTimeoutMs: 5000,
  stallFreezeMs: 300,
  holdUsMax: 1000,
} as const;

/** A VM's request as `ssihv run` would make it from flags. */
export function requestOf(spec: VmSpec, door: VmRequest["door"]): VmRequest {
  const { nodeMemoryBytes, memoryNodeMemoryBytes, cacheBytes, initrd, pollUsMax } = spec;
  const { balloonBytes } = spec;
  const dilation = spec.clockDilation ?? DEFAULTS.clockDilation;
  const peerTimeoutMs = spec.peerTimeoutMs ?? DEFAULTS.peerTimeoutMs;
  // As for `ssihv run`: of the guest's time, and well within the peer timeout.
  const freeze = Math.min(DEFAULTS.stallFreezeMs * dilation, Math.floor(peerTimeoutMs / 2));
  return {
    name: spec.name,
    kernel: spec.kernel,
    ...(initrd !== undefined && { initrd }),
    cmdline: spec.cmdline ?? "",
    nodes: spec.nodes.map(({ cpus, memoryBytes }) => ({ cpus, memoryBytes: BigInt(memoryBytes) })),
    memory: {
      memoryNodes: spec.memoryNodes ?? 0,
      copies: spec.copies ?? 1,
      ...(nodeMemoryBytes !== undefined && { nodeBytes: BigInt(nodeMemoryBytes) }),
      ...(memoryNodeMemoryBytes !== undefined && {
        memoryNodeBytes: BigInt(memoryNodeMemoryBytes),
      }),
      ...(cacheBytes !== undefined && { cacheBytes: BigInt(cacheBytes) }),
    },
    ...(door !== undefined && { door }),
    ...costsOf(spec),
    reboot: spec.reboot ?? true,
    pageTables: spec.pageTables ?? "auto",
    clockDilation: dilation,
    peerTimeoutMs,
    stallFreezeMs: spec.stallFreezeMs ?? freeze,
    holdUsMax: spec.holdUsMax ?? DEFAULTS.holdUsMax,
    ...(pollUsMax !== undefined && { pollUsMax }),
    ...(balloonBytes !== undefined && { balloonBytes: BigInt(balloonBytes) }),
    pager: false,
    pinVcpus: false,
    report: false,
  };
}

function costsOf({ memoryLatencyNs, memoryBandwidthMBps }: VmSpec) {
  if (memoryLatencyNs === undefined && memoryBandwidthMBps === undefined) return {};
  return { memoryCosts: { latencyNs: memoryLatencyNs, bandwidthMBps: memoryBandwidthMBps } };
}

function shutIn({ sandbox, groups }: PartsDeps): Pick<PartsDeps, "sandbox" | "groups"> {
  return { ...(sandbox !== undefined && { sandbox }), ...(groups !== undefined && { groups }) };
}

export class LeadPart {
  readonly record: PartRecord;
  readonly history = new ConsoleHistory();
  private readonly vm: Vm;

  private constructor(order: LeadOrder, vm: Vm, admin: AdminServer) {
    this.vm = vm;
    this.record = new PartRecord(order.spec.name, order.run, true, {
      facts: () => vm.facts(),
      ask: (node, question) => vm.ask(node, question),
      stop: () => vm.stop(),
      dump: () => vm.dump(),
      killAll: () => {
        vm.killAll();
        admin.close();
      },
    });
  }

  /** Throws what keeps it from starting; its engines come up afterwards. */
  static async start(order: LeadOrder, deps: PartsDeps): Promise<LeadPart> {
    const { spec, key, listenHost, listenPort } = order;
    const alone = spec.nodes.length + (spec.memoryNodes ?? 0) === 1;
    const door = {
      listen: { host: listenHost, port: listenPort },
      key: Buffer.from(key, "hex"),
      // Nobody is to type this key: hosts get it from the coordinator.
      keyFile: "",
    };
    const plan = planVm(requestOf(spec, alone ? undefined : door), deps.facts());
    // Its name is taken here before anything starts.
    const admin = await AdminServer.open({ vm: spec.name, chosen: true });
    const say = (text: string) => deps.say(`VM ${spec.name}: ${text}`);
    const vmDeps: VmDeps = {
      createPage: deps.createPage,
      ...shutIn(deps),
      ...(deps.engineCommand !== undefined && { command: deps.engineCommand }),
    };
    const vm: Vm = new Vm(
      plan,
      {
        onConsole: (chunk) => part.history.push(chunk),
        onEvent: (event) => {
          if (event.event === "notice" || event.event === "memory_lost") say(event.text);
          if (event.event === "stderr") say(`engine of node ${event.node}: ${event.text}`);
          deps.onChange(part.record);
        },
      },
      vmDeps,
    );
    const part = new LeadPart(order, vm, admin);
    admin.serve(vm);
    void part.watch(admin, deps);
    return part;
  }

  async type(bytes: Uint8Array): Promise<void> {
    await this.vm.writeConsole(bytes);
  }

  ask(question: AgentQuestion): Promise<object> {
    switch (question.op) {
      case "show":
        return showVm(this.vm);
      case "stats":
        return sampleVm(this.vm);
      case "heat":
        return heatOfVm(this.vm);
      case "pages":
        return showPages(this.vm, question.gpa, question.count);
      case "balloon":
        return setBalloon(this.vm, question.bytes);
    }
  }

  private async watch(admin: AdminServer, deps: PartsDeps): Promise<void> {
    const { record, vm } = this;
    let late: SsihvError | undefined;
    const timer = setTimeout(() => {
      if (vm.facts().state !== "waiting") return;
      late = new SsihvError(
        "node_unreachable",
        `its other hosts did not join in ${JOIN_MS / 1000} s`,
      );
      vm.stop();
    }, JOIN_MS);
    const ended = endedOf(await vm.run());
    clearTimeout(timer);
    admin.close();
    const end = late === undefined ? ended : endedOf({ kind: "failed", error: late });
    record.end(end);
    deps.say(`VM ${record.vm}: ${end.text}`);
    deps.onChange(record);
  }
}

export class JoinPart {
  readonly record: PartRecord;

  private constructor(order: JoinOrder, session: JoinSession, admin: JoinAdmin) {
    this.record = new PartRecord(order.vm, order.run, false, {
      facts: () => session.facts(),
      ask: (node, question) => session.ask(node, question),
      stop: () => session.leave("the coordinator took it out of the VM"),
      dump: () => session.dump(),
      killAll: () => {
        session.killAll();
        admin.close();
      },
    });
  }

  static start(order: JoinOrder, deps: PartsDeps): JoinPart {
    const { vm, key, node, memoryOnly, leadHost, leadPort } = order;
    const admin = new JoinAdmin();
    const say = (text: string) => deps.say(`VM ${vm}, node ${node}: ${text}`);
    const session: JoinSession = new JoinSession(
      {
        lead: { host: leadHost, port: leadPort },
        key: Buffer.from(key, "hex"),
        waitMs: JOIN_MS,
        laneHost: deps.laneHost(),
        ...{ memoryOnly, node },
      },
      {
        createPage: deps.createPage,
        ...shutIn(deps),
        ...(deps.engineCommand !== undefined && { command: deps.engineCommand }),
        check: ({ nodes }) => checkMemory(nodes.slice(node, node + 1), deps.facts()),
        onEvent: (event) => {
          if (event.event === "notice" || event.event === "stderr") say(event.text);
          if (event.event === "joined") void admin.open(vm, node, session, say);
          deps.onChange(part.record);
        },
      },
    );
    const part = new JoinPart(order, session, admin);
    void session.run().then((outcome) => {
      admin.close();
      const ended = endedOf(outcome);
      part.record.end(ended);
      say(ended.text);
      deps.onChange(part.record);
    });
    return part;
  }
}
