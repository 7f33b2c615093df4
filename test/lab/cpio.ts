// Writes initramfs archives ("newc" cpio, the format of Documentation/driver-api/early-userspace/
// buffer-format.rst in Linux). Own writer because an archive must come out byte for byte the same
// on every machine (it is cached by content) and must hold device nodes without anyone being root.
// Invariants: owner 0:0, time 0, inode numbers by position, entries in the order given.

export type CpioEntry =
  | { kind: "directory"; path: string; mode?: number }
  | { kind: "file"; path: string; mode?: number; bytes: Uint8Array }
  | { kind: "symlink"; path: string; target: string }
  | { kind: "character"; path: string; mode?: number; major: number; minor: number };

// File types of st_mode, <linux/stat.h>.
const S_IFDIR = 0o040000;
const S_IFREG = 0o100000;
const S_IFLNK = 0o120000;
const S_IFCHR = 0o020000;

const encoder = new TextEncoder();

/** The archive as one byte array, padded to 512 bytes as cpio tools do. */
export function writeCpio(entries: readonly CpioEntry[]): Uint8Array {
  const chunks: Uint8Array[] = [];
  entries.forEach((entry, index) => {
    checkPath(entry.path);
    chunks.push(...record(entry.path, describe(entry), index + 1));
  });
  chunks.push(...record("TRAILER!!!", { mode: 0, links: 1, bytes: new Uint8Array(0) }, 0));
  const size = chunks.reduce((sum, chunk) => sum + chunk.length, 0);
  chunks.push(new Uint8Array(padding(size, 512)));
  return concatenate(chunks);
}

interface Described {
  mode: number;
  links: number;
  bytes: Uint8Array;
  major?: number;
  minor?: number;
}

function describe(entry: CpioEntry): Described {
  switch (entry.kind) {
    case "directory":
      return { mode: S_IFDIR | (entry.mode ?? 0o755), links: 2, bytes: new Uint8Array(0) };
    case "file":
      return { mode: S_IFREG | (entry.mode ?? 0o644), links: 1, bytes: entry.bytes };
    case "symlink":
      return { mode: S_IFLNK | 0o777, links: 1, bytes: encoder.encode(entry.target) };
    case "character":
      return {
        mode: S_IFCHR | (entry.mode ?? 0o600),
        links: 1,
        bytes: new Uint8Array(0),
        major: entry.major,
        minor: entry.minor,
      };
  }
}

// The kernel unpacks what it is given, with paths relative to the root of the initramfs.
function checkPath(path: string): void {
  const parts = path.split("/");
  if (path === "" || path.startsWith("/") || parts.includes("..") || parts.includes("")) {
    throw new RangeError(`cpio path "${path}" must be relative, without empty or ".." parts`);
  }
}

function record(path: string, entry: Described, inode: number): Uint8Array[] {
  const name = encoder.encode(`${path}\0`);
  // Thirteen eight-digit fields: ino mode uid gid nlink mtime filesize devmajor devminor
  // rdevmajor rdevminor namesize check.
  const fields = [
    inode,
    entry.mode,
    0,
    0,
    entry.links,
    0,
    entry.bytes.length,
    0,
    0,
    entry.major ?? 0,
    entry.minor ?? 0,
    name.length,
    0,
  ];
  const digits = fields.map((field) => field.toString(16).padStart(8, "0")).join("");
  const header = encoder.encode(`070701${digits}`);
  return [
    header,
    name,
    new Uint8Array(padding(header.length + name.length, 4)),
    entry.bytes,
    new Uint8Array(padding(entry.bytes.length, 4)),
  ];
}

function padding(size: number, unit: number): number {
  return (unit - (size % unit)) % unit;
}

function concatenate(chunks: readonly Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(chunks.reduce((sum, chunk) => sum + chunk.length, 0));
  let offset = 0;
  for (const chunk of chunks) {
    whole.set(chunk, offset);
    offset += chunk.length;
  }
  return whole;
}
