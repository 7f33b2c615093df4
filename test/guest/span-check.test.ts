// The guest's check program on this machine: passes on ordinary memory, and every check can fail.
// Folders with a meminfo of our own stand for nodes of other sizes than this machine's.

import { afterAll, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import { spanCheck } from "./build.ts";

const enough = availableParallelism() >= 2;
const MIB_KIB = 1024;
const GIB_KIB = 1024 * MIB_KIB;

async function run(...flags: string[]) {
  const child = Bun.spawn([await spanCheck(), ...flags], { stdout: "pipe", stderr: "pipe" });
  const said = await new Response(child.stderr).text();
  return { said, status: await child.exited };
}

/** Containers often refuse mbind: then the check must say so, and cannot be tried further. */
const first = enough ? await run("fill", "--mib", "1") : { said: "", status: 2 };
const bindable = enough && !/mbind for node \d+: (PERM|NOSYS): FAILED/.test(first.said);

describe("shared words and processes", () => {
  test.if(enough)(
    "a planted lost update is found",
    async () => {
      const { said, status } = await run("counters", "--plant", "--rounds", "20000");
      expect(said).toContain("shared-counter FAILED");
      expect(status).toBe(1);
    },
    120_000,
  );

  test.if(enough)(
    "children come and go, a thirtieth of the rounds",
    async () => {
      const { said, status } = await run("churn", "--rounds", "600");
      expect(said).toBe("span-check: churn ok rounds=20 detail=0\nspan-check: all ok\n");
      expect(status).toBe(0);
    },
    120_000,
  );

  test.if(enough)(
    "a planted exit code is found",
    async () => {
      const { said, status } = await run("churn", "--plant");
      expect(said).toContain("child 0 of side 0: wait status 0x2100, not exit 32");
      expect(said).toContain("churn FAILED rounds=10 detail=1");
      expect(status).toBe(1);
    },
    120_000,
  );
});

describe("clock", () => {
  test.if(enough)("goes forward, on both sides and between them", async () => {
    const { said, status } = await run("clock", "--rounds", "200");
    expect(said).toMatch(/clock side=0 gap_us=\d+ back=0 behind_ns=\d+\n/);
    expect(said).toMatch(/clock side=1 gap_us=\d+ back=0 behind_ns=\d+\n/);
    expect(said).toContain("clock ok rounds=200 detail=0");
    expect(status).toBe(0);
  });

  test.if(enough)("a planted step back is found", async () => {
    const { said, status } = await run("clock", "--plant", "--rounds", "20");
    expect(said).toContain("clock FAILED rounds=20 detail=1");
    expect(status).toBe(1);
  });
});

describe("fill", () => {
  const folder = mkdtempSync(join(tmpdir(), "ssihv-nodes-"));
  afterAll(() => rmSync(folder, { recursive: true }));

  /** A folder like /sys/devices/system/node with nodes of one size that never changes. */
  function nodeDir(name: string, online: string, totalKib: number, freeKib: number): string {
    mkdirSync(join(folder, name));
    writeFileSync(join(folder, name, "online"), `${online}\n`);
    for (const node of online.split("-")) {
      mkdirSync(join(folder, name, `node${node}`));
      const text = `Node ${node} MemTotal: ${totalKib} kB\nNode ${node} MemFree: ${freeKib} kB\n`;
      writeFileSync(join(folder, name, `node${node}`, "meminfo"), text);
    }
    return join(folder, name);
  }

  test.if(bindable)(
    "with every other check, both sides on every node",
    async () => {
      const { said, status } = await run("all");
      expect(said.match(/ ok rounds=/g)?.length).toBe(6);
      expect(said).toMatch(/fill node=0 from=0 mib=\d+ used=\d+% ok\n/);
      expect(said).toMatch(/fill node=0 from=1 mib=\d+ used=\d+% ok\n/);
      expect(said).toEndWith("span-check: all ok\n");
      expect(status).toBe(0);
    },
    120_000,
  );

  test.if(bindable)(
    "planted words are found, one from each side",
    async () => {
      const dir = nodeDir("one", "0", 64 * GIB_KIB, 32 * GIB_KIB);
      const { said, status } = await run("fill", "--plant", "--mib", "2", "--node-dir", dir);
      expect(said.match(/node \d+: [0-9a-f]+ at [0-9a-f]+, not [0-9a-f]+\n/g)?.length).toBe(2);
      expect(said).toMatch(/node=0 from=0 mib=1 used=50% FAILED mismatches=1\n/);
      expect(said).toMatch(/node=0 from=1 mib=1 used=50% FAILED mismatches=1\n/);
      expect(status).toBe(1);
    },
    60_000,
  );

  test.if(enough)("a share that is in use already needs nothing", async () => {
    const dir = nodeDir("used", "0", 64 * GIB_KIB, 32 * GIB_KIB);
    const { said, status } = await run("fill", "--share", "50", "--node-dir", dir);
    expect(said).toContain("fill node=0 from=0 mib=0 used=50% ok");
    expect(said).toContain("fill node=0 from=1 mib=0 used=50% ok");
    expect(status).toBe(0);
  });

  test.if(bindable)(
    "what is filled must show as in use",
    async () => {
      const dir = nodeDir("static", "0", 64 * GIB_KIB, 32 * GIB_KIB + 4 * MIB_KIB);
      const { said, status } = await run("fill", "--share", "50", "--node-dir", dir);
      // Four goes of 4 MiB, the later ones 1, 2, 3 MiB more; half of it from each side.
      expect(said).toContain("fill node=0 from=0 mib=11 used=49% FAILED: below 50%");
      expect(said).toContain("fill node=0 from=1 mib=11 used=49% FAILED: below 50%");
      expect(status).toBe(1);
    },
    60_000,
  );

  test.if(enough)("the reserve stays free", async () => {
    const dir = nodeDir("small", "0", 64 * MIB_KIB, 20 * MIB_KIB);
    const { said, status } = await run("fill", "--share", "92", "--node-dir", dir);
    const line =
      /fill node=0 mib=0 used=68% FAILED: 15 MiB more would leave less than (\d+) MiB free/;
    expect(Number(line.exec(said)?.[1])).toBeGreaterThanOrEqual(4);
    expect(status).toBe(1);
  });

  test.if(enough)("a node that cannot be bound to ends it", async () => {
    const dir = nodeDir("absent", "30-31", 64 * GIB_KIB, 32 * GIB_KIB);
    const { said, status } = await run("fill", "--node-dir", dir);
    expect(said).toMatch(/^span-check: mbind for node 30: \w+: FAILED\n$/);
    expect(status).toBe(2);
  });

  test.if(enough)("MiB and share exclude each other", async () => {
    const { said, status } = await run("fill", "--mib", "4", "--share", "50");
    expect(said).toContain("--mib or --share, not both");
    expect(status).toBe(2);
  });
});
