// Bytes of ACPI structures: a growing little-endian buffer, the checksum, and the header that every
// system description table begins with (ACPI 6.3, 5.2.6).
// Invariants: a value that does not fit its field is a defect and throws, it is never cut; a table
// made here carries its own length and sums to zero.

/** Who made the tables: shown by `ssihv acpi explain` and the guest's boot messages. */
export const OEM_ID = "SSIHV ";
export const OEM_TABLE_ID = "SSIHVVM ";
const OEM_REVISION = 1;
const CREATOR_ID = "SSIH";
const CREATOR_REVISION = 1;

/** Bytes of the common header; its length stands at 4, its checksum at 9. */
export const HEADER_BYTES = 36;
const LENGTH_OFFSET = 4;
const CHECKSUM_OFFSET = 9;

export class Encoder {
  #bytes = new Uint8Array(256);
  #length = 0;

  get length(): number {
    return this.#length;
  }

  #room(count: number): number {
    const at = this.#length;
    const end = at + count;
    if (end > this.#bytes.length) {
      const grown = new Uint8Array(Math.max(end, this.#bytes.length * 2));
      grown.set(this.#bytes);
      this.#bytes = grown;
    }
    this.#length = end;
    return at;
  }

  /** `size` bytes, low byte first. */
  uint(value: number | bigint, size: number): this {
    let left = BigInt(value);
    if (left < 0n || left >> BigInt(size * 8) !== 0n) {
      throw new Error(`0x${left.toString(16)} does not fit ${size} byte(s) of an ACPI table`);
    }
    const at = this.#room(size);
    for (let i = 0; i < size; i++) {
      this.#bytes[at + i] = Number(left & 0xffn);
      left >>= 8n;
    }
    return this;
  }

  u8(value: number): this {
    return this.uint(value, 1);
  }

  u16(value: number): this {
    return this.uint(value, 2);
  }

  u32(value: number): this {
    return this.uint(value, 4);
  }

  u64(value: bigint): this {
    return this.uint(value, 8);
  }

  /** Exactly `size` characters; shorter text is padded with zero bytes. */
  ascii(text: string, size: number): this {
    if (text.length > size || !/^[\x20-\x7e]*$/.test(text)) {
      throw new Error(`"${text}" is not ASCII of at most ${size} characters`);
    }
    const at = this.#room(size);
    for (let i = 0; i < text.length; i++) this.#bytes[at + i] = text.charCodeAt(i);
    return this;
  }

  bytes(bytes: Uint8Array): this {
    const at = this.#room(bytes.length);
    this.#bytes.set(bytes, at);
    return this;
  }

  zeros(count: number): this {
    this.#room(count);
    return this;
  }

  finish(): Uint8Array {
    return this.#bytes.slice(0, this.#length);
  }
}

/** The byte that makes `bytes` sum to zero modulo 256. */
export function checksum(bytes: Uint8Array): number {
  let sum = 0;
  for (const byte of bytes) sum += byte;
  return -sum & 0xff;
}

/** A whole table: common header, the body, length and checksum in place. */
export function encodeTable(signature: string, revision: number, body: Uint8Array): Uint8Array {
  const table = new Encoder()
    .ascii(signature, 4)
    .u32(HEADER_BYTES + body.length)
    .u8(revision)
    .u8(0)
    .ascii(OEM_ID, 6)
    .ascii(OEM_TABLE_ID, 8)
    .u32(OEM_REVISION)
    .ascii(CREATOR_ID, 4)
    .u32(CREATOR_REVISION)
    .bytes(body)
    .finish();
  table[CHECKSUM_OFFSET] = checksum(table);
  return table;
}

/** The length a table claims in its header; `bytes` must hold the header. */
export function claimedLength(bytes: Uint8Array): number {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length).getUint32(LENGTH_OFFSET, true);
}
