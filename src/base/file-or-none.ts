// Files of /proc and /sys, any of which a kernel may lack and a container hide.

import { readFileSync } from "node:fs";

/** Undefined: it cannot be read here. */
export function fileOrNone(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8");
  } catch {
    // Absent on this kernel or hidden in this container: what it would tell is unknown.
    return undefined;
  }
}
