import { describe, expect, test } from "bun:test";
import { HARDWARE } from "../../acpi/board.ts";
import { BOARD, busRegions, DEVICE, POWER, registerFiles } from "./board.ts";
import { PCI_HOLE_BASE, PCI_HOLE_END } from "./memory-map.ts";
import { BUS_TARGET, type BusRegion, IO_KIND, REGISTER_FILE_MAX } from "./records.ts";

const regions = busRegions(true);

function portOwner(port: number): BusRegion | undefined {
  return regions.find(({ kind, base, len }) => {
    return kind === IO_KIND.pio && BigInt(port) >= base && BigInt(port) < base + len;
  });
}

describe("bus table", () => {
  test("no two regions of a kind overlap", () => {
    for (const kind of [IO_KIND.pio, IO_KIND.mmio]) {
      const sorted = regions
        .filter((r) => r.kind === kind)
        .sort((a, b) => (a.base < b.base ? -1 : 1));
      sorted.reduce((end, { base, len }) => {
        expect(base).toBeGreaterThanOrEqual(end);
        expect(len).toBeGreaterThan(0n);
        return base + len;
      }, 0n);
    }
  });

  test("fits the engine's table (zig/engine/bus.zig regions_max)", () => {
    expect(regions.length).toBeLessThanOrEqual(64);
  });

  test("the ports of the machine go to their devices", () => {
    const owners: [number, keyof typeof BUS_TARGET, number][] = [
      [0x3f8, "uart", DEVICE.uart],
      [0x3ff, "uart", DEVICE.uart],
      [0x70, "rtc", DEVICE.rtc],
      [0x608, "pm_timer", DEVICE.pmTimer],
      [0x600, "register_file", DEVICE.pm1Event],
      [0x604, "register_file", DEVICE.pm1Control],
      [0x61, "register_file", DEVICE.nmiStatus],
      [0x42, "register_file", DEVICE.pit],
      [0x64, "typescript", DEVICE.i8042],
      [0xcf9, "typescript", DEVICE.reset],
      [0xf4, "typescript", DEVICE.debugExit],
      [0x402, "typescript", DEVICE.debugConsole],
      [0x5658, "hypervisor_port", DEVICE.hypervisorPort],
      [0x21, "none", DEVICE.none],
      [0xa1, "none", DEVICE.none],
      [0x4d0, "none", DEVICE.none],
      [0x80, "none", DEVICE.none],
      [0xed, "none", DEVICE.none],
      [0xcf8, "none", DEVICE.none],
      [0xcfc, "none", DEVICE.none],
    ];
    for (const [port, target, device] of owners) {
      const owner = portOwner(port);
      expect({ port, target: owner?.target, device: owner?.device }).toEqual({
        port,
        target: BUS_TARGET[target],
        device,
      });
    }
  });

  test("every device lives on the node asked for", () => {
    expect(busRegions(true, 1).every((region) => region.node === 1)).toBe(true);
  });

  test("device ids are unique, and every register file has a region", () => {
    const ids = Object.values(DEVICE);
    expect(new Set(ids).size).toBe(ids.length);
    const files = registerFiles().map((file) => file.device);
    const wanted = regions
      .filter((region) => region.target === BUS_TARGET.register_file)
      .map((region) => region.device);
    expect([...files].sort()).toEqual([...wanted].sort());
  });
});

describe("register files", () => {
  test("are as long as their region and full length in memory", () => {
    for (const file of registerFiles()) {
      const region = regions.find((r) => r.device === file.device);
      expect(BigInt(file.len)).toBe(region?.len ?? -1n);
      for (const bytes of [file.image, file.write_mask, file.w1c_mask, file.event_mask]) {
        expect(bytes.length).toBe(REGISTER_FILE_MAX);
        expect(bytes.subarray(file.len).every((byte) => byte === 0)).toBe(true);
      }
    }
  });

  test("PM1 control: SCI_EN always reads one, SLP_EN is an event and reads zero", () => {
    const file = registerFiles().find((f) => f.device === DEVICE.pm1Control);
    const word = (bytes: Uint8Array | undefined): number =>
      (bytes?.[0] ?? 0) | ((bytes?.[1] ?? 0) << 8);
    expect(word(file?.image)).toBe(1);
    expect(word(file?.event_mask)).toBe(POWER.sleepEnable);
    expect(word(file?.write_mask) & (POWER.sleepEnable | 1)).toBe(0);
    const types = POWER.sleepTypeMask << POWER.sleepTypeShift;
    expect(word(file?.write_mask) & types).toBe(types);
  });

  test("no NMI reason is ever shown at port 0x61", () => {
    const file = registerFiles().find((f) => f.device === DEVICE.nmiStatus);
    expect(((file?.image[0] ?? 0xff) | (file?.write_mask[0] ?? 0xff)) & 0xc0).toBe(0);
  });
});

test("the ACPI tables tell the same addresses", () => {
  const told: Record<string, unknown> = { ...HARDWARE };
  const shared = Object.entries(BOARD).filter(([name]) => name in told);
  expect(shared.length).toBeGreaterThanOrEqual(10);
  for (const [name, value] of shared) expect([name, told[name]]).toEqual([name, value]);
  expect(HARDWARE.resetValue).toBe(POWER.resetFull);
  expect(HARDWARE.hole).toEqual([PCI_HOLE_BASE, PCI_HOLE_END]);
  for (const [port] of HARDWARE.claimedPorts) expect(portOwner(port)?.device).toBeGreaterThan(0);
});

test("the board's addresses are those of the PC", () => {
  expect(BOARD.lapicBase).toBe(0xfee0_0000n);
  expect(BOARD.ioapicBase).toBe(0xfec0_0000n);
  expect(BOARD.sciGsi).toBeLessThan(BOARD.ioapicPins);
  expect(BOARD.virtioGsi).toBeLessThan(BOARD.ioapicPins);
  expect(BOARD.virtioBase).toBeGreaterThanOrEqual(PCI_HOLE_BASE);
});
