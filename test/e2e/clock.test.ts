// The guest's clock over two hosts: a host of another boot id stands in for the second one, so
// nodes compare their TSCs all the time. Both have the same crystal here, so that nobody may ever
// be moved: errors of measurement move no clock. What is done where crystals differ is shown on
// simulated ones (zig/engine/steer.zig, steering.zig).

import { afterAll, expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { freePorts } from "../../src/base/free-ports.fixture.ts";
import { until } from "./cluster-processes.ts";
import { key, Listener, openDoor, powerOff, REMOTE, start } from "./running-vm.ts";
import { hasKvm, isRoot, removeRuntimeFolder, temporaryFolder } from "./support.ts";
import { increment, say, writeGuest } from "./tiny-guest.ts";

afterAll(removeRuntimeFolder);

/** Bursts: the third one begins after two periods. */
const CHECKS = 3;

async function clockFigures(target: string): Promise<Record<string, number>> {
  const text = await (await fetch(`http://${target}/metrics`)).text();
  const found = text.matchAll(/^ssihv_clock_(\w+)\{[^}]*\} (\S+)$/gm);
  return Object.fromEntries([...found].map(([, name, value]) => [name, Number(value)]));
}

/** Runs a command with another boot id than this host's. */
function elsewhere(folder: string, command: readonly string[]): string[] {
  const id = `${folder}/boot_id`;
  writeFileSync(id, "01234567-89ab-4cde-8f01-23456789abcd\n");
  const script = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"';
  return ["unshare", "--mount", "sh", "-c", script, id, ...command];
}

/** A VM over two commands; what node 1 tells of its clock once `done` of it holds. */
async function figuresOf(
  wrap: (folder: string, command: readonly string[]) => readonly string[],
  done: (figures: Record<string, number>) => boolean,
): Promise<Record<string, number>[]> {
  using folder = temporaryFolder();
  const kernel = `${folder.path}/bzImage`;
  writeGuest(kernel, increment(REMOTE), say("hello"), key, powerOff);
  const { door, join } = openDoor(folder.path);
  const [first, second] = [`127.0.0.1:${freePorts()}`, `127.0.0.1:${freePorts()}`];
  const shape = ["--memory", "256M", "--nodes", "2", ...door];
  await using lead = start(kernel, ...shape, "--metrics", first);
  const child = Bun.spawn([...wrap(folder.path, [...join, "--metrics", second])], {
    ...{ stdin: "ignore", stdout: "ignore", stderr: "pipe" },
    env: process.env,
  });
  await lead.out.until("hello");
  let figures: Record<string, number> = {};
  await until(
    () => `clocks are compared: ${JSON.stringify(figures)}`,
    async () => {
      figures = await clockFigures(second);
      return done(figures);
    },
  );
  const ofLead = await clockFigures(first);
  await lead.type("x");
  const words = new Listener(child.stderr);
  await words.end();
  expect([await lead.child.exited, await child.exited, words.text]).toEqual([
    ...[0, 0, expect.stringContaining("the guest powered off")],
  ]);
  return [ofLead, figures];
}

const IDLE = { checks_total: 0, error_seconds: 0, steps_total: 0, stepped_seconds_total: 0 };

test.skipIf(!isRoot || !hasKvm())(
  "nodes on two hosts compare their clocks",
  async () => {
    const [first, second] = await figuresOf(elsewhere, ({ checks_total: checks = 0 }) => {
      return checks >= CHECKS;
    });
    expect(first).toEqual(IDLE);
    expect(second).toMatchObject({ steps_total: 0, stepped_seconds_total: 0 });
    expect(second?.["error_seconds"]).toBeGreaterThan(0);
  },
  120_000,
);

test.skipIf(!hasKvm())(
  "on one host there is nothing to compare",
  async () => {
    const same = (_: string, command: readonly string[]) => command;
    const figures = await figuresOf(same, ({ checks_total: checks }) => checks !== undefined);
    expect(figures).toEqual([IDLE, IDLE]);
  },
  120_000,
);
