import { expect, test } from "bun:test";
import { SsihvError } from "../src/base/errors.ts";
import { type AcpiBoard, checkBoard } from "./board.ts";
import { BOARDS, LARGE, TWO_NODES } from "./example.fixture.ts";

const GIB = 1n << 30n;

test.each(Object.entries(BOARDS))("%s is possible", (_, board) => {
  expect(() => checkBoard(board)).not.toThrow();
});

const cpu = (apicId: number, uid: number, node = 0) => ({ apicId, uid, node });
const ram = (base: bigint, size: bigint, node = 0) => ({ base, size, node });
const { pci } = LARGE;
if (pci === undefined) throw new Error("the fixture has PCI");

const IMPOSSIBLE: readonly [string, Partial<AcpiBoard>, RegExp][] = [
  ["base not aligned", { base: 0xe_0010n }, /cannot be placed at 0xe0010/],
  ["base above 4 GiB", { base: 4n * GIB }, /cannot be placed at 0x100000000/],
  ["negative base", { base: -64n }, /cannot be placed/],
  ["no CPUs", { cpus: [] }, /no CPUs/],
  ["APIC id twice", { cpus: [cpu(1, 0), cpu(1, 1)] }, /two CPUs have the APIC id 1/],
  ["UID twice", { cpus: [cpu(1, 7), cpu(2, 7)] }, /two CPUs have the UID 7/],
  ["APIC id of all CPUs", { cpus: [cpu(255, 0)] }, /APIC id 255/],
  ["x2APIC id of all CPUs", { cpus: [cpu(0xffff_ffff, 0)] }, /APIC id 4294967295/],
  ["APIC id not whole", { cpus: [cpu(1.5, 0)] }, /APIC id 1\.5/],
  ["negative UID", { cpus: [cpu(1, -1)] }, /UID -1/],
  ["CPU on no node", { cpus: [cpu(0, 0, 2)] }, /CPU 0 is on node 2, .* has 2 node/],
  [
    "more CPUs than names",
    { cpus: Array.from({ length: 4097 }, (_, i) => cpu(1000 + i, i)) },
    /4097 CPUs/,
  ],
  ["no memory", { memory: [] }, /no memory/],
  ["empty range", { memory: [ram(0n, 0n)] }, /empty/],
  ["RAM on no node", { memory: [ram(0n, GIB, -1)] }, /is on node -1/],
  ["RAM over RAM", { memory: [ram(GIB, GIB), ram(0n, GIB + 1n)] }, /0x0 and 0x40000000 overlap/],
  ["the same RAM twice", { memory: [ram(0n, GIB), ram(0n, GIB)] }, /overlap/],
  ["RAM in the device hole", { memory: [ram(0n, 4n * GIB)] }, /device hole 0xc0000000/],
  ["RAM above 52 bits", { memory: [ram((1n << 52n) - 1n, 2n)] }, /above 52 bits/],
  ["no distances", { distances: [] }, /matrix is empty/],
  ["not square", { distances: [[10, 20], [20]] }, /row 1 has 1 values, there are 2 rows/],
  ["not square, wide", { distances: [[10, 20]] }, /not square/],
  [
    "diagonal not 10",
    {
      distances: [
        [10, 20],
        [20, 11],
      ],
    },
    /from node 1 to node 1 is 11/,
  ],
  [
    "as near as local",
    {
      distances: [
        [10, 10],
        [20, 10],
      ],
    },
    /from node 0 to node 1 is 10/,
  ],
  [
    "unreachable",
    {
      distances: [
        [10, 20],
        [255, 10],
      ],
    },
    /from node 1 to node 0 is 255/,
  ],
  [
    "distance not whole",
    {
      distances: [
        [10, 20.5],
        [20, 10],
      ],
    },
    /is 20\.5/,
  ],
  ["bridge on no node", { pci: { ...pci, node: 9 } }, /PCI host bridge is on node 9/],
  ["bus 256", { pci: { ...pci, lastBus: 256 } }, /last PCI bus is 256/],
  ["virtio in RAM", { virtio: [{ base: GIB, size: 512n, gsi: 16 }] }, /not inside the device hole/],
  ["virtio on an ISA line", { virtio: [{ base: 3n * GIB, size: 512n, gsi: 15 }] }, /has GSI 15/],
  ["no such GSI", { pci: { ...pci, interrupts: [16, 17, 18, -1] } }, /GSI -1/],
  [
    "PCI window over RAM",
    { pci: { ...pci, memory32: ram(GIB, GIB) } },
    /not inside the device hole/,
  ],
  [
    "64-bit window over RAM",
    { pci: { ...pci, memory64: ram(4n * GIB + 1n, GIB) } },
    /0x100000001 overlaps RAM/,
  ],
  ["64-bit window below 4 GiB", { pci: { ...pci, memory64: ram(GIB, 1n) } }, /is impossible/],
];

test.each(IMPOSSIBLE)("%s is refused", (_, change, message) => {
  let error: unknown;
  try {
    checkBoard({ ...TWO_NODES, ...change });
  } catch (thrown) {
    error = thrown;
  }
  expect(error).toBeInstanceOf(SsihvError);
  expect((error as SsihvError).code).toBe("acpi_invalid");
  expect((error as SsihvError).message).toMatch(message);
});
