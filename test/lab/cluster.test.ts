// A cluster of two emulated hosts, set up from nothing by the commands of README.md: a Debian over
// both is created through the coordinator, its console attached, the coordinator killed and started
// again under it; then an agent is killed, the VM started again, and at last a host killed; what is
// listed is looked at after each.
// The times are those of emulated hosts, on which a command takes seconds.

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { guestInitrd, guestKernel, guestNumactl } from "./guest-image.ts";
import { BINARY, TROUBLE } from "./guest-run.ts";
import { type Lab, startLab } from "./lab.ts";
import { labMissing } from "./tools.ts";

const reason = labMissing();
/** A boot over two hosts, as in span.test.ts. */
const bootSeconds = 900;
const coordinator = "coordinator --listen 10.9.0.1:7780 --heartbeat 2s --silence 30s";

const MIB = 2 ** 20;
const LOST = /Last run: .*(vcpu lost|vCPU is lost|lost: )/;

/** An emulated host may be too slow for the check of how soon a vCPU can be stopped. */
const agent = "node --accept-unfit";

/** Lets a command go on after its script, with its words in a file. */
function daemon(name: string, command: string): string {
  return `setsid /out/ssihv ${command} >>/tmp/${name}.log 2>&1 & echo $! >/tmp/${name}.pid`;
}

/**
 * The agent of host 2 in a control group of its own, as a service has: its engines get groups below
 * with limits.
 */
const GROUP = "/sys/fs/cgroup/ssihv";
const groupScript = `mount -t cgroup2 none /sys/fs/cgroup
  echo +memory >/sys/fs/cgroup/cgroup.subtree_control; mkdir ${GROUP}`;
function groupedAgent(command: string): string {
  const script = `echo $$ >${GROUP}/cgroup.procs; exec /out/ssihv ${command}`;
  return `setsid sh -c '${script}' >>/tmp/node.log 2>&1 & echo $! >/tmp/node.pid`;
}
/** NAME BYTES PROCESSES of each engine's group: the engine, and KVM's thread for its VM. */
const ENGINE_GROUP = /^engine-\d+ \d+ [12]$/gm;
const groups = `cd ${GROUP}; for g in engine-*; do
  echo "$g $(cat $g/memory.max) $(wc -l <$g/cgroup.procs)"; done`;

/** Until the command's output has the pattern; what it said last, where it never has. */
function until(command: string, pattern: string, seconds: number): string {
  return `for i in $(seq ${Math.ceil(seconds / 2)}); do
      said=$(${command} 2>&1)
      echo "$said" | grep -qE '${pattern}' && break
      sleep 2
    done; echo "$said"`;
}

describe.skipIf(reason !== undefined)("a cluster of two hosts", () => {
  let lab: Lab;
  let failed = true;
  beforeAll(async () => {
    lab = await startLab({ hosts: 2, memoryMiB: 2048, files: [BINARY] });
  }, 900_000);
  afterAll(() => lab?.close({ keep: failed }));

  async function on(host: number, script: string, limitSeconds = 120): Promise<string> {
    const { log, exitCode } = await lab.host(host).run(script, { limitSeconds });
    if (exitCode !== 0) throw new Error(`host ${host}: status ${exitCode} of\n${script}\n${log}`);
    return log;
  }

  test(
    "set up from nothing, a Debian over both, coordinator, agent and host killed",
    async () => {
      // From nothing to two hosts that are up.
      await on(1, `/out/ssihv certs init && ${daemon("coordinator", coordinator)}`);
      const ready = "cat /tmp/coordinator.log";
      expect(await on(1, until(ready, "joining hosts", 60))).toContain("API on port 7780");
      await on(1, "umask 077; /out/ssihv cluster token lab2 >/out/token");
      const token = "/out/ssihv cluster token lab1";
      await on(1, `${token} >/tmp/token; ${daemon("node", `${agent} --join - </tmp/token`)}`);
      await on(2, `${groupScript}\n${groupedAgent(`${agent} --join - </out/token`)}`);
      const hosts = await on(1, until("/out/ssihv cluster status", "2 up, 0 silent", 120), 180);
      expect(hosts).toMatch(/\nlab1 +up .*\nlab2 +up /);

      // A VM over both, from a file.
      const kernel = await guestKernel("cloud");
      const initrd = await guestInitrd(await guestNumactl());
      const file = `cat >/tmp/demo.yaml <<'END'
name: demo
nodes:
  - { cpus: 1, memory: 128M, host: lab1 }
  - { cpus: 1, memory: 128M, host: lab2 }
kernel: ${kernel}
initrd: ${initrd}
cmdline: quiet
clock_dilation: 200
peer_timeout: 30s
END
/out/ssihv vm create -f /tmp/demo.yaml --start --wait 300s`;
      const started = await on(1, file, 330);
      expect(started).toContain("VM demo: node 0 on lab1, node 1 on lab2");
      expect(started).toContain("running after");
      await on(1, "setsid /out/ssihv vm console demo --read-only >/tmp/console 2>&1 &");
      const booted = await on(
        1,
        until("cat /tmp/console", "ssihv-guest: ready", bootSeconds),
        bootSeconds + 60,
      );
      expect(booted).toContain("ssihv-guest: ready cpus=2 nodes=2");

      // The second engine is in its control group: 128 MiB for its pages, and as much for others.
      const [limited] = await on(2, groups).then((text) => text.match(ENGINE_GROUP) ?? []);
      expect(Number(limited?.split(" ")[1])).toBeGreaterThan(256 * MIB);
      expect(await on(1, "/out/ssihv vm show demo")).toMatch(
        /sandbox of node 1: .*at most \d+ MiB/,
      );

      // The coordinator is killed; the guest does not notice, and is listed again.
      const before = await on(1, "/out/ssihv vm show demo --json");
      await on(1, "kill -9 $(cat /tmp/coordinator.pid)");
      const local = await on(2, "/out/ssihv vm list --local");
      expect(local).toMatch(/\ndemo\/1 +running/);
      await on(1, daemon("coordinator", coordinator));
      await on(1, until("/out/ssihv vm list", "demo +running", 120), 180);
      const after = await on(1, "/out/ssihv vm show demo --json");
      const identity = (text: string) => {
        const { since, places, engines } = JSON.parse(text);
        return { since, places, pids: engines.nodes.map(({ pid }: { pid: number }) => pid) };
      };
      expect(identity(after)).toEqual(identity(before));

      // A late reader sees the boot, and the guest still answers, and knows its nodes.
      const asked = "numactl --hardware; echo answer-$((6*7))";
      const typed = `(echo '${asked}'; sleep 600) | /out/ssihv vm console demo`;
      await on(1, `setsid sh -c "${typed.replaceAll("$", "\\$")}" >/tmp/late 2>&1 &`);
      const late = await on(1, until("cat /tmp/late", "answer-42", 300), 360);
      expect(late).toContain("ssihv-guest: ready");
      expect(late).toContain("answer-42");
      expect(late).toContain("available: 2 nodes (0-1)");
      expect(late).toMatch(/node +0 +1 *\r?\n +0: +10 +20 *\r?\n +1: +20 +10/);
      expect(late).not.toMatch(TROUBLE);

      // An agent is killed, and its engine with it: the VM is over. Both start again.
      await on(2, "kill -9 $(cat /tmp/node.pid)");
      const lost = await on(1, until("/out/ssihv vm show demo", "State: +failed", 180), 240);
      expect(lost).toMatch(LOST);
      expect(await on(2, 'echo "left=$(pgrep -fc "[s]sihv engine")"')).toContain("left=0");
      // As systemd does between a service's end and its next start.
      const anew = `until rmdir ${GROUP}/*/ ${GROUP}; do sleep 0.2; done; mkdir ${GROUP}`;
      await on(2, `${anew}\n${groupedAgent(agent)}`);
      await on(1, until("/out/ssihv cluster status", "2 up, 0 silent", 120), 180);
      const again = await on(1, "/out/ssihv vm start demo --wait 300s", 330);
      expect(again).toContain("running after");
      await on(1, until("/out/ssihv vm list", "demo +running", 60), 120);
      // The next engine has a group, too.
      expect(await on(2, groups)).toMatch(/^engine-\d+ \d+ [12]\n$/);

      // A host is killed: the VM is over, and both are listed so.
      lab.host(2).kill();
      const list = await on(1, until("/out/ssihv cluster status", "lab2 +silent", 180), 240);
      expect(list).toMatch(/\nlab1 +up .*\nlab2 +silent /);
      const ended = await on(1, until("/out/ssihv vm show demo", "State: +failed", 180), 240);
      expect(ended).toMatch(LOST);
      const left = await on(1, 'echo "left=$(pgrep -fc "[s]sihv engine")"; ls /run/ssihv');
      expect(left).toContain("left=0");
      expect(left).not.toContain("demo");
      failed = false;
    },
    (bootSeconds + 1800) * 1000,
  );
});
