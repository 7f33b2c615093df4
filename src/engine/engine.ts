// The engine process: `ssihv engine`, one VM on one host. Takes a plan from its parent, builds the
// machine (src/vmm, acpi), loads the Zig data plane and then sleeps; it wakes for rare device
// accesses, reset and the end. The parent reads the shared page itself: nothing here is on a hot
// path.

import { availableParallelism } from "node:os";
import type { MemoryCosts } from "../../acpi/board.ts";
import { SsihvError } from "../base/errors.ts";
import { enums } from "../native/abi.gen.ts";
import {
  dieWithParent,
  EngineHandle,
  hostCpuid,
  hostMsrs,
  hostTscKhz,
  plantCrash,
} from "../native/engine-handle.ts";
import { createDoorbell, type EngineEvent, SharedPage } from "../native/shared-page.ts";
import { PAGE_BYTES } from "../telemetry/node-metrics.ts";
import { readSystemMap, type SymbolMap, symbolAt } from "../telemetry/system-map.ts";
import { SPAN_SERVICE_PRIORITY } from "../vmm/engine-config.ts";
import { type MachinePlan, planLender, planMachine } from "../vmm/machine.ts";
import { isMemoryNode } from "../vmm/memory-budget.ts";
import { costLines, guestCosts } from "../vmm/memory-costs.ts";
import { hostCapabilities } from "./capabilities.ts";
import {
  type Answer,
  ENGINE_FDS,
  type EnginePlan,
  type EngineSummary,
  type FromEngine,
  isToEngine,
  type Question,
  type SandboxWish,
  type StoppedReason,
  type ToEngine,
} from "./messages.ts";
import { PageQueries } from "./page-queries.ts";
import { type Decision, PowerDevices } from "./power.ts";
import { ResetBarrier } from "./reset.ts";
import { enterSandbox } from "./sandbox.ts";
import { allCounters, balloonOf, hasBalloon, heatOf, summarise } from "./summary.ts";

/** Pages in a report. */
const HOT_PAGES = 25;
/** Where an x86-64 kernel without address randomisation puts itself (CONFIG_PHYSICAL_START). */
const KERNEL_TEXT_GPA = 0x100_0000n;

type Send = (message: FromEngine) => void;

const FLUSH_POLL_MS = 5;

const { EventKind, PeerState, StopReason } = enums;

/** Why the data plane stopped, in the words of the control messages; `words` where one reason has
 * several causes. */
const REASONS: Record<number, { reason: StoppedReason; words?: string }> = {
  [StopReason.requested]: { reason: "requested" },
  [StopReason.triple_fault]: { reason: "triple_fault" },
  [StopReason.kvm_internal_error]: { reason: "internal_error", words: "KVM could not go on" },
  [StopReason.mmio_in_ram]: {
    reason: "internal_error",
    words: "KVM reported an access to existing RAM as MMIO",
  },
  [StopReason.vcpu_lost]: { reason: "vcpu_lost" },
  [StopReason.page_lost]: { reason: "page_lost" },
  [StopReason.halted_forever]: { reason: "halted" },
};

export class EngineProcess {
  private readonly page: SharedPage;
  private readonly doorbell = createDoorbell();
  private readonly send: Send;
  private readonly wish: SandboxWish;
  private readonly power = new PowerDevices();
  private handle: EngineHandle | undefined;
  private machine: MachinePlan | undefined;
  private plan: EnginePlan | undefined;
  private startedAt = 0;
  private droppedTold = 0;
  private symbols: SymbolMap | undefined;
  private costs: MemoryCosts | undefined;
  private barrier: ResetBarrier | undefined;
  private pages: PageQueries | undefined;
  private ended = false;

  constructor(sharedFd: number, send: Send, wish: SandboxWish) {
    this.send = send;
    this.wish = wish;
    this.page = SharedPage.map(sharedFd);
    dieWithParent();
  }

  /** Reports what this host has and listens for events. */
  async open(memoryOnly: boolean): Promise<void> {
    await Bun.connect({
      fd: this.doorbell.read,
      socket: { data: () => this.drain() },
    } as unknown as Parameters<typeof Bun.connect>[0]);
    this.send({ type: "ready", capabilities: hostCapabilities(memoryOnly) });
  }

  receive(message: ToEngine): void {
    switch (message.type) {
      case "start":
        return this.start(message.plan);
      case "pause":
        return this.handle?.pause();
      case "resume":
        return this.handle?.resume();
      case "stop":
        return this.handle === undefined ? this.finish("requested") : this.handle.stop();
      case "leave":
        return this.handle?.leave();
      case "peer_ended":
        return this.handle?.peerEnded(message.node);
      case "nmi":
        return this.handle?.sendNmi();
      case "report":
        return this.sendSummary();
      case "ask":
        void this.answer(message.question).then((answer) => {
          this.send({ type: "answer", id: message.id, answer });
        });
        return;
    }
  }

  private async answer(question: Question): Promise<Answer> {
    try {
      if (this.plan === undefined) throw new SsihvError("engine_failed", "it has no VM yet");
      if (question.kind === "summary") {
        return { kind: "summary", summary: this.summary(this.plan) };
      }
      if (question.kind === "stats") {
        return { kind: "stats", stats: allCounters(this.page, this.plan) };
      }
      if (question.kind === "heat") return { kind: "heat", heat: heatOf(this.page) };
      if (question.kind === "balloon") return this.setBalloon(this.plan, question.bytes);
      if (this.pages === undefined) throw plainMemory(this.plan);
      return { kind: "pages", pages: await this.pages.ask(question.gpa, question.count) };
    } catch (error) {
      const { code, message, hint } = asSsihvError(error);
      return { kind: "refused", code, message, ...(hint !== undefined && { hint }) };
    }
  }

  private setBalloon(plan: EnginePlan, bytes: number): Answer {
    if (!hasBalloon(plan) || this.handle === undefined) throw noBalloon(plan);
    this.handle.setBalloon(Math.floor(bytes / PAGE_BYTES));
    return { kind: "balloon", balloon: balloonOf(this.page.stats()) };
  }

  private start(plan: EnginePlan): void {
    this.plan = plan;
    if (isMemoryNode(plan.nodes[plan.node])) this.buildLender(plan);
    else this.buildMachine(plan);
    this.barrier = this.resetBarrier(plan);
    // Before the first byte of a peer or a guest.
    const priority = plan.nodes.length > 1 ? SPAN_SERVICE_PRIORITY : 0;
    this.send({ type: "sandboxed", sandbox: enterSandbox(this.wish, priority) });
    // Loads touch pages whose homes may be elsewhere: lanes first.
    if (plan.lane === undefined) this.run();
    else this.handle?.link(plan.lane);
  }

  private buildLender(plan: EnginePlan): void {
    this.handle = new EngineHandle({
      ...planLender(plan, availableParallelism()),
      shared_fd: this.page.fd,
      console_in_fd: -1,
      console_out_fd: -1,
      doorbell_fd: this.doorbell.write,
    });
  }

  private buildMachine(plan: EnginePlan): void {
    const { systemMap } = plan.options;
    // Read before anything runs: a report must not fail at the end of a long one.
    if (systemMap !== undefined) this.symbols = readSystemMap(systemMap);
    const machine = planMachine(plan, {
      cpuid: hostCpuid(),
      msrs: hostMsrs(),
      tscKhz: hostTscKhz(),
      cpus: availableParallelism(),
    });
    this.machine = machine;
    this.handle = new EngineHandle({
      ...machine.engineConfig,
      shared_fd: this.page.fd,
      console_in_fd: plan.node === 0 ? ENGINE_FDS.consoleIn : -1,
      console_out_fd: plan.node === 0 ? ENGINE_FDS.consoleOut : -1,
      doorbell_fd: this.doorbell.write,
    });
    for (const region of machine.busRegions) this.handle.addRegion(region);
    for (const file of machine.registerFiles) this.handle.addRegisterFile(file);
    if (machine.balloon !== undefined) this.handle.addVirtio(machine.balloon);
    this.handle.setMsrs(machine.msrs);
    machine.cpuid.forEach((entries, vcpu) => {
      this.handle?.setCpuid(vcpu, entries);
    });
    for (const image of [plan.kernel, plan.initrd]) {
      if (image !== undefined && plan.node === 0) this.handle.keepFile(image);
    }
    if (isPaged(plan)) this.pages = this.pageQueries(plan.node, this.handle);
  }

  private run(): void {
    this.loadImages();
    this.startedAt = performance.now();
    this.handle?.start();
    this.send({ type: "started" });
  }

  private pageQueries(node: number, handle: EngineHandle): PageQueries {
    return new PageQueries(node, {
      query: (gpa, count, sequence) => handle.queryPages(gpa, count, sequence),
      answer: () => this.page.pageAnswer(),
    });
  }

  private resetBarrier(plan: EnginePlan): ResetBarrier {
    const nodes = plan.nodes.length;
    const everyone = 2 ** nodes - 1;
    return new ResetBarrier(
      { node: plan.node, nodes, paged: isPaged(plan) },
      {
        pause: () => this.handle?.pause(),
        settlePages: () => this.handle?.settlePages(),
        forgetPages: () => this.handle?.forgetPages(),
        resetMachine: () => this.handle?.reset(),
        load: () => {
          this.loadImages();
          this.handle?.applyBoot();
        },
        resume: () => this.handle?.resume(),
        send: (to, operation) => {
          if (nodes > 1) this.handle?.sendControl(to === "others" ? everyone : 1 << to, operation);
        },
      },
    );
  }

  private loadImages(): void {
    const { handle, machine } = this;
    if (handle === undefined || machine === undefined || machine.boot === undefined) return;
    for (const load of machine.boot.loads(this.costs)) handle.load(load);
    handle.setBoot(machine.boot.registers);
  }

  /** Runs in a socket callback: an error here must reach the parent in words, not end us. */
  private drain(): void {
    try {
      for (const event of this.page.takeEvents()) this.event(event);
      this.tellDropped();
    } catch (error) {
      this.ended = true;
      this.send(failed(error));
    }
  }

  /** Events that found the ring full: counted there, said here. */
  private tellDropped(): void {
    const dropped = this.page.eventsDropped();
    if (dropped === this.droppedTold) return;
    this.droppedTold = dropped;
    this.send({ type: "notice", text: `${dropped} events found the ring full and are lost` });
  }

  private event(event: EngineEvent): void {
    switch (event.kind) {
      case EventKind.io_request:
        return this.ioRequest(event.vcpu);
      case EventKind.register_event:
        return this.decide(this.power.registerEvent(Number(event.a)));
      case EventKind.paused:
        return this.paused();
      case EventKind.stopped:
        return this.stopped(event);
      case EventKind.settled:
        return this.barrier?.settled();
      case EventKind.reset_done:
        return this.barrier?.pagesForgotten();
      case EventKind.control:
        return this.barrier?.control(Number(event.a), Number(event.b));
      case EventKind.peer:
        return this.peer(Number(event.a), Number(event.b));
      case EventKind.linked:
        return this.linked(event);
      case EventKind.pages_answered:
        return this.pages?.answered(Number(event.a));
      case EventKind.notice:
        return this.notice(event);
    }
  }

  private noticeBegun = "";

  /** A long text comes in pieces. */
  private notice(event: EngineEvent): void {
    this.noticeBegun += noticeText(event);
    if (event.vcpu !== 0) return;
    this.send({ type: "notice", text: this.noticeBegun });
    this.noticeBegun = "";
  }

  private ioRequest(vcpu: number): void {
    const slot = this.page.ioSlot(vcpu);
    const answer = this.power.answer({
      device: slot.device,
      isWrite: slot.is_write !== 0,
      size: slot.size,
      value: Number(slot.value & 0xffff_ffffn),
    });
    if (answer.debugByte !== undefined) this.debugByte(answer.debugByte);
    // Before the vCPU goes on: a guest may halt for good behind its reset.
    this.decide(answer.decision);
    if (!this.ended) this.handle?.completeIo(vcpu, BigInt(answer.value >>> 0));
  }

  private debugLine = "";

  /** The debug console goes to the parent line by line. */
  private debugByte(byte: number): void {
    if (byte !== 10 && this.debugLine.length < 400) {
      this.debugLine += String.fromCharCode(byte);
      return;
    }
    this.send({ type: "notice", text: `debug console: ${this.debugLine}` });
    this.debugLine = "";
  }

  private decide(decision: Decision | undefined): void {
    if (decision === undefined || this.ended) return;
    switch (decision.kind) {
      case "power_off":
        return this.finish("powered_off");
      case "debug_exit":
        return this.finish("debug_exit", { code: decision.value });
      case "reset":
        if (this.plan?.options.onReset === "stop")
          return this.finish("reset", { detail: decision.by });
        if (this.barrier?.active) return;
        this.send({ type: "notice", text: `guest reset by ${decision.by}` });
        this.barrier?.begin();
    }
  }

  /** Every vCPU is parked: part of a reset, or an operator's pause, which waits. */
  private paused(): void {
    if (this.barrier?.parked() !== true) this.send({ type: "notice", text: "paused" });
  }

  /** Where the VM cannot go on without the node, event `stopped` comes too. */
  private peer(node: number, state: number): void {
    if (state === PeerState.dead) this.barrier?.lost(node);
  }

  private linked(event: EngineEvent): void {
    if (event.a === 0n) {
      if (this.plan?.node === 0) this.learnCosts(this.plan);
      return this.run();
    }
    this.ended = true;
    const { code, message } = this.handle?.linkFailure() ?? { code: "engine_failed", message: "" };
    this.send({ type: "failed", code, message });
  }

  /** What the nodes found about their links and memory, for the guest and for --report. */
  private learnCosts(plan: EnginePlan): void {
    const nodes = plan.nodes.filter((node) => !isMemoryNode(node)).length;
    // One node has nothing to choose from.
    if (nodes < 2 || this.handle === undefined) return;
    const { clockDilation, report } = plan.options;
    const costs = guestCosts(this.handle.linkCosts(), nodes, clockDilation, plan.memoryCosts);
    this.costs = costs;
    if (costs === undefined) {
      this.send({ type: "notice", text: "memory was not measured; the guest gets no HMAT" });
    } else if (report) {
      for (const text of costLines(costs)) this.send({ type: "notice", text });
    }
  }

  private stopped(event: EngineEvent): void {
    const known = REASONS[Number(event.a)] ?? {
      reason: "internal_error" as const,
      words: `stop reason ${event.a}`,
    };
    const told = this.handle?.stopWords() ?? "";
    if (told !== "") return this.finish(known.reason, { detail: told });
    const words = known.words === undefined ? [] : [known.words];
    const where = event.vcpu === 0xffff_ffff ? [] : [`vCPU ${event.vcpu}`];
    const code = event.b === 0n ? [] : [`code 0x${event.b.toString(16)}`];
    const detail = [...words, ...where, ...code].join(", ");
    this.finish(known.reason, detail === "" ? {} : { detail });
  }

  private sendSummary(): void {
    if (this.plan === undefined) return;
    this.send({ type: "summary", ...this.summary(this.plan), ...this.hotPages() });
  }

  private summary(plan: EnginePlan): EngineSummary {
    const seconds = this.startedAt === 0 ? 0 : (performance.now() - this.startedAt) / 1000;
    return summarise(this.page, plan, seconds);
  }

  /** For --report: the pages that came here most often, named where a map was given. */
  private hotPages(): Pick<EngineSummary, "hotPages"> {
    const { plan, handle, machine } = this;
    // A memory node has no pages of its own.
    if (plan?.options.report !== true || machine === undefined || handle === undefined) return {};
    if (plan.nodes.length === 1) return {};
    const map = this.symbols;
    const hotPages = handle.hotPages(HOT_PAGES).map(({ gpa, transfers }) => {
      const symbol = map === undefined ? undefined : symbolAt(map, gpa, KERNEL_TEXT_GPA);
      const named = symbol === undefined ? {} : { symbol };
      return { gpa: Number(gpa), transfers: Number(transfers), ...named };
    });
    return { hotPages };
  }

  private finish(reason: StoppedReason, more: { code?: number; detail?: string } = {}): void {
    if (this.ended) return;
    this.ended = true;
    this.sendSummary();
    this.send({ type: "stopped", reason, ...more });
    this.handle?.stop();
    this.exitWhenFlushed();
  }

  /** Goes when the console's last byte is out; a parent that does not read it kills us in time. */
  private exitWhenFlushed(): void {
    // A guest that never started has a console without the thread that would call it dead.
    const hasConsole = this.startedAt !== 0 && this.plan?.node === 0;
    setInterval(() => {
      if (!hasConsole || this.page.state() === enums.EngineState.dead) process.exit(0);
    }, FLUSH_POLL_MS);
  }
}

function noticeText(event: EngineEvent): string {
  const bytes = new Uint8Array(40);
  const view = new DataView(bytes.buffer);
  [event.a, event.b, event.c, event.d, event.e].forEach((word, i) => {
    view.setBigUint64(i * 8, word, true);
  });
  const end = bytes.indexOf(0);
  return new TextDecoder().decode(bytes.subarray(0, end < 0 ? bytes.length : end));
}

/** Main of `ssihv engine`: fds as ENGINE_FDS, control by IPC. A memory node's needs no KVM. */
export async function runEngineProcess(memoryOnly: boolean, wish: SandboxWish): Promise<void> {
  const send: Send = (message) => {
    process.send?.(message);
  };
  if (process.send === undefined) {
    throw new SsihvError("engine_failed", "`ssihv engine` is started by `ssihv run`, not by hand", {
      hint: "start a VM with: ssihv run --kernel FILE",
    });
  }
  const planted = process.env.SSIHV_TEST_CRASH;
  const engine = new EngineProcess(ENGINE_FDS.sharedPage, send, wish);
  if (planted !== undefined) plantCrash(Number(planted));
  process.on("message", (message: unknown) => {
    if (!isToEngine(message)) return;
    try {
      engine.receive(message);
    } catch (error) {
      send(failed(error));
      // The console has nothing to say; the timeout lets the message out.
      setTimeout(() => process.exit(0), FLUSH_POLL_MS);
    }
  });
  // The parent is gone, or does not want to hear any more.
  process.on("disconnect", () => process.exit(0));
  // Gone before anybody listened, and before it could be asked to take us along.
  if (process.connected === false) process.exit(0);
  await engine.open(memoryOnly);
}

function isPaged(plan: EnginePlan): boolean {
  return plan.nodes.length > 1 || !plan.options.plainMemory;
}

function plainMemory(plan: EnginePlan): SsihvError {
  const message = `VM ${plan.name} has plain memory: no page of it moves, none has an entry`;
  return new SsihvError("memory_plain", message, {
    hint: "start it with more --nodes, or with --pager",
  });
}

function noBalloon(plan: EnginePlan): SsihvError {
  return new SsihvError("request_invalid", `VM ${plan.name} has no balloon`, {
    hint: 'start it with --balloon 0, or balloon: "0" in its file, or the size it is to have',
  });
}

function asSsihvError(error: unknown): SsihvError {
  if (error instanceof SsihvError) return error;
  const message = error instanceof Error ? (error.stack ?? error.message) : String(error);
  return new SsihvError("engine_failed", message);
}

function failed(error: unknown): FromEngine {
  const { code, message, hint } = asSsihvError(error);
  return { type: "failed", code, message, ...(hint !== undefined && { hint }) };
}
