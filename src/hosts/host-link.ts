// A host at the other end of a process: brings ssihv there (bootstrap.ts), and from then on passes
// messages between its part and us. Every error names the host.
// Invariants: the end is told once, with the last of what the way there said; closing ends the part
// by the end of its stdin, and the process at the latest a while later.

import { SsihvError } from "../base/errors.ts";
import { bootstrapScript, fileChunks, heard, MARK, type Payload } from "./bootstrap.ts";
import {
  type BootFile,
  type FromPart,
  Lines,
  type PartHost,
  type ToPart,
  toBase64,
} from "./part-messages.ts";
import type { Reach } from "./reach.ts";
import { Talk } from "./talk.ts";

export interface LinkHooks {
  onMessage(message: Exclude<FromPart, { type: "host" | "alive" }>): void;
  /** What the way there or the part wrote to stderr. */
  onStderr(line: string): void;
  onCopying(bytes: number, total: number): void;
  /** Not after `close`. */
  onLost(error: SsihvError): void;
}

/** For the part to end in order, its engines included. */
const CLOSE_MS = 10_000;
/** A kernel's piece of a file: JSON of it stays small. */
const FILE_CHUNK = 192 << 10;
const STDERR_LINES_MAX = 20;
/** For what belongs to an error on stdout. */
const STDERR_MS = 500;
/** Until its part runs, a host may be silent for so long: a login, a program or a disk may hang. */
const SILENT_MS = 60_000;
/** A way there that says why it waits is heard, should nothing come of it soon. */
const WORDS_MS = 5_000;

type Child = Bun.Subprocess<"pipe", "pipe", "pipe">;

export class HostLink {
  readonly name: string;
  /** How the host is reached; absent: it is this one. */
  readonly reach: Reach | undefined;
  private readonly child: Child;
  private readonly hooks: LinkHooks;
  private readonly up = Promise.withResolvers<PartHost>();
  /** Lines of stderr that are not told yet: the last ones are the reason of an end. */
  private held: string[] = [];
  private talk: Talk<FromPart, ToPart> | undefined;
  private noise = "";
  private closed = false;
  private broken = false;
  private heardAt = performance.now();
  private waiting: ReturnType<typeof setInterval> | undefined;

  private constructor(name: string, reach: Reach | undefined, child: Child, hooks: LinkHooks) {
    this.name = name;
    this.reach = reach;
    this.child = child;
    this.hooks = hooks;
    // Who waits for it is told; where nobody does, the loss is.
    this.up.promise.catch(() => undefined);
  }

  /** `command`: a part on this host, which needs no way there. */
  static here(name: string, command: readonly string[], hooks: LinkHooks): HostLink {
    const link = new HostLink(name, undefined, start(name, command, withoutSsh()), hooks);
    link.begin();
    void link.read(undefined);
    return link;
  }

  static there(
    name: string,
    reach: Reach,
    payload: Payload,
    hooks: LinkHooks,
    silentMsMax = SILENT_MS,
  ): HostLink {
    const child = start(name, reach.command(bootstrapScript(payload)), reach.env ?? process.env);
    const link = new HostLink(name, reach, child, hooks);
    void link.read(payload);
    const everyMs = Math.min(WORDS_MS, silentMsMax / 4);
    link.waiting = setInterval(() => link.lookForSilence(silentMsMax), everyMs);
    return link;
  }

  /** What the host is; throws why it cannot be used. */
  get host(): Promise<PartHost> {
    return this.up.promise;
  }

  send(message: ToPart): void {
    this.talk?.send(message);
  }

  async sendFile(file: BootFile, path: string): Promise<void> {
    for (const chunk of fileChunks(path, FILE_CHUNK)) {
      this.send({ type: "file", file, data: toBase64(chunk) });
      await this.drained();
    }
  }

  /** Ends the part there; resolves when the way there has ended too. */
  async close(): Promise<void> {
    this.closed = true;
    clearInterval(this.waiting);
    this.talk?.close();
    const timer = setTimeout(() => this.kill(), CLOSE_MS);
    try {
      await this.child.stdin.end();
    } catch {
      // It is gone already: the exit below tells.
    }
    await this.child.exited;
    clearTimeout(timer);
  }

  /** At once: the part there ends when its stdin does. */
  kill(): void {
    this.closed = true;
    clearInterval(this.waiting);
    this.child.kill("SIGTERM");
  }

  /** Not once it talks: then both sides say that they live. */
  private lookForSilence(silentMsMax: number): void {
    if (performance.now() - this.heardAt < silentMsMax) {
      for (const held of this.held.splice(0)) this.hooks.onStderr(held);
      return;
    }
    const words = this.noise === "" ? "" : `; the last was: ${this.noise}`;
    const message = `host ${this.name}: nothing was heard for ${silentMsMax / 1000} s${words}`;
    const hint = this.reach && `this must work without a question: ${this.reach.trial}`;
    this.lost(new SsihvError("node_unreachable", message, { ...(hint && { hint }) }));
  }

  private begin(): void {
    clearInterval(this.waiting);
    this.talk = new Talk<FromPart, ToPart>((line) => this.write(line), {
      onMessage: (message) => {
        if (message.type === "host") this.up.resolve(message.host);
        else if (message.type !== "alive") this.hooks.onMessage(message);
      },
      onEnd: (why) => this.lost(new SsihvError("node_unreachable", `host ${this.name}: ${why}`)),
    });
  }

  private write(data: string | Uint8Array): void {
    if (this.broken) return;
    try {
      this.child.stdin.write(data);
      void Promise.resolve(this.child.stdin.flush()).catch(() => this.onBroken());
    } catch {
      this.onBroken();
    }
  }

  /** Nobody reads there: the process ends soon, and that is told. */
  private onBroken(): void {
    this.broken = true;
  }

  private async drained(): Promise<void> {
    try {
      await this.child.stdin.flush();
    } catch {
      this.onBroken();
    }
  }

  private async read(payload: Payload | undefined): Promise<void> {
    const stderr = this.readStderr();
    const lines = new Lines();
    try {
      for await (const chunk of this.child.stdout) {
        for (const line of lines.push(chunk)) this.line(line, payload);
      }
    } catch (error) {
      // The script's programs tell on stderr why, such as a full disk.
      await Promise.race([stderr, Bun.sleep(STDERR_MS)]);
      this.lost(this.named(error));
    }
    await stderr;
    const code = await this.child.exited;
    this.talk?.close();
    this.lost(this.endError(code));
  }

  private line(line: string, payload: Payload | undefined): void {
    this.heardAt = performance.now();
    if (this.talk !== undefined) {
      // It lives: what it wrote to stderr was not its end.
      for (const held of this.held.splice(0)) this.hooks.onStderr(held);
      return this.talk.line(line);
    }
    // A login shell may say something first, without the end of a line even.
    const at = line.indexOf(MARK);
    if (at < 0) {
      this.noise = line;
      return;
    }
    const said = heard(line.slice(at));
    if (said === "need" && payload !== undefined) void this.copy(payload);
    if (said === "run") this.begin();
  }

  private async copy(payload: Payload): Promise<void> {
    let sent = 0;
    this.hooks.onCopying(0, payload.bytes);
    for (const chunk of fileChunks(payload.path)) {
      if (this.broken || this.closed) return;
      this.write(chunk.slice());
      await this.drained();
      sent += chunk.length;
      this.heardAt = performance.now();
      this.hooks.onCopying(sent, payload.bytes);
    }
  }

  private async readStderr(): Promise<void> {
    const lines = new Lines();
    const take = (line: string) => {
      if (line.trim() === "") return;
      this.held.push(line.trim());
      if (this.held.length > STDERR_LINES_MAX) this.held.shift();
    };
    for await (const chunk of this.child.stderr) for (const line of lines.push(chunk)) take(line);
    take(lines.rest());
  }

  private named(error: unknown): SsihvError {
    if (!(error instanceof SsihvError)) {
      return new SsihvError("node_unreachable", `host ${this.name}: ${String(error)}`);
    }
    const words = [error.message, ...this.held].join("\n");
    return new SsihvError(error.code, `host ${this.name}: ${words}`, {
      ...(error.hint !== undefined && { hint: error.hint }),
    });
  }

  /** The process ended before we closed it. */
  private endError(code: number): SsihvError {
    const words = this.held.join("\n") || this.noise || `status ${code}`;
    const { name, reach } = this;
    if (this.talk !== undefined) {
      return new SsihvError("node_unreachable", `host ${name}: its connection ended: ${words}`, {
        hint: "is that host up, and the network between? dmesg there tells of killed processes",
      });
    }
    const hint = reach && `this must work without a question: ${reach.trial}`;
    return new SsihvError("node_unreachable", `host ${name} cannot be used: ${words}`, {
      ...(hint && { hint }),
    });
  }

  private lost(error: SsihvError): void {
    clearInterval(this.waiting);
    this.talk?.close();
    this.up.reject(error);
    if (this.closed) return;
    this.closed = true;
    this.child.kill("SIGTERM");
    this.hooks.onLost(error);
  }
}

/** A login to this host by ssh says nothing of how the other hosts reach it. */
function withoutSsh(): Record<string, string | undefined> {
  return { ...process.env, SSH_CONNECTION: undefined };
}

function start(
  name: string,
  command: readonly string[],
  env: Readonly<Record<string, string | undefined>>,
): Child {
  try {
    return Bun.spawn([...command], {
      stdin: "pipe",
      stdout: "pipe",
      stderr: "pipe",
      env,
      // Its own session: Ctrl-C and `timeout` signal the group, and ending in order is our part.
      detached: true,
    });
  } catch (cause) {
    const message = `host ${name}: ${command[0]} cannot be started`;
    throw new SsihvError("node_unreachable", message, {
      hint: "Debian: apt-get install openssh-client; or name the command: --ssh",
      cause,
    });
  }
}
