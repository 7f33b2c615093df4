// The key of a VM in a file that the user brings to every host: 64 hexadecimal characters. Whoever
// reads it can join the VM, so a file that others may read is refused. The key is never logged.

import { closeSync, fstatSync, openSync, readSync } from "node:fs";

import { SsihvError } from "../base/errors.ts";

/** 32 bytes in hex and a line ending; a longer file is no key. */
const FILE_BYTES_MAX = 128;
/** Bits for group and others: read, write and run. */
const NOT_OWNER = 0o077;

function invalid(path: string, why: string, hint: string, cause?: unknown): SsihvError {
  return new SsihvError("key_invalid", `--key-file: ${path} ${why}`, { hint, cause });
}

function makeHint(path: string): string {
  return `openssl rand -hex 32 > ${path}; chmod 600 ${path}`;
}

/** The 32 bytes in the file. */
export function readKeyFile(path: string): Uint8Array {
  const text = read(path).trim();
  if (!/^[0-9a-f]{64}$/i.test(text)) {
    throw invalid(path, "does not hold 64 hexadecimal characters", makeHint(path));
  }
  return Buffer.from(text, "hex");
}

function read(path: string): string {
  let fd: number;
  try {
    fd = openSync(path, "r");
  } catch (cause) {
    const errno = cause instanceof Error && "code" in cause ? String(cause.code) : "unreadable";
    const missing = errno === "ENOENT";
    const why = missing ? "does not exist" : `cannot be read (${errno})`;
    throw invalid(path, why, missing ? makeHint(path) : "name a file of your own", cause);
  }
  try {
    const stat = fstatSync(fd);
    if (!stat.isFile()) throw invalid(path, "is not a regular file", makeHint(path));
    if ((stat.mode & NOT_OWNER) !== 0) {
      const mode = (stat.mode & 0o777).toString(8);
      throw invalid(path, `is open to other users (mode ${mode})`, `chmod 600 ${path}`);
    }
    const bytes = Buffer.alloc(FILE_BYTES_MAX);
    return bytes.subarray(0, readSync(fd, bytes, 0, bytes.length, 0)).toString("latin1");
  } finally {
    closeSync(fd);
  }
}
