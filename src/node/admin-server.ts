// The admin socket of a command that runs a VM: has the VM's name (admin-name.ts) and answers
// whoever connects. Only the user can (socket 0600 in a folder 0700).
// Invariant: nothing a client sends or fails to read reaches the VM's command as an exception or as
// memory without bound.

import { chmodSync, lstatSync } from "node:fs";
import { join } from "node:path";

import { messageOf, SsihvError } from "../base/errors.ts";
import { NODES_MAX } from "../vmm/topology.ts";
import { adminFolders, prepareFolder, socketName, unnamedSocket } from "./admin-folder.ts";
import { type AdminName, claimName, NAMES_MAX, removeIfThere } from "./admin-name.ts";
import {
  type AdminRequest,
  errorReply,
  LineReader,
  okReply,
  parseRequest,
  REQUEST_BYTES_MAX,
  requestId,
} from "./admin-protocol.ts";
import {
  heatOfVm,
  listVm,
  sampleVm,
  setBalloon,
  showPages,
  showVm,
  type VmObserved,
} from "./vm-view.ts";

const CONNECTIONS_MAX = 32;
/** Requests of one connection that wait for their turn. */
const WAITING_MAX = 16;
/** A connection that says nothing, or takes nothing, for this long is closed. */
const IDLE_SECONDS = 60;
/** sun_path of sockaddr_un (unix(7)), its final zero left out. */
const PATH_BYTES_MAX = 107;

export class AdminServer {
  /** The VM's name; another than was wanted where that was taken and not the user's choice. */
  readonly vm: string;
  readonly path: string;
  private readonly door: AdminDoor;

  private constructor(vm: string, path: string, door: AdminDoor) {
    this.vm = vm;
    this.path = path;
    this.door = door;
  }

  /** Throws `name_taken`, or `admin_failed` where no folder can be used. */
  static async open(name: AdminName): Promise<AdminServer> {
    const reasons: string[] = [];
    for (const folder of adminFolders()) {
      const why = prepareFolder(folder) ?? tooLong(folder.path, name.vm);
      if (why !== undefined) {
        reasons.push(`${folder.path}: ${why}`);
        continue;
      }
      let door: AdminDoor | undefined;
      try {
        door = new AdminDoor(folder.path);
        const { vm, path } = await claimName(folder.path, door.ownPath, name);
        door.named(path);
        return new AdminServer(vm, path, door);
      } catch (error) {
        door?.close();
        if (error instanceof SsihvError) throw error;
        reasons.push(`${folder.path}: ${messageOf(error)}`);
      }
    }
    throw new SsihvError("admin_failed", "no folder can hold the VM's admin socket", {
      hint: "set SSIHV_RUNTIME_DIR to a folder of your own, mode 700",
      cause: new Error(reasons.join("; ")),
    });
  }

  /** From here on questions are answered. */
  serve(observed: VmObserved): void {
    this.door.observed = observed;
  }

  /** Frees the name; safe to call twice, and in a process that exits. */
  close(): void {
    this.door.close();
  }
}

function tooLong(folder: string, vm: string): string | undefined {
  // The longest name that may be tried.
  const longest = join(folder, socketName(`${vm}-${NAMES_MAX}`, NODES_MAX));
  return Buffer.byteLength(longest) > PATH_BYTES_MAX
    ? `its path is too long for a socket (${PATH_BYTES_MAX} bytes)`
    : undefined;
}

/** The listening socket, first under a name of its own, and its connections. */
class AdminDoor {
  readonly ownPath: string;
  observed: VmObserved | undefined;
  private readonly listener: Bun.UnixSocketListener<AdminConnection>;
  private readonly connections = new Set<AdminConnection>();
  private path: string | undefined;
  private inode: number | undefined;

  constructor(folder: string) {
    this.ownPath = join(folder, unnamedSocket());
    const drop = ({ data }: { data: AdminConnection | undefined }) => {
      if (data === undefined) return;
      this.connections.delete(data);
      data.over = true;
    };
    this.listener = Bun.listen<AdminConnection>({
      unix: this.ownPath,
      socket: {
        open: (socket) => this.greet(socket),
        data: (socket, bytes) => socket.data.received(bytes),
        drain: (socket) => socket.data.flush(),
        timeout: (socket) => socket.terminate(),
        close: drop,
        error: drop,
      },
    });
    chmodSync(this.ownPath, 0o600);
  }

  named(path: string): void {
    this.path = path;
    this.inode = lstatSync(path).ino;
    removeIfThere(this.ownPath);
  }

  close(): void {
    const { path } = this;
    this.path = undefined;
    // Ours still, unless somebody removed it by hand and another command took the name. Before the
    // listener goes: nobody replaces what is live.
    if (path !== undefined && inodeOf(path) === this.inode) removeIfThere(path);
    removeIfThere(this.ownPath);
    this.listener.stop(true);
  }

  private greet(socket: Bun.Socket<AdminConnection>): void {
    const connection = new AdminConnection(socket, (request) => this.answer(request));
    socket.data = connection;
    socket.timeout(IDLE_SECONDS);
    this.connections.add(connection);
    if (this.connections.size > CONNECTIONS_MAX) {
      connection.end(
        new SsihvError("admin_failed", `${CONNECTIONS_MAX} connections are open already`),
      );
    }
  }

  private async answer(request: AdminRequest): Promise<unknown> {
    const { observed } = this;
    if (observed === undefined) throw new SsihvError("vm_silent", "the VM is not started yet");
    switch (request.op) {
      case "list":
        return listVm(observed);
      case "show":
        return await showVm(observed);
      case "stats":
        return await sampleVm(observed);
      case "heat":
        return await heatOfVm(observed);
      case "balloon":
        return await setBalloon(observed, request.bytes);
      case "pages":
        return await showPages(observed, request.gpa, request.count);
    }
  }
}

function inodeOf(path: string): number | undefined {
  return lstatSync(path, { throwIfNoEntry: false })?.ino;
}

/** One client: its requests are answered one after another, in order. */
class AdminConnection {
  over = false;
  private readonly socket: Bun.Socket<AdminConnection>;
  private readonly answer: (request: AdminRequest) => Promise<unknown>;
  private readonly lines = new LineReader(REQUEST_BYTES_MAX);
  private readonly waiting: string[] = [];
  private busy = false;
  private ending = false;
  private unsent: Uint8Array | undefined;

  constructor(
    socket: Bun.Socket<AdminConnection>,
    answer: (request: AdminRequest) => Promise<unknown>,
  ) {
    this.socket = socket;
    this.answer = answer;
  }

  received(bytes: Uint8Array): void {
    if (this.over || this.ending) return;
    this.socket.timeout(IDLE_SECONDS);
    try {
      this.waiting.push(...this.lines.push(bytes));
    } catch (error) {
      return this.end(error);
    }
    if (this.waiting.length > WAITING_MAX) {
      const message = `more than ${WAITING_MAX} requests at a time`;
      return this.end(new SsihvError("request_invalid", message));
    }
    void this.work();
  }

  /** Says why, and closes. What was asked before is not answered any more. */
  end(why: unknown): void {
    this.ending = true;
    this.waiting.length = 0;
    if (this.unsent === undefined) this.send(errorReply(null, why));
    else this.socket.terminate();
  }

  flush(): void {
    if (this.over) return;
    if (this.unsent !== undefined) {
      const taken = this.socket.write(this.unsent);
      if (taken > 0) this.socket.timeout(IDLE_SECONDS);
      this.unsent =
        taken < this.unsent.length ? this.unsent.subarray(Math.max(taken, 0)) : undefined;
    }
    if (this.unsent !== undefined) return;
    if (this.ending) this.socket.end();
    else void this.work();
  }

  private async work(): Promise<void> {
    if (this.busy) return;
    this.busy = true;
    // A client that does not read gets nothing more to read.
    while (!this.over && !this.ending && this.unsent === undefined) {
      const line = this.waiting.shift();
      if (line === undefined) break;
      const reply = await this.replyTo(line);
      if (!this.over && !this.ending) this.send(reply);
    }
    this.busy = false;
  }

  private async replyTo(line: string): Promise<string> {
    const id = requestId(line);
    try {
      return okReply(id, await this.answer(parseRequest(line)));
    } catch (error) {
      return errorReply(id, error);
    }
  }

  private send(text: string): void {
    this.unsent = new TextEncoder().encode(text);
    this.flush();
  }
}
