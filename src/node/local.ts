// What a command on this host takes from the Zig library, loaded only when it is first needed:
// --help, --version and usage errors work where the library does not load.

import type { HostProbe } from "../native/engine-handle.ts";
import type { ParentPage } from "./engine-process.ts";

/** A maker of shared pages, one per engine. */
export async function sharedPages(): Promise<() => ParentPage> {
  const { SharedPage } = await import("../native/shared-page.ts");
  return () => SharedPage.create();
}

/** Takes up to a few seconds. */
export async function probeHost(): Promise<HostProbe> {
  const { hostProbe } = await import("../native/engine-handle.ts");
  return hostProbe();
}
