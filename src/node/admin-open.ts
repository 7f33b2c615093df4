// The admin socket as `ssihv run`, `ssihv join` and the agent open it: a VM is better run without
// one than not at all, so what is wrong with the place is a warning. A name that the user chose and
// that is taken is an error.

import { messageOf, SsihvError } from "../base/errors.ts";
import type { AdminName } from "./admin-name.ts";
import { AdminServer } from "./admin-server.ts";
import type { VmObserved } from "./vm-view.ts";

export interface OpenedAdmin {
  readonly server: AdminServer | undefined;
  readonly warnings: readonly string[];
}

export async function openAdmin(name: AdminName): Promise<OpenedAdmin> {
  try {
    const server = await AdminServer.open(name);
    if (server.vm === name.vm) return { server, warnings: [] };
    const words = `the name ${name.vm} is taken here: ssihv vm calls this one ${server.vm}`;
    return { server, warnings: [words] };
  } catch (error) {
    if (!(error instanceof SsihvError) || error.code !== "admin_failed") throw error;
    const cause = error.cause instanceof Error ? ` (${error.cause.message})` : "";
    const hint = error.hint === undefined ? "" : `; ${error.hint}`;
    const words = `ssihv vm will not see this VM: ${error.message}${cause}${hint}`;
    return { server: undefined, warnings: [words] };
  }
}

/** Opened once the host has joined and so knows the VM's name; closed at the end, whenever. */
export class JoinAdmin {
  private server: AdminServer | undefined;
  private closed = false;

  /** `warn` hears what did not work; the stay in the VM goes on. */
  async open(vm: string, node: number, observed: VmObserved, warn: (text: string) => void) {
    try {
      const { server, warnings } = await openAdmin({ vm, node, chosen: false });
      for (const warning of warnings) warn(warning);
      this.server = server;
      server?.serve(observed);
    } catch (error) {
      warn(messageOf(error));
    }
    if (this.closed) this.close();
  }

  close(): void {
    this.closed = true;
    this.server?.close();
  }
}
