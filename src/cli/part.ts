// `ssihv part`: what `ssihv run --hosts` starts on each host. Messages on stdin say what to do, and
// stdout has nothing but messages (src/hosts/part-messages.ts).

import { buildCommand } from "@stricli/core";

import { HostPart } from "../hosts/part.ts";
import { type FromPart, Lines, type ToPart } from "../hosts/part-messages.ts";
import { Talk } from "../hosts/talk.ts";
import type { CliContext } from "./context.ts";

const ENDING = ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"] as const;
const CUT = "its connection with the command that started the VM ended";

/** Our stdout, which must be written out before we go. */
class Out {
  private last: Promise<void> = Promise.resolve();
  private readonly broken: () => void;

  constructor(broken: () => void) {
    this.broken = broken;
  }

  write(line: string): void {
    this.last = new Promise((done) => {
      process.stdout.write(line, (error) => {
        if (error) this.broken();
        done();
      });
    });
  }

  flushed(): Promise<void> {
    return this.last;
  }
}

async function part(this: CliContext): Promise<void> {
  const { host } = this;
  const createPage = await host.sharedPages();
  const lost = (why: string) => here.lost(why);
  const out = new Out(() => lost(CUT));
  const talk: Talk<ToPart, FromPart> = new Talk((line) => out.write(line), {
    onMessage: (message) => here.message(message),
    onEnd: (why) => lost(`the command that started the VM is lost: ${why}`),
  });
  const command = host.engineCommand;
  const here: HostPart = new HostPart({
    facts: host.facts,
    probe: host.probe,
    createPage,
    ...(command !== undefined && { engineCommand: command }),
    env: process.env,
    send: (message) => talk.send(message),
  });
  for (const signal of ENDING) process.on(signal, () => here.signalled(signal));
  process.on("SIGUSR1", () => here.message({ type: "dump" }));
  process.on("exit", () => here.killAll());
  void listen(talk).then(() => lost(CUT));
  await here.run();
  talk.close();
  await out.flushed();
}

/** Until stdin ends. */
async function listen(talk: Talk<ToPart, FromPart>): Promise<void> {
  const lines = new Lines();
  try {
    for await (const chunk of Bun.stdin.stream()) {
      for (const line of lines.push(chunk)) talk.line(line);
    }
  } catch {
    // A pipe that broke is an end too.
  }
}

export const partCommand = buildCommand<Record<never, never>, [], CliContext>({
  func: part,
  docs: { brief: "the part of a VM on this host (internal: started by ssihv run --hosts)" },
  parameters: { flags: {} },
});
