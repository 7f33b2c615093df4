// Debian's own driver of the virtio balloon, over two nodes and a memory node: the guest fills
// memory until its hosts are full, frees it, loads the modules, gives pages into the balloon and
// reports what else it has free. Both are discarded on every node, what the memory node kept of
// them with them, and what the guest keeps is whole.

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { guestInitrd, guestModules } from "./guest-image.ts";
import { assertHealthy, BINARY, lastLine, runCommand } from "./guest-run.ts";
import { type Lab, startLab } from "./lab.ts";
import { labMissing } from "./tools.ts";

const reason = labMissing();
/**
 * For `make soak`: minutes. Every CI run has drivers of a few instructions on this host's KVM
 * (test/e2e/balloon.test.ts), and simulated clusters that discard pages.
 */
const soaking = Number(process.env["SSIHV_SPAN_BOOTS"] ?? 1) >= 10;
const describeIfSoaking = soaking ? describe.skipIf(reason !== undefined) : () => undefined;
const limit = 600;
const MIB = 2 ** 20;
/** In the order of need. */
const modules = ["virtio_ring", "virtio", "virtio_mmio", "virtio_balloon"];

interface Shown {
  readonly nodes: readonly {
    readonly stats: {
      readonly memory: Readonly<Record<"discarded" | "framesFreed" | "framesHeld", number>>;
      readonly balloon?: Readonly<Record<"target" | "actual" | "inflated" | "reported", number>>;
    };
  }[];
}

/** Of a line `LABEL {..}`. */
function shownAs(label: string, log: string): Shown {
  const found = new RegExp(`^${label} (\\{.*\\})$`, "m").exec(log)?.[1];
  if (found === undefined) throw new Error(`no ${label} in ${log.slice(-2000)}`);
  return JSON.parse(found) as Shown;
}

describeIfSoaking("a Linux that gives memory back", () => {
  let lab: Lab;
  let failed = true;
  beforeAll(async () => {
    lab = await startLab({ memoryMiB: 3072, files: [BINARY] });
  }, 900_000);
  afterAll(() => lab?.close({ keep: failed }));

  test(
    "into its balloon and as free pages: discarded on both nodes, off the memory node",
    async () => {
      const target = 24;
      // Marks wait a little (in the guest's time, which is slow) for the host. Linux reports
      // free pages while a zone has 64 MiB of them and some, two seconds after they came free.
      const script = `cp /bin/busybox /tmp/kept; md5sum </tmp/kept >/tmp/sum
        for cpu in 1 2; do
          taskset $cpu dd if=/dev/zero of=/tmp/fill$cpu bs=1M count=70 2>/dev/null
        done
        echo guest-full; sleep 0.2; rm /tmp/fill1 /tmp/fill2
        for m in ${modules.join(" ")}; do insmod /lib/$m.ko || exit 3; done
        inflated() { sed -n 's/^balloon_inflate //p' /proc/vmstat; }
        while [ $(inflated) -lt ${target * 256} ]; do sleep 0.05; done
        echo guest-inflated; sleep 4; echo guest-reported; sleep 0.2
        grep -i virtio /proc/interrupts
        md5sum </tmp/kept | cmp - /tmp/sum && echo guest-whole`;
      const command = await runCommand({
        ...{ kernel: "cloud", cpus: 2, memory: "256M", nodes: 2, limit },
        initrd: await guestInitrd(await guestModules("cloud", modules)),
        flags:
          "--clock-dilation 50 --peer-timeout 30s --report --memory-nodes 1 --node-memory 64M " +
          `--cache 8M --balloon ${target}M`,
        script,
      });
      const marks = ["full", "inflated", "reported"];
      const whole = `${command} </dev/null >/tmp/run.log 2>&1 & run=$!
        says() {
          while kill -0 $run 2>/dev/null && ! grep -qa "$1" /tmp/run.log; do sleep 0.5; done
        }
        for mark in ${marks.join(" ")}; do
          says guest-$mark; echo "shown-$mark $(/out/ssihv vm show --local --json)"
        done
        wait $run; status=$?; cat /tmp/run.log; exit $status`;
      const result = await lab.host(1).run(whole, { limitSeconds: limit + 30 });
      console.log(`balloon: ${JSON.stringify(lastLine(result.log))}`);
      assertHealthy(result);
      expect(result.log).toContain("guest-whole");
      expect(lastLine(result.log)?.mismatches).toBe(0);
      const shown = marks.map((mark) => {
        return shownAs(`shown-${mark}`, result.log).nodes.map(({ stats }) => stats);
      });
      for (const [i, mark] of marks.entries()) {
        const numbers = shown[i]?.map(({ memory, balloon }) => ({ ...memory, balloon }));
        console.log(`balloon: ${mark}: ${JSON.stringify(numbers)}`);
      }
      const [full, inflated, reported] = shown;
      expect(inflated?.[0]?.balloon).toMatchObject({
        ...{ target: target * MIB, inflated: target * MIB },
      });
      const given = (reported?.[0]?.balloon?.reported ?? 0) + target * MIB;
      expect(given).toBeGreaterThan(64 * MIB);
      const discarded = [0, 1].map((node) => reported?.[node]?.memory.discarded ?? 0);
      expect(Math.min(...discarded)).toBeGreaterThan(0);
      const held = [full, reported].map((stats) => stats?.[2]?.memory.framesHeld ?? 0);
      expect(held[0]).toBeGreaterThan(40 * 256);
      expect(held[1]).toBeLessThan((held[0] ?? 0) - 16 * 256);
      failed = false;
    },
    (limit + 60) * 1000,
  );
});
