// A file that goes into guest memory: its size and its first bytes, so that a loader can judge it
// without reading all of it; the engine copies the rest straight from the file.

import { closeSync, fstatSync, openSync, readSync } from "node:fs";

import { type ErrorCode, SsihvError } from "./errors.ts";

export interface BootFile {
  path: string;
  size: number;
  /** The first bytes, at most BOOT_FILE_HEAD_BYTES. */
  head: Uint8Array;
}

/** Enough for every header a loader reads (a bzImage's ends below 0x300). */
export const BOOT_FILE_HEAD_BYTES = 4096;

/** What to say when a boot file cannot be opened, by errno name. */
const REASONS: Record<string, string> = {
  ENOENT: "does not exist",
  EACCES: "may not be read by this user",
  EISDIR: "is a directory",
  ENOTDIR: "has a parent that is not a directory",
};

/** `what` and `code` name the file's role in errors: ("kernel", "kernel_invalid"). */
export function openBootFile(path: string, what: string, code: ErrorCode): BootFile {
  let fd: number;
  try {
    fd = openSync(path, "r");
  } catch (cause) {
    throw unreadable(path, what, code, cause);
  }
  try {
    const stat = fstatSync(fd);
    if (!stat.isFile()) {
      throw new SsihvError(code, `${what} ${path} is not a regular file`, {
        hint: `name a file that holds the ${what}`,
      });
    }
    const head = new Uint8Array(Math.min(BOOT_FILE_HEAD_BYTES, stat.size));
    const got = readSync(fd, head, 0, head.length, 0);
    return { path, size: stat.size, head: head.subarray(0, got) };
  } catch (cause) {
    if (cause instanceof SsihvError) throw cause;
    throw unreadable(path, what, code, cause);
  } finally {
    closeSync(fd);
  }
}

function unreadable(path: string, what: string, code: ErrorCode, cause: unknown): SsihvError {
  const errno = cause instanceof Error && "code" in cause ? String(cause.code) : "unknown error";
  return new SsihvError(code, `${what} ${path} ${REASONS[errno] ?? `cannot be read (${errno})`}`, {
    hint: `check the path given as the ${what}`,
    cause,
  });
}
