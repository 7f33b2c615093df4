// The lead's door: hosts that join a VM come in here. A host that holds the VM's key and runs the
// same build takes the lowest free node; everyone else is told why not, where they can understand
// it, and a notice says who was turned away.
// Invariants: strangers take no place, at most STRANGERS_MAX of them are listened to at a time and
// each for HELLO_MS; the door stays open until the VM ends, so that latecomers hear that it is
// complete.

import { hostname } from "node:os";

import { SsihvError } from "../base/errors.ts";
import type { NodePlan } from "../engine/messages.ts";
import { isMemoryNode } from "../vmm/memory-budget.ts";
import { buildInfo } from "./build-info.ts";
import { formatAddress, type HostPort, isAnyHost } from "./join-address.ts";
import { CHANNEL_HANDLERS, JoinChannel } from "./join-channel.ts";
import {
  buildMismatch,
  encodeOutcome,
  type FromLead,
  type Hello,
  isFromJoined,
  MISMATCH_HINT,
  parseHello,
} from "./join-messages.ts";
import type { RemoteEngine } from "./remote-engine.ts";
import type { VmOutcome } from "./vm.ts";

/** How long a connection may take to show that it holds the key. */
const HELLO_MS = 10_000;
const STRANGERS_MAX = 16;
/** How long the joined hosts may take to hear how the VM ended. */
const GOODBYE_MS = 2000;
/** Lanes notice a dead peer first; this is for the time before they are linked. */
const SILENCE_PER_PEER_TIMEOUT = 2;

/** A silent side of a join is lost after this. */
export function silenceLimitMs(peerTimeoutMs: number): number {
  return SILENCE_PER_PEER_TIMEOUT * peerTimeoutMs;
}

export interface JoinListenerOptions {
  readonly vm: string;
  readonly nodes: readonly NodePlan[];
  readonly listen: HostPort;
  readonly key: Uint8Array;
  readonly peerTimeoutMs: number;
  /** The nodes to give away. */
  readonly places: readonly RemoteEngine[];
  onNotice(text: string): void;
  onJoined(place: RemoteEngine): void;
}

export class JoinListener {
  private readonly options: JoinListenerOptions;
  private readonly listener: Bun.TCPSocketListener<JoinChannel>;
  private readonly channels = new Map<JoinChannel, RemoteEngine>();
  private readonly strangers = new Set<JoinChannel>();

  constructor(options: JoinListenerOptions) {
    this.options = options;
    const { host, port } = options.listen;
    try {
      this.listener = Bun.listen<JoinChannel>({
        hostname: host,
        port,
        socket: { ...CHANNEL_HANDLERS, open: (socket) => this.greet(socket) },
      });
    } catch (cause) {
      throw listenError(options.listen, cause);
    }
  }

  /** The port bound, also when 0 was asked for. */
  get port(): number {
    return this.listener.port;
  }

  /** Tells every joined host how the VM ended, and shuts the door. */
  async close(outcome: VmOutcome): Promise<void> {
    this.listener.stop(false);
    const strangers = [...this.strangers];
    this.strangers.clear();
    for (const stranger of strangers) stranger.end(new Error("the VM ended"));
    const told = [...this.channels.keys()].map((channel) => {
      tell(channel, { type: "ended", outcome: encodeOutcome(outcome) });
      return channel.close(GOODBYE_MS);
    });
    await Promise.all(told);
  }

  private greet(socket: Bun.Socket<JoinChannel>): void {
    if (this.strangers.size >= STRANGERS_MAX) {
      socket.terminate();
      return;
    }
    const channel: JoinChannel = new JoinChannel(socket, "lead", this.options.key, {
      onMessage: (message) => this.onMessage(channel, message),
      onEnd: (why) => this.onEnd(channel, why),
    });
    socket.data = channel;
    this.strangers.add(channel);
    const timer = setTimeout(() => {
      if (this.strangers.has(channel)) channel.end(new Error("it said nothing"));
    }, HELLO_MS);
    timer.unref();
    tell(channel, { type: "hello", build: buildInfo(), host: hostname() });
  }

  private onMessage(channel: JoinChannel, message: unknown): void {
    const place = this.channels.get(channel);
    if (place === undefined) this.admit(channel, message);
    else if (isFromJoined(message)) place.receive(message);
    else channel.end(new Error("it sent a message of no known kind"));
  }

  private admit(channel: JoinChannel, message: unknown): void {
    // Its refusal is on the way.
    if (!this.strangers.has(channel)) return;
    const hello = parseHello(message);
    if (hello === undefined) return channel.end(new Error("it did not greet"));
    const mismatch = buildMismatch(buildInfo(), hello.build, hello.host);
    if (mismatch !== undefined) return this.refuse(channel, hello, mismatch, MISMATCH_HINT);
    const { vm, nodes, peerTimeoutMs } = this.options;
    const open = this.options.places.filter(({ free }) => free);
    const place = open.find(({ node }) => {
      const kind = isMemoryNode(nodes[node]) === (hello.memoryOnly === true);
      return kind && (hello.node === undefined || hello.node === node);
    });
    if (place === undefined) {
      const { words, hint } = noPlace(vm, open.length > 0, hello.memoryOnly === true);
      return this.refuse(channel, hello, words, hint);
    }
    this.strangers.delete(channel);
    this.channels.set(channel, place);
    tell(channel, { type: "welcome", vm, node: place.node, nodes, peerTimeoutMs });
    channel.keepAlive(silenceLimitMs(peerTimeoutMs));
    place.attach({
      name: hello.host,
      laneHost: hello.laneHost ?? channel.remoteHost,
      leadHost: hello.leadHost ?? this.options.listen.host,
      channel,
    });
    this.options.onJoined(place);
  }

  private refuse(channel: JoinChannel, hello: Hello, message: string, hint: string): void {
    this.strangers.delete(channel);
    this.options.onNotice(`refused host ${hello.host} (${channel.remoteHost}): ${message}`);
    tell(channel, { type: "refused", message, hint });
    void channel.close(GOODBYE_MS);
  }

  private onEnd(channel: JoinChannel, why: Error): void {
    if (this.strangers.delete(channel)) {
      this.options.onNotice(`turned away ${channel.remoteHost}: ${why.message}`);
    }
    this.channels.get(channel)?.lost(why.message);
    this.channels.delete(channel);
  }
}

function noPlace(vm: string, otherKind: boolean, memoryOnly: boolean) {
  if (!otherKind) {
    return {
      words: `VM ${vm} is complete: all its nodes have hosts`,
      hint: memoryOnly ? "start it with more --memory-nodes" : "start it with more --nodes",
    };
  }
  return memoryOnly
    ? {
        words: `VM ${vm} has all its memory nodes, it waits for hosts that run vCPUs`,
        hint: "leave --memory-only out, or start it with more --memory-nodes",
      }
    : {
        words: `VM ${vm} has all its compute nodes, it waits for hosts that lend memory`,
        hint: "add --memory-only, or start it with more --nodes",
      };
}

function tell(channel: JoinChannel, message: FromLead): void {
  channel.send(message);
}

function listenError({ host, port }: HostPort, cause: unknown): SsihvError {
  const errno = cause instanceof Error && "code" in cause ? String(cause.code) : "refused";
  const hint =
    errno === "EADDRINUSE"
      ? "another program listens there: choose another port, or end it"
      : "name an address of this host (ip address lists them) and a free port";
  const message = `--listen: cannot listen on ${formatAddress(host, port)} (${errno})`;
  return new SsihvError("address_invalid", message, { hint, cause });
}

/** What to type on another host so that it joins. */
export function joinCommand({ host, port }: HostPort, keyFile: string): string {
  const address = isAnyHost(host) ? hostname() : host;
  return `ssihv join ${formatAddress(address, port)} --key-file ${keyFile}`;
}
