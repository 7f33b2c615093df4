// DSDT (ACPI 6.3, 5.2.11.1): the namespace: soft off, the CPUs, and the devices that are not on a
// bus that can be probed. Nothing is declared that does not answer.

import { type Aml, device, eisaId, integer, join, list, name, scope, string } from "./aml.ts";
import {
  type AcpiBoard,
  type AcpiCpu,
  type AcpiHardware,
  type AcpiPci,
  type AcpiVirtio,
  HARDWARE,
} from "./board.ts";
import { encodeTable } from "./encoder.ts";
import {
  dwordMemory,
  extendedInterrupt,
  io,
  irq,
  memory32Fixed,
  qwordMemory,
  resourceTemplate,
  wordBusNumber,
  wordIo,
} from "./resources.ts";

/** Revision 2: integers have 64 bits. */
export const DSDT_REVISION = 2;
/** _STA: present, decoding, shown, working (ACPI 6.3, 6.3.7). */
const STATUS_WORKING = 0x0f;
/** PCI configuration mechanism 1: address and data ports. */
const PCI_CONFIG_PORT = 0xcf8;
const PCI_CONFIG_PORTS = 8;

/** _S5: SLP_TYP for PM1a and PM1b, two reserved numbers (ACPI 6.3, 7.4.2). */
function softOff(sleepType: number): Aml {
  return name("_S5", list([integer(sleepType), integer(0), integer(0), integer(0)]));
}

function cpu({ uid, node }: AcpiCpu, position: number): Aml {
  const label = `C${position.toString(16).toUpperCase().padStart(3, "0")}`;
  return device(label, [
    name("_HID", string("ACPI0007")),
    name("_UID", integer(uid)),
    name("_PXM", integer(node)),
    name("_STA", integer(STATUS_WORKING)),
  ]);
}

function serialPort(hardware: AcpiHardware): Aml {
  return device("COM1", [
    name("_HID", eisaId("PNP0501")),
    name("_UID", integer(1)),
    name("_STA", integer(STATUS_WORKING)),
    name("_CRS", resourceTemplate([io(hardware.com1Port, 8), irq(hardware.com1Irq)])),
  ]);
}

function realTimeClock(hardware: AcpiHardware): Aml {
  return device("RTC0", [
    name("_HID", eisaId("PNP0B00")),
    name("_STA", integer(STATUS_WORKING)),
    name("_CRS", resourceTemplate([io(hardware.rtcPort, 2), irq(hardware.rtcIrq)])),
  ]);
}

/** Ports that no other device may be given. */
function claimedPorts(hardware: AcpiHardware): Aml {
  return device("SYSR", [
    name("_HID", eisaId("PNP0C02")),
    name("_CRS", resourceTemplate(hardware.claimedPorts.map(([first, count]) => io(first, count)))),
  ]);
}

/** _PRT: [device << 16 | any function, pin, source 0: a GSI, GSI] (ACPI 6.3, 6.2.13). */
function interruptRouting(pci: AcpiPci): Aml {
  const rows: Aml[] = [];
  for (let slot = 0; slot < 32; slot++) {
    for (let pin = 0; pin < 4; pin++) {
      const gsi = pci.interrupts[(slot + pin) & 3] ?? 0;
      rows.push(
        list([integer(((slot << 16) | 0xffff) >>> 0), integer(pin), integer(0), integer(gsi)]),
      );
    }
  }
  return name("_PRT", list(rows));
}

function pciHost(pci: AcpiPci): Aml {
  const after = PCI_CONFIG_PORT + PCI_CONFIG_PORTS;
  const windows = [
    wordBusNumber(0, pci.lastBus + 1),
    io(PCI_CONFIG_PORT, PCI_CONFIG_PORTS),
    wordIo(0, PCI_CONFIG_PORT),
    wordIo(after, 0x1_0000 - after),
    dwordMemory(pci.memory32.base, pci.memory32.size),
    ...(pci.memory64 ? [qwordMemory(pci.memory64.base, pci.memory64.size)] : []),
  ];
  return device("PCI0", [
    name("_HID", eisaId("PNP0A03")),
    name("_UID", integer(0)),
    name("_SEG", integer(0)),
    name("_BBN", integer(0)),
    name("_PXM", integer(pci.node)),
    name("_CRS", resourceTemplate(windows)),
    interruptRouting(pci),
  ]);
}

/** The id that Linux's virtio_mmio looks for. */
function virtio({ base, size, gsi }: AcpiVirtio, position: number): Aml {
  const signalling = { trigger: "level", polarity: "high", shared: false } as const;
  return device(`VIO${position.toString(16).toUpperCase()}`, [
    name("_HID", string("LNRO0005")),
    name("_UID", integer(position)),
    name("_CCA", integer(1)),
    name("_STA", integer(STATUS_WORKING)),
    name(
      "_CRS",
      resourceTemplate([memory32Fixed(base, size, true), extendedInterrupt([gsi], signalling)]),
    ),
  ]);
}

export function buildDsdt(board: AcpiBoard): Uint8Array {
  const hardware = board.hardware ?? HARDWARE;
  const system = scope("_SB", [
    ...board.cpus.map(cpu),
    serialPort(hardware),
    realTimeClock(hardware),
    claimedPorts(hardware),
    ...(board.pci ? [pciHost(board.pci)] : []),
    ...(board.virtio ?? []).map(virtio),
  ]);
  return encodeTable("DSDT", DSDT_REVISION, join([softOff(0), system]));
}
