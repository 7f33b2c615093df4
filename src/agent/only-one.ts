// One agent per state folder at a time: two with one certificate would take each other's place at
// the coordinator for ever. The lock is a socket in Linux's abstract namespace (unix(7)), named by
// the folder: the kernel frees it when the process ends, however it ends, and no file is left.

import { statSync } from "node:fs";

import { SsihvError } from "../base/errors.ts";

/** Held until the returned function is called, or this process ends. */
export function onlyOne(folder: string): () => void {
  const { dev, ino } = statSync(folder);
  try {
    const lock = Bun.listen({
      unix: `\0ssihv-node-${dev}-${ino}`,
      socket: { open: (socket) => void socket.terminate(), data: () => undefined },
    });
    return () => lock.stop(true);
  } catch (cause) {
    throw new SsihvError("name_taken", `an agent with the state in ${folder} runs already`, {
      hint: "end that one first, or name another --state",
      cause,
    });
  }
}
