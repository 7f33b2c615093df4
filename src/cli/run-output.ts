// What `ssihv run` says besides the guest's console, always on stderr: stdout is the guest's alone.
// Text for people, or with --json one JSON object a line ({"event": ...}, see EVENTS_HELP).

import type { VmEvent, VmOutcome } from "../node/vm.ts";
import {
  type EngineSummary,
  hotPageLines,
  memoryLines,
  outcomeJson,
  outcomeText,
  summaryLine,
} from "./outcome.ts";
import { formatError, printable } from "./report.ts";

export const EVENTS_HELP = `With --json, one JSON object a line on stderr (stdout is the guest's):
  {"event":"copying","vm":..,"host":..,"bytes":0,"total":..}  --hosts: ssihv is brought there
  {"event":"engine_ready","vm":..,"node":0,"pid":..}   an engine process is up
  {"event":"waiting","vm":..,"missing":1,"command":..} hosts have yet to join, by this command
  {"event":"joined","vm":..,"node":1,"host":..}        a host took this node
  {"event":"started","vm":..,"pageTables":"strict"}    the guest runs
  {"event":"booted","vm":..,"seconds":4.2}             Linux runs init, if its console told
  {"event":"notice","vm":..,"node":0,"text":..}        something worth knowing
  {"event":"stderr","vm":..,"node":0,"text":..}        a line an engine wrote to stderr
  {"event":"memory_lost","vm":..,"node":2,"text":..}   a memory node is gone, the VM goes on
  {"event":"paused"|"resumed","vm":..}
  {"event":"summary","vm":..,"summary":{..}}           numbers of a node, oldest_fault_us too
  {"event":"ended","vm":..,"reason":..,"status":0}     the last line of a run that ended by itself
  {"error":{"code":..,"message":..,"hint":..}}         the last line of a run that failed`;

export interface OutputOptions {
  readonly name: string;
  readonly json: boolean;
  readonly report: boolean;
  readonly debug: boolean;
  readonly write: (text: string) => void;
}

export class RunOutput {
  /** The guest left the cursor in the middle of a line of the terminal we write to as well. */
  midLine = false;
  /** Ctrl-A R was pressed: show the next summaries. */
  showSummaries = false;
  private readonly options: OutputOptions;

  constructor(options: OutputOptions) {
    this.options = options;
  }

  say(text: string): void {
    if (this.options.json) this.json({ event: "notice", text });
    else this.lines(`ssihv: ${printable(text)}`);
  }

  /** `run --hosts` brings ssihv to a host. */
  copying(host: string, bytes: number, total: number): void {
    const mib = (count: number) => Math.round(count / 2 ** 20);
    if (this.options.json) this.json({ event: "copying", host, bytes, total });
    else this.say(`host ${host}: copying ssihv there: ${mib(bytes)} of ${mib(total)} MiB`);
  }

  event(event: VmEvent): void {
    if (this.options.json) {
      this.json(event);
      return;
    }
    const { name } = this.options;
    switch (event.event) {
      case "notice":
        this.say(`VM ${name}: ${event.text}`);
        return;
      case "stderr":
        this.lines(`ssihv: engine ${name}/${event.node}: ${printable(event.text)}`);
        return;
      case "memory_lost":
        this.say(`VM ${name}: memory node ${event.node} is lost: ${event.text}`);
        return;
      case "paused":
      case "resumed":
        this.say(`VM ${name}: ${event.event}`);
        return;
      case "waiting": {
        const count = event.missing === 1 ? "one more host" : `${event.missing} more hosts`;
        const hosts = event.memoryOnly === true ? `${count} to lend memory` : count;
        this.say(`VM ${name}: waiting for ${hosts}; type there: ${event.command}`);
        return;
      }
      case "joined":
        this.say(`VM ${name}: host ${event.host} joined as node ${event.node}`);
        return;
      case "summary":
        if (this.showSummaries) this.say(summaryLine(name, [event.summary]));
        return;
      case "engine_ready":
      case "started":
      case "booted":
        // Nothing to tell a person: the guest's console speaks.
        return;
    }
  }

  /** The last words of the run. `status` is the exit status it will have. */
  outcome(outcome: VmOutcome, summaries: readonly EngineSummary[], status: number): void {
    const { name, json, debug, report } = this.options;
    if (outcome.kind === "failed") {
      const ran = summaries.some(({ runSeconds }) => runSeconds > 0);
      if (!json && ran) this.say(summaryLine(name, summaries));
      this.lines(formatError(outcome.error, { json, debug }));
    } else if (json) {
      this.json({ ...outcomeJson(name, outcome), status });
    } else {
      this.lines(`ssihv: ${printable(outcomeText(name, outcome))}`);
      if (report) this.lines([...hotPageLines(summaries), ...memoryLines(summaries)].join("\n"));
      this.say(summaryLine(name, summaries));
    }
  }

  private json(value: object): void {
    this.options.write(`${JSON.stringify({ vm: this.options.name, ...value })}\n`);
  }

  private lines(text: string): void {
    // Raw mode keeps the terminal's output processing: a newline is enough.
    this.options.write(`${this.midLine ? "\n" : ""}${text}\n`);
    this.midLine = false;
  }
}
