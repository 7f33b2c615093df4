// Typed calls into the engine of this process: plain objects in, errors out. The only file that
// holds raw pointers besides shared-page.ts and library.ts; buffers live until the call returns,
// since every exported function copies what it needs.

import { ptr } from "bun:ffi";
import { closeSync, openSync } from "node:fs";
import { constants as system } from "node:os";
import { SsihvError } from "../base/errors.ts";
import { constants, records } from "./abi.gen.ts";
import { checked, library, type Reasons } from "./library.ts";
import { concatRecords, decode, encode, type RecordOf } from "./record.ts";

export type EngineConfig = RecordOf<typeof records.EngineConfig>;
export type BusRegion = RecordOf<typeof records.BusRegion>;
export type RegisterFile = RecordOf<typeof records.RegisterFile>;
export type CpuidEntry = RecordOf<typeof records.CpuidEntry>;
export type MsrEntry = RecordOf<typeof records.MsrEntry>;
export type VcpuRecord = RecordOf<typeof records.VcpuRecord>;
export type VirtioDevice = RecordOf<typeof records.VirtioDevice>;
export type HostProbe = RecordOf<typeof records.HostProbe>;

/** Guest bytes: in memory, or a range of a file that Zig copies itself. */
export type Load =
  | { readonly gpa: bigint; readonly bytes: Uint8Array }
  | {
      readonly gpa: bigint;
      readonly file: string;
      readonly offset: number;
      readonly length: number;
    };

const { EACCES, EADDRINUSE, EADDRNOTAVAIL } = system.errno;
const LISTEN_REASONS: Reasons = {
  [EACCES]: "engines give up the privileges that ports below 1024 take; choose a higher one",
  [EADDRINUSE]: "something listens there already; choose another port",
  [EADDRNOTAVAIL]: "this host does not have that address",
};

/** Where the lanes of a VM's engines listen: "host:port" or "unix:/path". */
export interface LaneAddresses {
  readonly listen: string;
  readonly peers: readonly { readonly node: number; readonly address: string }[];
}

export class EngineHandle {
  private readonly handle: number;
  /** Open as long as the process. */
  private readonly kept = new Map<string, number>();

  constructor(config: EngineConfig) {
    const out = new Uint32Array(1);
    const bytes = encode(records.EngineConfig, config);
    checked(library().ssihv_engine_create(ptr(bytes), ptr(out)));
    this.handle = out[0] ?? 0;
  }

  /** Opens an image for every later load: a sandboxed engine opens none. */
  keepFile(path: string): void {
    if (!this.kept.has(path)) this.kept.set(path, openFile(path));
  }

  load(load: Load): void {
    if ("bytes" in load) {
      if (load.bytes.length === 0) return;
      const status = library().ssihv_engine_load(
        this.handle,
        load.gpa,
        ptr(load.bytes),
        load.bytes.length,
      );
      return checked(status);
    }
    const kept = this.kept.get(load.file);
    const fd = kept ?? openFile(load.file);
    try {
      const { gpa, offset, length } = load;
      const lib = library();
      checked(lib.ssihv_engine_load_file(this.handle, gpa, fd, BigInt(offset), BigInt(length)));
    } finally {
      if (kept === undefined) closeSync(fd);
    }
  }

  addRegion(region: BusRegion): void {
    checked(library().ssihv_engine_bus_add(this.handle, ptr(encode(records.BusRegion, region))));
  }

  addRegisterFile(file: RegisterFile): void {
    const bytes = encode(records.RegisterFile, file);
    checked(library().ssihv_engine_register_file(this.handle, ptr(bytes)));
  }

  /** Before start(). */
  addVirtio(device: VirtioDevice): void {
    checked(library().ssihv_engine_virtio(this.handle, ptr(encode(records.VirtioDevice, device))));
  }

  /** Pages that the guest is to give into its balloon from now on. */
  setBalloon(pages: number): void {
    checked(library().ssihv_engine_balloon(this.handle, pages));
  }

  setCpuid(vcpu: number, entries: readonly CpuidEntry[]): void {
    const bytes = concatRecords(records.CpuidEntry, entries);
    checked(library().ssihv_engine_cpuid(this.handle, vcpu, ptr(bytes), entries.length));
  }

  /** MSRs every vCPU starts with, after a reset too. */
  setMsrs(entries: readonly MsrEntry[]): void {
    if (entries.length === 0) return;
    const bytes = concatRecords(records.MsrEntry, entries);
    checked(library().ssihv_engine_msrs(this.handle, ptr(bytes), entries.length));
  }

  setBoot(record: VcpuRecord): void {
    checked(library().ssihv_engine_boot(this.handle, ptr(encode(records.VcpuRecord, record))));
  }

  /** After a reset: gives the boot vCPU its record again. */
  applyBoot(): void {
    checked(library().ssihv_engine_apply_boot(this.handle));
  }

  start(): void {
    checked(library().ssihv_engine_start(this.handle));
  }

  pause(): void {
    checked(library().ssihv_engine_pause(this.handle));
  }

  resume(): void {
    checked(library().ssihv_engine_resume(this.handle));
  }

  reset(): void {
    checked(library().ssihv_engine_reset(this.handle));
  }

  stop(): void {
    checked(library().ssihv_engine_stop(this.handle));
  }

  /** A memory node leaves the VM, which goes on where its pages have other copies. */
  leave(): void {
    checked(library().ssihv_engine_leave(this.handle));
  }

  /** A memory node's process has ended, and was reaped: it is lost at once. */
  peerEnded(node: number): void {
    checked(library().ssihv_engine_peer_ended(this.handle, node));
  }

  /** Connects to the engines of the other nodes, in the background; event `linked` follows. */
  link(lane: LaneAddresses): void {
    const port = new Uint32Array(1);
    const own = Buffer.from(lane.listen);
    const listening = library().ssihv_engine_listen(this.handle, ptr(own), own.length, ptr(port));
    checked(listening, "engine_failed", LISTEN_REASONS);
    for (const { node, address } of lane.peers) {
      const text = Buffer.from(address);
      checked(library().ssihv_engine_peer(this.handle, node, ptr(text), text.length));
    }
    checked(library().ssihv_engine_link(this.handle));
  }

  /** After event `stopped`: why, where one reason has several causes; else empty. */
  stopWords(): string {
    const bytes = new Uint8Array(256);
    const length = new Uint32Array(1);
    checked(library().ssihv_engine_stop_words(this.handle, ptr(bytes), bytes.length, ptr(length)));
    return new TextDecoder().decode(bytes.subarray(0, length[0] ?? 0));
  }

  /** Why the last link() failed. */
  linkFailure(): SsihvError {
    try {
      checked(library().ssihv_link_failure(this.handle), "node_unreachable");
    } catch (error) {
      if (error instanceof SsihvError) return error;
      throw error;
    }
    throw new Error("a failed link left no words");
  }

  /** After event `linked`, on node 0: what memory costs, [node of the CPU][node of the memory]. */
  linkCosts(): RecordOf<typeof records.LinkCost>[][] {
    const row = records.LinkCost.size * constants.nodes_max;
    const bytes = new Uint8Array(row * constants.nodes_max);
    checked(library().ssihv_link_costs(this.handle, ptr(bytes)));
    const all = Array.from({ length: constants.nodes_max }, (_, node) => node);
    return all.map((from) =>
      all.map((to) =>
        decode(records.LinkCost, bytes.subarray(from * row + to * records.LinkCost.size)),
      ),
    );
  }

  /** To the TypeScript of the nodes in the mask, in order with pages and interrupts. */
  sendControl(nodes: number, operation: number): void {
    checked(library().ssihv_span_send(this.handle, nodes, operation, 0n));
  }

  /** Lets arrive what this node has under way; event `settled` follows. */
  settlePages(): void {
    checked(library().ssihv_pages_settle(this.handle));
  }

  /** Forgets every page of this node; event `reset_done` follows. */
  forgetPages(): void {
    checked(library().ssihv_pages_reset(this.handle));
  }

  /** The pages that came from other nodes most often, most first. */
  hotPages(count: number): RecordOf<typeof records.HotPage>[] {
    const bytes = new Uint8Array(records.HotPage.size * count);
    const found = new Uint32Array(1);
    checked(library().ssihv_pages_hot(this.handle, ptr(bytes), count, ptr(found)));
    return Array.from({ length: found[0] ?? 0 }, (_, i) =>
      decode(records.HotPage, bytes.subarray(i * records.HotPage.size)),
    );
  }

  /** Asks the shard; event `pages_answered` with the sequence (1 to 65535) follows. */
  queryPages(gpa: bigint, count: number, sequence: number): void {
    checked(library().ssihv_pages_query(this.handle, gpa, count, sequence));
  }

  completeIo(vcpu: number, value: bigint): void {
    checked(library().ssihv_io_complete(this.handle, vcpu, value));
  }

  sendNmi(): void {
    checked(library().ssihv_nmi_send(this.handle));
  }
}

function openFile(path: string): number {
  try {
    return openSync(path, "r");
  } catch (cause) {
    throw new SsihvError("kernel_invalid", `cannot open ${path}`, { cause });
  }
}

/** Runs every host probe (`ssihv check`); takes up to a few seconds. */
export function hostProbe(): HostProbe {
  const bytes = new Uint8Array(records.HostProbe.size);
  checked(library().ssihv_host_probe(ptr(bytes)), "host_unfit");
  return decode(records.HostProbe, bytes);
}

function list<R extends (typeof records)["CpuidEntry" | "MsrEntry"]>(
  record: R,
  capacity: number,
  call: (entries: ReturnType<typeof ptr>, count: ReturnType<typeof ptr>) => number,
): RecordOf<R>[] {
  const bytes = new Uint8Array(record.size * capacity);
  const count = new Uint32Array(1);
  checked(call(ptr(bytes), ptr(count)), "host_unfit");
  const n = count[0] ?? 0;
  return Array.from({ length: n }, (_, i) =>
    decode(record, bytes.subarray(i * record.size, (i + 1) * record.size)),
  ) as RecordOf<R>[];
}

/** KVM_GET_SUPPORTED_CPUID of this host. */
export function hostCpuid(): CpuidEntry[] {
  return list(records.CpuidEntry, 256, (p, n) => library().ssihv_host_cpuid(p, 256, n));
}

/** Feature MSRs KVM reports for this host. */
export function hostMsrs(): MsrEntry[] {
  return list(records.MsrEntry, 256, (p, n) => library().ssihv_host_msrs(p, 256, n));
}

/** This host's TSC frequency in kHz, as KVM reports it. */
export function hostTscKhz(): number {
  const out = new Uint32Array(1);
  checked(library().ssihv_host_tsc_khz(ptr(out)), "host_unfit");
  return out[0] ?? 0;
}

/** Whether the hardware's walk of a guest's page tables needs them writable (NPT, EPT with A/D). */
export function hostWalksWrite(): boolean {
  const out = new Uint32Array(1);
  checked(library().ssihv_host_walks_write(ptr(out)), "host_unfit");
  return out[0] !== 0;
}

/** Ends this process the hard way, for tests of last words: 1 = Zig panic, 2 = SIGSEGV. */
export function plantCrash(kind: number): void {
  checked(library().ssihv_crash_plant(kind));
}

/** As long as it lives; later it is another's number. */
const parent = process.ppid;

/** This process ends with its parent. */
export function dieWithParent(): void {
  checked(library().ssihv_parent_death_signal(parent, 9));
}

/**
 * For good; threads may still have real-time priorities up to `priority`. The kernel forgets
 * dieWithParent then: it has to be asked for again.
 */
export function becomeUser(user: number, priority: number): void {
  checked(library().ssihv_sandbox_user(user, priority));
}

/** No new privileges and a filter of system calls, for good. */
export function filterCalls(): void {
  checked(library().ssihv_sandbox_filter());
}
