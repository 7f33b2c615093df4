// Boot files that came over the connection, on the host that leads the VM: open files without a
// name, which engines reach through /proc. So nothing is to be removed, whatever ends this
// process; and every run sends them anew.

import { closeSync, mkdtempSync, openSync, rmdirSync, unlinkSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { SsihvError } from "../base/errors.ts";
import type { BootFile } from "./part-messages.ts";

export class BootFiles {
  private readonly files = new Map<BootFile, number>();

  add(file: BootFile, data: Uint8Array): void {
    try {
      const fd = this.files.get(file) ?? nameless();
      this.files.set(file, fd);
      for (let at = 0; at < data.length; ) at += writeSync(fd, data, at);
    } catch (cause) {
      const errno = cause instanceof Error && "code" in cause ? String(cause.code) : "unwritable";
      const message = `the ${file} does not fit into ${tmpdir()} there (${errno})`;
      throw new SsihvError(`${file}_invalid`, message, {
        hint: "make room on that host, or set TMPDIR there",
        cause,
      });
    }
  }

  /** Where engines of this process find it; undefined where it did not come. */
  path(file: BootFile): string | undefined {
    const fd = this.files.get(file);
    return fd === undefined ? undefined : `/proc/${process.pid}/fd/${fd}`;
  }

  close(): void {
    for (const fd of this.files.values()) closeSync(fd);
    this.files.clear();
  }
}

function nameless(): number {
  const folder = mkdtempSync(join(tmpdir(), "ssihv-"));
  const path = join(folder, "file");
  const fd = openSync(path, "wx+", 0o600);
  unlinkSync(path);
  rmdirSync(folder);
  return fd;
}
