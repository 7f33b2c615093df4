// A VM at a terminal: connects stdin, escape keys, signals and output to the VM until it ends.
// Invariants: the terminal is put back on every way out (return, signal, uncaught error, exit), and
// no engine outlives this process. A first signal stops the VM in order; one more, a second later,
// ends it at once.

import { constants } from "node:os";

import type { Vm, VmHooks } from "../node/vm.ts";
import { CONSOLE_HELP, type ConsoleCommand, EscapeParser } from "./console-escape.ts";
import { outcomeStatus } from "./outcome.ts";
import type { RunOutput } from "./run-output.ts";
import { ConsoleInputStream, ConsoleOutputStream } from "./terminal.ts";

/** Ends the run in order. In raw mode Ctrl-C is a byte for the guest and raises none of them. */
const ENDING = ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"] as const;
type Ending = (typeof ENDING)[number] | "SIGPIPE";

const NEWLINE = 0x0a;
/** A signal this soon after the first is the same wish. */
const INSIST_MS = 1000;

/** A VM as a terminal drives it: the Vm of this host, or one over others (src/hosts). */
export type DrivenVm = Pick<Vm, "run" | "summaries" | "writeConsole" | "togglePause" | "nmi"> &
  Pick<Vm, "report" | "dump" | "stop" | "killAll">;

interface Closable {
  close(): void;
}

/** As a shell reports a command that a signal ended. */
function signalStatus(signal: Ending): number {
  return 128 + constants.signals[signal];
}

export class RunSession<V extends DrivenVm = DrivenVm> {
  readonly vm: V;
  private readonly input = new ConsoleInputStream();
  private readonly stdout: ConsoleOutputStream;
  private readonly output: RunOutput;
  private readonly parser = new EscapeParser();
  private readonly undo: (() => void)[] = [];
  private endedBy: Ending | undefined;
  private endedAt = 0;
  private readonly admin: Closable | undefined;

  /** `vmFor`: the VM, which is to tell these hooks; `admin` goes with the VM. */
  constructor(vmFor: (hooks: VmHooks) => V, output: RunOutput, admin?: Closable) {
    this.output = output;
    this.admin = admin;
    this.stdout = new ConsoleOutputStream(() => this.onSignal("SIGPIPE"));
    this.vm = vmFor({
      onConsole: (chunk) => this.onConsole(chunk),
      onEvent: (event) => this.output.event(event),
    });
  }

  /** Runs the VM to its end; the exit status of the command. */
  async run(): Promise<number> {
    this.listen();
    this.input.enterRaw();
    this.input.start((chunk) => this.onInput(chunk));
    const outcome = await this.vm.run();
    this.input.close();
    this.admin?.close();
    for (const undo of this.undo) undo();
    const status = this.endedBy === undefined ? outcomeStatus(outcome) : signalStatus(this.endedBy);
    this.output.outcome(outcome, this.vm.summaries(), status);
    return status;
  }

  private listen(): void {
    const on = (event: NodeJS.Signals | "exit", listener: () => void) => {
      process.on(event, listener);
      this.undo.push(() => process.off(event, listener));
    };
    for (const signal of ENDING) on(signal, () => this.onSignal(signal));
    on("SIGCONT", () => this.input.reenterRaw());
    on("SIGUSR1", () => this.vm.dump());
    on("exit", () => {
      this.input.restore();
      this.admin?.close();
      this.vm.killAll();
    });
  }

  private onSignal(signal: Ending): void {
    if (this.endedBy !== undefined) {
      // `timeout` signals the process and then its group: one wish, told twice.
      if (performance.now() - this.endedAt < INSIST_MS) return;
      // process.exit runs the "exit" listener above: terminal back, engines gone.
      process.exit(signalStatus(signal));
    }
    this.endedBy = signal;
    this.endedAt = performance.now();
    this.vm.stop();
  }

  private onConsole(chunk: Uint8Array): Promise<void> {
    if (this.input.isTerminal) this.output.midLine = chunk[chunk.length - 1] !== NEWLINE;
    return this.stdout.write(chunk);
  }

  private async onInput(chunk: Uint8Array): Promise<void> {
    if (!this.input.isTerminal) {
      await this.vm.writeConsole(chunk);
      return;
    }
    for (const input of this.parser.push(chunk)) {
      if (input.kind === "data") await this.vm.writeConsole(input.bytes);
      else this.command(input.command);
    }
  }

  private command(command: ConsoleCommand): void {
    switch (command) {
      case "quit":
        this.vm.stop();
        return;
      case "help":
        this.output.say(`keys\n${CONSOLE_HELP}`);
        return;
      case "pause":
        this.vm.togglePause();
        return;
      case "nmi":
        this.vm.nmi();
        return;
      case "report":
        this.output.showSummaries = true;
        this.vm.report();
        return;
      case "unknown":
        this.output.say("Ctrl-A H lists the keys");
        return;
    }
  }
}
