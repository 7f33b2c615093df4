// `ssihv vm console`: a guest's console through the coordinator. Any number may look, one types.
// Invariant: the terminal is put back on every way out.

import { constants } from "node:os";
import { buildCommand } from "@stricli/core";

import { messageOf, SsihvError } from "../base/errors.ts";
import { ApiClient, type ApiFlags, type ConsoleStream, type Vm } from "./api-client.ts";
import { API_FLAGS, API_HELP, API_STATUSES } from "./api-flags.ts";
import { type ConsoleCommand, EscapeParser } from "./console-escape.ts";
import type { CliContext } from "./context.ts";
import { EXIT } from "./exit-status.ts";
import { text } from "./flags.ts";
import { printable } from "./report.ts";
import { ConsoleInputStream, ConsoleOutputStream } from "./terminal.ts";
import { vmNames } from "./vm-names.ts";

interface ConsoleFlags extends ApiFlags {
  readonly readOnly: boolean;
}

const ENDING = ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"] as const;
const KEYS = `Ctrl-A X       leave the console; the VM goes on
Ctrl-A Ctrl-A  send Ctrl-A to the guest
Ctrl-A H       this help`;
/** As base64 well below what one request may carry. */
const TYPED_BYTES_MAX = 32 << 10;
/** How long the coordinator may take to hear the end of a VM whose console has ended. */
const END_MS = 3000;
const LOOK_MS = 50;

function readerOf({ body }: ConsoleStream) {
  return body.getReader();
}

class Attached {
  private readonly api: ApiClient;
  private readonly name: string;
  private readonly console: ConsoleStream;
  private readonly reader: ReturnType<typeof readerOf>;
  private readonly say: (text: string) => void;
  private readonly input = new ConsoleInputStream();
  private readonly parser = new EscapeParser();
  private left = false;

  constructor(api: ApiClient, name: string, console: ConsoleStream, say: (text: string) => void) {
    this.api = api;
    this.name = name;
    this.console = console;
    this.reader = readerOf(console);
    this.say = say;
  }

  /** True: it was left; false: it has ended. */
  async run(): Promise<boolean> {
    const output = new ConsoleOutputStream(() => this.leave());
    const restore = () => this.input.restore();
    const onSignal = (signal: NodeJS.Signals) => process.exit(128 + constants.signals[signal]);
    process.on("exit", restore);
    for (const signal of ENDING) process.on(signal, onSignal);
    if (this.console.writer !== undefined || this.input.isTerminal) {
      this.input.enterRaw();
      this.input.start((chunk) => this.typed(chunk));
    }
    try {
      for (;;) {
        const { done, value } = await this.reader.read();
        if (done) break;
        await output.write(value);
      }
    } catch (error) {
      // A connection that broke: the coordinator tells what it was, if there still is one.
      if (!this.left) this.say(`the console broke off: ${messageOf(error)}`);
    } finally {
      this.input.close();
      for (const signal of ENDING) process.off(signal, onSignal);
      process.off("exit", restore);
    }
    return this.left;
  }

  private leave(): void {
    this.left = true;
    // What it was rejected with is nobody's business: the stream is given up.
    void this.reader.cancel().catch(() => undefined);
  }

  private async typed(chunk: Uint8Array): Promise<void> {
    if (!this.input.isTerminal) return await this.type(chunk);
    for (const input of this.parser.push(chunk)) {
      if (input.kind === "data") await this.type(input.bytes);
      else this.command(input.command);
    }
  }

  private command(command: ConsoleCommand): void {
    if (command === "quit") this.leave();
    else this.say(`keys\n${KEYS}`);
  }

  private async type(bytes: Uint8Array): Promise<void> {
    const { writer } = this.console;
    if (writer === undefined) return;
    try {
      for (let at = 0; at < bytes.length && !this.left; at += TYPED_BYTES_MAX) {
        await this.api.type(this.name, writer, bytes.subarray(at, at + TYPED_BYTES_MAX));
      }
    } catch (error) {
      this.say(`what was typed is lost: ${messageOf(error)}`);
    }
  }
}

/** The VM after its console has ended, which may be a moment before its end is on record. */
async function afterwards(api: ApiClient, before: Vm): Promise<Vm> {
  const end = performance.now() + END_MS;
  for (;;) {
    const vm = await api.vm(before.name);
    if (vm.since !== before.since || performance.now() > end) return vm;
    await Bun.sleep(LOOK_MS);
  }
}

async function attach(this: CliContext, flags: ConsoleFlags, name: string): Promise<void> {
  const say = (line: string) => this.process.stderr.write(`ssihv: ${printable(line)}\n`);
  const api = await ApiClient.open(flags);
  const before = await api.vm(name);
  const opened = await api.openConsole(name, !flags.readOnly);
  if (!flags.readOnly && opened.writer === undefined) {
    say(`somebody else types at the console of VM ${name}: you look`);
  }
  if (process.stdin.isTTY) say(`console of VM ${name}; Ctrl-A X leaves it`);
  if (await new Attached(api, name, opened, say).run()) return;
  const vm = await afterwards(api, before);
  if (vm.since === before.since) {
    throw new SsihvError(
      "host_silent",
      `the console of VM ${name} was cut; the VM is ${vm.state}`,
      {
        hint: `attach again: ssihv vm console ${name}`,
      },
    );
  }
  say(`VM ${name}: ${vm.last?.text ?? "it has ended"}`);
  if (vm.last?.kind === "failed") this.status = EXIT.engineDead;
}

export const consoleCommand = buildCommand<ConsoleFlags, [name: string], CliContext>({
  func: attach,
  docs: {
    brief: "attach to a guest's console",
    fullDescription: `Shows what the guest wrote last (256 KiB are kept), then what it writes, until
the VM ends. The first who attaches types; others look until that one has left.

Keys, when stdin is a terminal:
${KEYS.replace(/^/gm, "  ")}

Examples:
  ssihv vm console demo
  ssihv vm console demo --read-only | tee boot.log
  echo 'poweroff -f' | ssihv vm console demo

${API_HELP}

${API_STATUSES}`,
  },
  parameters: {
    positional: {
      kind: "tuple",
      parameters: [
        { parse: text, brief: "the VM", placeholder: "NAME", proposeCompletions: vmNames },
      ],
    },
    flags: {
      ...API_FLAGS,
      readOnly: {
        kind: "boolean",
        default: false,
        withNegated: false,
        brief: "only look: leave typing to others",
      },
    },
  },
});
