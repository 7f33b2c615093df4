// A Linux with more memory than any of its hosts gives: one node with vCPUs and two that lend
// memory, and two nodes with small caches. The guest brings more than nine tenths of what all hosts
// give together into use, every word of it written by one CPU and read by the other (test/guest),
// while each engine keeps to what its host promised: what the kernel says is resident of its guest
// RAM, or of its frames, looked at every two seconds. And a memory node is killed while the guest
// fills its memory, which loses nothing where every lent page has two copies.

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { spanCheck } from "../guest/build.ts";
import { guestInitrd } from "./guest-image.ts";
import { assertHealthy, BINARY, lastLine, runCommand } from "./guest-run.ts";
import { type Lab, startLab } from "./lab.ts";
import { labMissing } from "./tools.ts";

const reason = labMissing();
/**
 * For `make soak`: minutes each. Every CI run has payload guests with memory nodes on this host's
 * KVM (test/e2e/memory-nodes.test.ts) and simulated clusters with them.
 */
const soaking = Number(process.env["SSIHV_SPAN_BOOTS"] ?? 1) >= 10;
const describeIfSoaking = soaking ? describe.skipIf(reason !== undefined) : () => undefined;
const limit = 1200;
/** A page that is evicted and comes back costs two transfers of a millisecond of emulation each. */
const dilation = "--clock-dilation 50 --peer-timeout 30s";
const MIB = 1024;
/** KiB. Pages under way: threads of a shard, and write-back slots of its peers. */
const SLACK = (96 + 2 * 64) * 4;

const memTotal = "cat /sys/devices/system/node/node*/meminfo | grep MemTotal; ";

interface Shape {
  /** MiB of guest RAM, and what nodes with vCPUs and memory nodes give. */
  readonly memory: number;
  readonly nodes: number;
  readonly nodeMemory: number;
  readonly lent: readonly number[];
  readonly flags: string;
}

/** Runs `command` with its output in a file, and notes what engines have resident meanwhile. */
function watched(command: string, shape: Shape, meanwhile = ""): string {
  // Guest RAM on nodes with vCPUs, the frames on memory nodes: mappings of known sizes.
  const sizes = [shape.memory, ...shape.lent].map((mib) => `s==${mib * MIB}`).join("||");
  return `${command} </dev/null >/tmp/run.log 2>&1 & run=$!
    ${meanwhile}
    while kill -0 $run 2>/dev/null; do
      for pid in $(pgrep -f '[s]sihv engine'); do
        node=$(tr '\\0' ' ' </proc/$pid/cmdline | sed 's|.*/||')
        awk -v n=$node '/^Size:/ {s=$2} /^Rss:/ && (${sizes}) {r+=$2} END {print n, r+0}' \\
          /proc/$pid/smaps >>/tmp/resident 2>/dev/null
      done; sleep 2
    done
    wait $run; status=$?; cat /tmp/run.log
    awk '$2>m[$1] {m[$1]=$2} END {for (n in m) print "resident node=" n " kib=" m[n]}' /tmp/resident
    rm -f /tmp/resident; exit $status`;
}

/** Most KiB of each node that were resident. */
function residentMost(log: string): Map<number, number> {
  const found = log.matchAll(/^resident node=(\d+) kib=(\d+)$/gm);
  return new Map([...found].map(([, node, kib]) => [Number(node), Number(kib)]));
}

/** KiB of the guest's RAM that are in use when it is full, by what the guest itself says. */
function usedWhenFull(log: string, memory: number): number {
  const totals = new Map<string, number>();
  for (const [, node = "", kib] of log.matchAll(/Node (\d+) MemTotal:\s+(\d+) kB/g)) {
    totals.set(node, Number(kib));
  }
  let free = 0;
  for (const [, node = "", used] of log.matchAll(/fill node=(\d+) from=0 mib=\d+ used=(\d+)%/g)) {
    free += ((totals.get(node) ?? Number.NaN) * (100 - Number(used))) / 100;
  }
  return memory * MIB - free;
}

describeIfSoaking("a guest larger than its hosts' shares", () => {
  let lab: Lab;
  let failed = true;
  beforeAll(async () => {
    lab = await startLab({ memoryMiB: 3072, files: [BINARY] });
  }, 900_000);
  afterAll(() => lab?.close({ keep: failed }));

  async function boot(shape: Shape, script: string, meanwhile?: string): Promise<string> {
    const program = await Bun.file(await spanCheck()).bytes();
    const command = await runCommand({
      ...{ kernel: "cloud", cpus: 2, memory: `${shape.memory}M`, nodes: shape.nodes, limit },
      initrd: await guestInitrd([{ path: "bin/span_check", bytes: program }]),
      flags: `${dilation} --report ${shape.flags}`,
      script,
    });
    const whole = watched(command, shape, meanwhile);
    const result = await lab.host(1).run(whole, { limitSeconds: limit + 30 });
    console.log(`memory nodes, ${shape.flags}: ${JSON.stringify(lastLine(result.log))}`);
    assertHealthy(result);
    expect(lastLine(result.log)?.mismatches).toBe(0);
    return result.log;
  }

  function expectFullWithinPromises(log: string, shape: Shape): void {
    const given = shape.nodes * shape.nodeMemory + shape.lent.reduce((sum, mib) => sum + mib, 0);
    const share = usedWhenFull(log, shape.memory) / (given * MIB);
    const resident = residentMost(log);
    console.log(`in use: ${(share * 100).toFixed(1)} % of ${given} MiB given;`, resident);
    expect(share).toBeGreaterThan(0.9);
    expect(resident.size).toBe(shape.nodes + shape.lent.length);
    for (const [node, kib] of resident) {
      const promised = node < shape.nodes ? shape.nodeMemory : shape.lent[node - shape.nodes];
      expect([node, kib <= (promised ?? 0) * MIB + SLACK]).toEqual([node, true]);
    }
  }

  test(
    "one node with vCPUs and two that lend memory: over nine tenths of all in use",
    async () => {
      failed = true;
      const shape: Shape = {
        ...{ memory: 240, nodes: 1, nodeMemory: 80, lent: [80, 80] },
        flags: "--memory-nodes 2 --node-memory 80M",
      };
      const log = await boot(shape, `${memTotal}span_check fill --share 93`);
      expect(log).toContain("ssihv-guest: ready cpus=2 nodes=1");
      expect(log).toMatch(/memory node 1: \d+\.\d MiB in use/);
      expectFullWithinPromises(log, shape);
      failed = false;
    },
    (limit + 60) * 1000,
  );

  test(
    "two nodes with vCPUs and small caches: over nine tenths of both in use",
    async () => {
      failed = true;
      const shape: Shape = {
        ...{ memory: 320, nodes: 2, nodeMemory: 165, lent: [] },
        flags: "--cache 5M",
      };
      const log = await boot(shape, `${memTotal}span_check fill --share 93`);
      expect(log).toContain("ssihv-guest: ready cpus=2 nodes=2");
      expectFullWithinPromises(log, shape);
      failed = false;
    },
    (limit + 60) * 1000,
  );

  test(
    "a memory node killed while the guest fills its memory: nothing is lost with two copies",
    async () => {
      failed = true;
      const shape: Shape = {
        ...{ memory: 240, nodes: 1, nodeMemory: 80, lent: [160, 160] },
        flags: "--memory-nodes 2 --node-memory 80M --copies 2",
      };
      // Brackets keep the patterns from matching this script's own command line.
      const kill = `for i in $(seq 600); do grep -q filling /tmp/run.log && break; sleep 0.5; done
        sleep 10; pkill -KILL -f '[e]ngine .*vm/2'
        echo "filled=$(grep -c 'fill node' /tmp/run.log)"`;
      const log = await boot(shape, "echo filling; span_check fill --share 93", kill);
      expect(log).toContain("filled=0");
      expect(log).toContain("memory node 2 is lost");
      expect(log).toMatch(/fill node=0 from=0 mib=\d+ used=9\d% ok/);
      failed = false;
    },
    (limit + 60) * 1000,
  );
});
