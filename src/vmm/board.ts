// The machine: addresses, device ids and the bus table, as data. What answers an address is decided
// here and nowhere else; ACPI (acpi/tables.ts) and the Zig devices name the same numbers.
// A rare device whose answer must come before the guest goes on (reset, exit) is `typescript`; a
// device that is only registers is a register file; what a PC may probe and we lack is `none`
// (reads ones).

import {
  BUS_TARGET,
  type BusRegion,
  IO_KIND,
  REGISTER_FILE_MAX,
  type RegisterFile,
} from "./records.ts";

/** Local and I/O APIC pages, COM1 and the rest of the PC's fixed addresses. */
export const BOARD = {
  lapicBase: 0xfee0_0000n,
  ioapicBase: 0xfec0_0000n,
  ioapicBytes: 0x1000n,
  ioapicPins: 24,
  /** SCI of the ICH9: GSI 9, level, active high (see the MADT override). */
  sciGsi: 9,
  com1Port: 0x3f8,
  com1Irq: 4,
  rtcPort: 0x70,
  rtcIrq: 8,
  pm1EventPort: 0x600,
  pm1ControlPort: 0x604,
  pmTimerPort: 0x608,
  resetPort: 0xcf9,
  i8042CommandPort: 0x64,
  debugExitPort: 0xf4,
  debugConsolePort: 0x402,
  hypervisorPort: 0x5658,
  /** Registers of the virtio balloon, and its interrupt: level, active high, above those of ISA. */
  virtioBase: 0xfea0_0000n,
  virtioBytes: 0x200n,
  virtioGsi: 16,
} as const;

/** Values that mean something at these ports. */
export const POWER = {
  /** PM1a_CNT bit 13, SLP_EN (ACPI 6.5, 4.8.3.2.1): enter the state of SLP_TYP, bits 12:10. */
  sleepEnable: 0x2000,
  sleepTypeShift: 10,
  sleepTypeMask: 7,
  /** SLP_TYP of soft off: what the DSDT's _S5 says. */
  sleepTypeS5: 0,
  /**
   * Reset control register (ICH9, 0xCF9): bit 2 RST_CPU starts a reset, bit 1 makes it a full one.
   */
  resetCpu: 4,
  resetFull: 6,
  /** i8042 command 0xFE pulses output line 0, which is the PC's reset line. */
  i8042Reset: 0xfe,
  /** What the debug console port reads as: its presence mark (bochs, QEMU debugcon). */
  debugConsoleMark: 0xe9,
} as const;

/** `device` of bus regions, io slots and register events. */
export const DEVICE = {
  none: 0,
  uart: 1,
  rtc: 2,
  pmTimer: 3,
  ioapic: 4,
  hypervisorPort: 5,
  balloon: 6,
  pm1Event: 16,
  pm1Control: 17,
  nmiStatus: 18,
  pit: 19,
  i8042: 32,
  reset: 33,
  debugExit: 34,
  debugConsole: 35,
} as const;

export type DeviceId = (typeof DEVICE)[keyof typeof DEVICE];

type Target = keyof typeof BUS_TARGET;

/** [target, first port, ports, device]: every claimed port of the machine. */
const PORTS: readonly (readonly [Target, number, number, DeviceId])[] = [
  ["none", 0x00, 0x10, DEVICE.none], // DMA controller 1
  ["none", 0x20, 2, DEVICE.none], // PIC 1: ones fail Linux's probe, it then goes on without
  ["none", 0x2e, 2, DEVICE.none], // Super I/O index
  ["register_file", 0x40, 4, DEVICE.pit],
  ["none", 0x4e, 2, DEVICE.none], // Super I/O index
  ["none", 0x60, 1, DEVICE.none], // i8042 data: never full, see its status
  ["register_file", 0x61, 1, DEVICE.nmiStatus],
  ["typescript", BOARD.i8042CommandPort, 1, DEVICE.i8042],
  ["rtc", BOARD.rtcPort, 2, DEVICE.rtc],
  ["none", 0x80, 0x10, DEVICE.none], // POST code and DMA pages; Linux's io_delay writes 0x80
  ["none", 0xa0, 2, DEVICE.none], // PIC 2
  ["none", 0xc0, 0x20, DEVICE.none], // DMA controller 2
  ["none", 0xed, 1, DEVICE.none], // the other io_delay port
  ["none", 0xf0, 2, DEVICE.none], // FPU error latch
  ["typescript", BOARD.debugExitPort, 4, DEVICE.debugExit],
  ["none", 0x2e8, 8, DEVICE.none], // COM4
  ["none", 0x2f8, 8, DEVICE.none], // COM2
  ["none", 0x3b0, 0x30, DEVICE.none], // VGA
  ["none", 0x3e8, 8, DEVICE.none], // COM3
  ["uart", BOARD.com1Port, 8, DEVICE.uart],
  ["typescript", BOARD.debugConsolePort, 1, DEVICE.debugConsole],
  ["none", 0x4d0, 2, DEVICE.none], // ELCR
  ["register_file", BOARD.pm1EventPort, 4, DEVICE.pm1Event],
  ["register_file", BOARD.pm1ControlPort, 2, DEVICE.pm1Control],
  ["pm_timer", BOARD.pmTimerPort, 4, DEVICE.pmTimer],
  // PCI configuration: ones say that there is none. The reset register shares the address port's
  // dword.
  ["none", 0xcf8, 1, DEVICE.none],
  ["typescript", BOARD.resetPort, 1, DEVICE.reset],
  ["none", 0xcfa, 2, DEVICE.none],
  ["none", 0xcfc, 4, DEVICE.none],
  ["hypervisor_port", BOARD.hypervisorPort, 4, DEVICE.hypervisorPort],
];

/** The bus table, in address order per kind; every device lives on `node`. */
export function busRegions(balloon = false, node = 0): BusRegion[] {
  const ports = PORTS.map(([target, base, len, device]) => ({
    kind: IO_KIND.pio,
    target: BUS_TARGET[target],
    base: BigInt(base),
    len: BigInt(len),
    device,
    node,
  }));
  const virtio: BusRegion = {
    kind: IO_KIND.mmio,
    target: BUS_TARGET.virtio,
    base: BOARD.virtioBase,
    len: BOARD.virtioBytes,
    device: DEVICE.balloon,
    node,
  };
  return [
    ...ports,
    ...(balloon ? [virtio] : []),
    {
      kind: IO_KIND.mmio,
      target: BUS_TARGET.ioapic,
      base: BOARD.ioapicBase,
      len: BOARD.ioapicBytes,
      device: DEVICE.ioapic,
      node,
    },
  ];
}

/** Bytes of a register file, low byte of each register first. */
interface FileBytes {
  image: readonly number[];
  write?: readonly number[];
  w1c?: readonly number[];
  event?: readonly number[];
}

function registerFile(device: DeviceId, bytes: FileBytes): RegisterFile {
  const fill = (from: readonly number[] = []): Uint8Array => {
    const out = new Uint8Array(REGISTER_FILE_MAX);
    out.set(from);
    return out;
  };
  return {
    device,
    len: bytes.image.length,
    image: fill(bytes.image),
    write_mask: fill(bytes.write),
    w1c_mask: fill(bytes.w1c),
    event_mask: fill(bytes.event),
  };
}

export function registerFiles(): RegisterFile[] {
  return [
    // PM1 status (write one to clear: TMR, BM, GBL, PWRBTN, SLPBTN, RTC, WAK) and PM1 enable
    // (TMR, GBL, PWRBTN, SLPBTN, RTC): ACPI 6.5, 4.8.3.1.
    registerFile(DEVICE.pm1Event, {
      image: [0, 0, 0, 0],
      write: [0, 0, 0x21, 0x07],
      w1c: [0x31, 0x87, 0, 0],
    }),
    // PM1 control: SCI_EN reads as one (no SMI mode), BM_RLD and SLP_TYP keep what is written,
    // SLP_EN reads as zero and is the event: ACPI 6.5, 4.8.3.2.
    registerFile(DEVICE.pm1Control, { image: [1, 0], write: [2, 0x1c], event: [0, 0x20] }),
    // Port 0x61: bits 7:6 (NMI reasons) must read zero or every NMI is a memory error; bit 5, the
    // output of PIT channel 2, reads one so that a wait for it ends; bits 3:0 keep what is written.
    registerFile(DEVICE.nmiStatus, { image: [0x20], write: [0x0f] }),
    // PIT: counters stand at zero. Ones would cost Linux's calibration 100,000 reads.
    registerFile(DEVICE.pit, { image: [0, 0, 0, 0] }),
  ];
}
