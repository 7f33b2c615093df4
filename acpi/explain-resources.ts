// Resource descriptors of a _CRS or _PRS buffer in words (ACPI 6.3, 6.4). Every descriptor carries
// its length, so an unknown one is named by its type and skipped; a cut one ends the list.

function uint(bytes: Uint8Array, at: number, size: number): bigint {
  let value = 0n;
  for (let i = size - 1; i >= 0; i--) value = (value << 8n) | BigInt(bytes[at + i] ?? 0);
  return value;
}

const hex = (value: bigint): string => `0x${value.toString(16).toUpperCase()}`;

const WINDOW_SPACES: Readonly<Record<number, string>> = { 0: "memory", 1: "I/O", 2: "bus numbers" };

/** Address windows: granularity, minimum, maximum, translation and length, `size` bytes each. */
function describeWindow(body: Uint8Array, size: number): string {
  const space = body[0] ?? 0;
  const what = WINDOW_SPACES[space] ?? `space ${space}`;
  const consumed = ((body[1] ?? 0) & 1) === 1 ? "used" : "passed on";
  const low = uint(body, 3 + size, size);
  const high = uint(body, 3 + 2 * size, size);
  const total = uint(body, 3 + 4 * size, size);
  return `${what} ${hex(low)} to ${hex(high)}, ${hex(total)} in all, ${consumed}`;
}

function describeInterrupts(body: Uint8Array): string {
  const flags = body[0] ?? 0;
  const count = body[1] ?? 0;
  const gsis = Array.from({ length: count }, (_, i) => `${uint(body, 2 + 4 * i, 4)}`);
  const trigger = flags & 2 ? "edge" : "level";
  return `interrupt ${gsis.join(", ")}: ${trigger}, active ${flags & 4 ? "low" : "high"}`;
}

function describeIrq(body: Uint8Array): string {
  const mask = Number(uint(body, 0, 2));
  const lines = Array.from({ length: 16 }, (_, i) => i).filter((i) => (mask >> i) & 1);
  return `IRQ ${lines.join(", ")}`;
}

/** [bytes needed, words] by type: small items by 0x00-0x78, large ones by 0x80 and up. */
const KNOWN: Readonly<Record<number, readonly [number, (body: Uint8Array) => string]>> = {
  32: [2, describeIrq],
  64: [
    7,
    (body) => {
      const [low, high] = [uint(body, 1, 2), uint(body, 3, 2)];
      const where = low === high ? hex(low) : `${hex(low)} to ${hex(high)}`;
      return `I/O ports at ${where}, ${body[6] ?? 0} of them`;
    },
  ],
  133: [17, (body) => `memory ${hex(uint(body, 1, 4))} to ${hex(uint(body, 5, 4))}`],
  134: [9, (body) => `memory at ${hex(uint(body, 1, 4))}, ${hex(uint(body, 5, 4))} bytes`],
  135: [23, (body) => describeWindow(body, 4)],
  136: [13, (body) => describeWindow(body, 2)],
  137: [6, describeInterrupts],
  138: [43, (body) => describeWindow(body, 8)],
};

const END_TAG = 0x78;

export function describeResources(buffer: Uint8Array): string[] {
  const lines: string[] = [];
  for (let at = 0; at < buffer.length; ) {
    const first = buffer[at] ?? 0;
    const isLarge = first >= 0x80;
    const type = isLarge ? first : first & 0x78;
    if (type === END_TAG) return lines;
    const body = at + (isLarge ? 3 : 1);
    const size = isLarge ? Number(uint(buffer, at + 1, 2)) : first & 7;
    if (body + size > buffer.length) return [...lines, "(a descriptor is cut)"];
    const known = KNOWN[type];
    const described = known !== undefined && size >= known[0];
    const name = `descriptor of type 0x${type.toString(16)}, ${size} byte(s)`;
    lines.push(described ? known[1](buffer.subarray(body, body + size)) : name);
    at = body + size;
  }
  return [...lines, "(no end tag)"];
}
