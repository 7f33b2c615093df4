// The guest's check program on this machine: passes on ordinary shared memory, and can fail.

import { expect, test } from "bun:test";
import { availableParallelism } from "node:os";
import { spanCheck } from "./build.ts";

const enough = availableParallelism() >= 2;

async function run(...flags: string[]) {
  const child = Bun.spawn([await spanCheck(), ...flags], { stdout: "pipe", stderr: "pipe" });
  const said = await new Response(child.stderr).text();
  return { said, status: await child.exited };
}

test.if(enough)(
  "every check passes on ordinary memory",
  async () => {
    const { said, status } = await run("all");
    expect(said).toContain("span-check: all ok");
    expect(said.match(/ ok rounds=/g)?.length).toBe(6);
    expect(status).toBe(0);
  },
  120_000,
);

test.if(enough)(
  "a planted lost update is found",
  async () => {
    const { said, status } = await run("counters", "--plant", "--rounds", "20000");
    expect(said).toContain("shared-counter FAILED");
    expect(status).toBe(1);
  },
  120_000,
);
