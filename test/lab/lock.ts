// Labs of one checkout take turns by default: two at once on a small machine only time each other
// out. The lock is flock(1) held by a child, so the kernel drops it however the holder ends.

import { mkdir } from "node:fs/promises";
import { labDirectory } from "./paths.ts";
import { labError } from "./subprocess.ts";

/** Waits for the lab's turn; the returned function ends it. */
export async function lockLab(): Promise<() => Promise<void>> {
  await mkdir(labDirectory, { recursive: true });
  const holder = Bun.spawn(
    [
      "setpriv",
      "--pdeathsig",
      "KILL",
      "--",
      "flock",
      `${labDirectory}/lock`,
      "sh",
      "-c",
      "echo locked; exec cat",
    ],
    { stdin: "pipe", stdout: "pipe", stderr: "ignore" },
  );
  const reader = holder.stdout.getReader();
  const waiting = setTimeout(() => console.error("lab: waiting for another lab to end"), 1000);
  const { value } = await reader.read();
  clearTimeout(waiting);
  if (value === undefined) throw labError(`cannot lock ${labDirectory}/lock`);
  return async () => {
    holder.stdin.end();
    await holder.exited;
  };
}
