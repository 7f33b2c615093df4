// The shared page of an engine: stats, event ring, io slots, last words. The engine maps the memfd
// its parent made, so both read the same page; TypeScript writes only the ring's tail.
// 64-bit counters are read as two u32 halves: exact to 2^53, and a torn read across a carry shows
// an old high half for one sample at most.

import { type Pointer, ptr, toArrayBuffer } from "bun:ffi";
import { constants, records } from "./abi.gen.ts";
import { checked, library } from "./library.ts";
import { decode, type RecordOf } from "./record.ts";

export type EngineEvent = RecordOf<typeof records.Event>;
export type IoSlot = RecordOf<typeof records.IoSlot>;
export type LastWords = RecordOf<typeof records.LastWords>;
export type PageRecord = RecordOf<typeof records.PageRecord>;

const layout = records.Shared.fields;
const ring = records.EventRing.fields;

export class SharedPage {
  readonly fd: number;
  private readonly address: bigint;
  private readonly bytes: Uint8Array;
  private readonly view: DataView;

  private constructor(fd: number, address: bigint) {
    this.fd = fd;
    this.address = address;
    const buffer = toArrayBuffer(Number(address) as Pointer, 0, records.Shared.size);
    this.bytes = new Uint8Array(buffer);
    this.view = new DataView(buffer);
  }

  /** A new page: the parent's side. */
  static create(): SharedPage {
    const out = new Uint8Array(records.SharedInfo.size);
    checked(library().ssihv_shared_create(ptr(out)));
    const { fd, address } = decode(records.SharedInfo, out);
    return new SharedPage(fd, address);
  }

  /** The engine's side; from here on a crash leaves last words. */
  static map(fd: number): SharedPage {
    const out = new Uint8Array(records.SharedInfo.size);
    checked(library().ssihv_shared_map(fd, ptr(out)));
    return new SharedPage(fd, decode(records.SharedInfo, out).address);
  }

  close(): void {
    checked(library().ssihv_shared_close(this.fd, this.address));
  }

  /**
   * Takes every event in the ring, oldest first. The head is looked at once more after the tail has
   * moved: whoever added an event before that found the ring not empty, and rang no bell.
   */
  takeEvents(): EngineEvent[] {
    const base = layout.ring.offset;
    const heads = new Int32Array(this.bytes.buffer, base, 2);
    let tail = Atomics.load(heads, 1) >>> 0;
    const events: EngineEvent[] = [];
    for (;;) {
      const head = Atomics.load(heads, 0) >>> 0;
      if (tail === head) return events;
      while (tail !== head) {
        const index = tail % constants.event_ring_entries;
        const offset = base + ring.entries.offset + index * records.Event.size;
        events.push(decode(records.Event, this.bytes.slice(offset, offset + records.Event.size)));
        tail = (tail + 1) >>> 0;
      }
      Atomics.store(heads, 1, tail | 0);
    }
  }

  eventsDropped(): number {
    return this.view.getUint32(layout.ring.offset + ring.dropped.offset, true);
  }

  ioSlot(vcpu: number): IoSlot {
    const offset = layout.io_slots.offset + vcpu * records.IoSlot.size;
    return decode(records.IoSlot, this.bytes.slice(offset, offset + records.IoSlot.size));
  }

  /** The shard's newest answer about pages: read it after its event, before the next question. */
  pageAnswer(): { readonly sequence: number; readonly records: readonly PageRecord[] } {
    const base = layout.pages.offset;
    const { count, records: list, sequence } = records.PageAnswer.fields;
    const { size } = records.PageRecord;
    const n = Math.min(this.view.getUint32(base + count.offset, true), list.count);
    return {
      sequence: this.view.getUint32(base + sequence.offset, true),
      records: Array.from({ length: n }, (_, i) => {
        const offset = base + list.offset + i * size;
        return decode(records.PageRecord, this.bytes.slice(offset, offset + size));
      }),
    };
  }

  /** Remote faults that ended, by block of guest RAM, without the zeros at the end. */
  heat(): { readonly blockPages: number; readonly faults: readonly number[] } {
    const { block_pages, count, faults } = records.Heat.fields;
    const base = layout.heat.offset;
    let n = Math.min(this.view.getUint32(base + count.offset, true), faults.count);
    const at = (i: number) => this.view.getUint32(base + faults.offset + i * 4, true);
    while (n > 0 && at(n - 1) === 0) n -= 1;
    return {
      blockPages: this.view.getUint32(base + block_pages.offset, true),
      faults: Array.from({ length: n }, (_, i) => at(i)),
    };
  }

  state(): number {
    return this.view.getUint32(layout.state.offset, true);
  }

  lastWords(): LastWords {
    const { offset } = layout.last_words;
    return decode(records.LastWords, this.bytes.slice(offset, offset + records.LastWords.size));
  }

  cpuDump(): RecordOf<typeof records.CpuDump> {
    const { offset } = layout.cpu_dump;
    return decode(records.CpuDump, this.bytes.slice(offset, offset + records.CpuDump.size));
  }

  stats(): RecordOf<typeof records.EngineStats> {
    const { offset } = layout.stats;
    return decode(records.EngineStats, this.bytes.slice(offset, offset + records.EngineStats.size));
  }

  vcpuStats(vcpu: number): RecordOf<typeof records.VcpuStats> {
    const offset = layout.vcpus.offset + vcpu * records.VcpuStats.size;
    return decode(records.VcpuStats, this.bytes.slice(offset, offset + records.VcpuStats.size));
  }
}

/** A pair of connected sockets: the engine writes one, TypeScript reads the other. */
export function createDoorbell(): { readonly write: number; readonly read: number } {
  const out = new Int32Array(2);
  checked(library().ssihv_doorbell_create(ptr(out)));
  return { read: out[0] ?? -1, write: out[1] ?? -1 };
}
