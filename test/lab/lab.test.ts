// The lab itself: what its hosts offer (nested KVM, userfaultfd, a segment, Soft-RoCE) and what it
// promises to whoever uses it (results come back, limits hold, nothing is left behind).

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { type Lab, startLab } from "./lab.ts";
import { checkout, labDirectory } from "./paths.ts";
import type { RoundTrips } from "./round-trips.ts";
import { labMissing } from "./tools.ts";

const reason = labMissing();
if (reason !== undefined) console.warn(`skipped: lab tests: ${reason}`);

// Another lab of this checkout may have to end first.
const bootLimitMs = 300_000;
const testLimitMs = 60_000;

// Linux system calls and ioctls by number, in perl because that is part of every Debian.
const openKvm = `perl -e '
  open(my $kvm, "+<", "/dev/kvm") or die "kvm: $!";
  my $version = ioctl($kvm, 0xae00, 0) or die "KVM_GET_API_VERSION: $!";
  my $vm = ioctl($kvm, 0xae01, 0) or die "KVM_CREATE_VM: $!";
  print "api ", int($version), "\\n";'`;
// userfaultfd(2) is 323; flags 0 asks for faults of the kernel too, which KVM's are. UFFDIO_API
// carries 0xaa and answers with features: bit 0 write-protect, bit 12 write-protect of shmem.
const openUserfaultfd = `perl -e '
  my $fd = syscall(323, 0); die "userfaultfd: $!" if $fd < 0;
  open(my $file, "+<&=", $fd) or die "fd: $!";
  my $api = pack("QQQ", 0xaa, 0, 0);
  ioctl($file, 0xc018aa3f, $api) or die "UFFDIO_API: $!";
  my ($version, $features) = unpack("QQQ", $api);
  printf "write-protect %d shmem %d\\n", $features & 1, ($features >> 12) & 1;'`;

describe.skipIf(reason !== undefined)("one host", () => {
  let lab: Lab;
  beforeAll(async () => {
    lab = await startLab({ memoryMiB: 1024, files: [`${import.meta.dir}/paths.ts`] });
    console.log(`lab: one host at its prompt after ${lab.bootSeconds.toFixed(1)} s`);
  }, bootLimitMs);
  afterAll(() => lab?.close());

  test(
    "has KVM over nested paging, without the features its emulated CPU gets wrong",
    async () => {
      const parameters = "/sys/module/kvm_amd/parameters";
      const result = await lab
        .host(1)
        .run(`cat ${parameters}/{npt,vgif,vls}; ls /sys/module/kvm_intel; ${openKvm}`);
      expect(result.log.replace(/^ls:.*\n/m, "")).toBe("Y\n0\n0\napi 12\n");
    },
    testLimitMs,
  );

  test(
    "opens a full userfaultfd with write protection",
    async () => {
      const result = await lab.host(1).run(openUserfaultfd);
      expect(result).toMatchObject({ exitCode: 0, log: "write-protect 1 shmem 1\n" });
    },
    testLimitMs,
  );

  test(
    "gives back what commands print and their exit codes, several at once",
    async () => {
      const scripts = ["echo one; exit 0", "echo two >&2; exit 7", "kill -9 $$"];
      const results = await Promise.all(scripts.map((script) => lab.host(1).run(script)));
      expect(results.map((result) => result.exitCode)).toEqual([0, 7, 137]);
      expect(results.map((result) => result.log)).toEqual(["one\n", "two\n", ""]);
    },
    testLimitMs,
  );

  test(
    "ends a command at its time limit and stays usable",
    async () => {
      const script = "echo started; sleep 1000 & echo $! > /tmp/child; wait";
      const late = await lab.host(1).run(script, { limitSeconds: 1 });
      expect(late).toMatchObject({ exitCode: 124, timedOut: true, log: "started\n" });
      const after = await lab.host(1).run("kill -0 $(cat /tmp/child) 2>/dev/null; echo $?");
      expect(after.log).toBe("1\n");
    },
    testLimitMs,
  );

  test(
    "shows output while the command runs",
    async () => {
      const flag = `${lab.out}/go`;
      let seen = "";
      // The command only ends because its first line was seen here.
      const script = "echo first; until [ -e /out/go ]; do sleep 0.1; done; echo last";
      const onOutput = (text: string) => {
        seen += text;
        if (seen.includes("first")) void Bun.write(flag, "");
      };
      const result = await lab.host(1).run(script, { onOutput, limitSeconds: 30 });
      expect(result.exitCode).toBe(0);
      expect(seen).toBe("first\nlast\n");
    },
    testLimitMs,
  );

  test(
    "feeds a command's stdin, byte for byte to its end, one command after the other",
    async () => {
      // More than the 128 KiB that a port holds, without any byte value missing.
      const bytes = Uint8Array.from({ length: 300_000 }, (_, i) => (i * 7 + (i >> 8)) & 0xff);
      const whole = await lab.host(1).run("cat >/out/fed", { input: streamOf(bytes) });
      expect(whole.exitCode).toBe(0);
      expect(Buffer.compare(readFileSync(`${lab.out}/fed`), bytes)).toBe(0);
      // One that leaves most of it unread, then one that gets all of its own.
      const partly = await lab.host(1).run("head -c 3", { input: streamOf(bytes) });
      expect(partly.exitCode).toBe(0);
      const own = await lab.host(1).run("cat", { input: streamOf(Buffer.from("own\n")) });
      expect(own.log).toBe("own\n");
    },
    testLimitMs,
  );

  test(
    "gives a command a terminal and passes on what is typed when it is typed",
    async () => {
      const keys = new TransformStream<Uint8Array, Uint8Array>();
      const writer = keys.writable.getWriter();
      let seen = "";
      const onOutput = (text: string) => {
        seen += text;
        if (seen.endsWith("name? ")) void writer.write(Buffer.from("Ada\n"));
      };
      const script = `tty | cut -c 1-9; read -rp 'name? ' name; echo "hello $name"; exit 5`;
      const options = { input: keys.readable, terminal: true, onOutput, limitSeconds: 30 };
      const running = lab.host(1).run(script, options);
      await Bun.sleep(0);
      const second = lab.host(1).run("cat", { input: streamOf(new Uint8Array(1)) });
      expect(String(await second.catch((error) => error))).toContain("has one input");
      expect((await running).exitCode).toBe(5);
      expect(seen).toMatch(/^\/dev\/pts\/\r\nname\? .*hello Ada\r\n$/s);
    },
    testLimitMs,
  );

  test(
    "sees this machine's files, writes only to /out",
    async () => {
      const result = await lab.host(1).run(`
        cmp /out/paths.ts ${checkout}/test/lab/paths.ts && pwd
        echo inside > ${checkout}/.lab-write-test && cat ${checkout}/.lab-write-test
        echo back > /out/answer; modprobe sch_netem && echo module`);
      expect(result.log).toBe(`${checkout}\ninside\nmodule\n`);
      expect(existsSync(`${checkout}/.lab-write-test`)).toBe(false);
      expect(readFileSync(`${lab.out}/answer`, "utf8")).toBe("back\n");
    },
    testLimitMs,
  );

  test(
    "that dies says so, with its console; nothing of the lab is left after close",
    async () => {
      const list = readFileSync(`${lab.directory}/pids`, "utf8").trim().split("\n");
      const hosts = list.filter((line) => line.endsWith(" host-1"));
      expect(hosts.length).toBe(1);
      const crash = "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger";
      const error: unknown = await lab
        .host(1)
        .run(crash)
        .catch((cause) => cause);
      expect(String(error)).toContain("lab host 1 is gone");
      expect(String(error)).toContain("Kernel panic - not syncing: sysrq triggered crash");
      expect(String(error)).toContain(lab.host(1).consolePath);
      await lab.close();
      expect(existsSync(lab.directory)).toBe(false);
      expect(existsSync(`/proc/${hosts[0]?.split(" ")[0]}`)).toBe(false);
    },
    testLimitMs,
  );
});

describe.skipIf(reason !== undefined)("two hosts", () => {
  let lab: Lab;
  beforeAll(async () => {
    lab = await startLab({ hosts: 2, memoryMiB: 1024, rdma: true });
    console.log(`lab: two hosts with Soft-RoCE ready after ${lab.bootSeconds.toFixed(1)} s`);
  }, bootLimitMs);
  afterAll(() => lab?.close());

  test(
    "reach each other with full frames and have a verbs device",
    async () => {
      // 8972 bytes of data are 9000 on the wire, not to be fragmented.
      const script = `
        /run/lab/busybox ping -c 3 -s 8972 10.9.0.$((3 - LABNODE)) | grep -o '3 packets received'
        cat /sys/class/net/eth0/mtu /sys/class/infiniband/rxe0/ports/1/state`;
      const results = await lab.run(script);
      const wanted = "3 packets received\n9000\n4: ACTIVE\n";
      expect(results.map((result) => result.log)).toEqual([wanted, wanted]);
    },
    testLimitMs,
  );

  test(
    "have this machine's TSC, and are told its rate",
    async () => {
      // An emulated timer to measure it by goes wrong when the host gets no CPU.
      // (The first of two lines is what it takes its CPU for by that.)
      const results = await lab.run("dmesg | grep -o 'tsc: Detected .* MHz' | tail -n 1");
      const [first, second] = results.map(({ log }) => log);
      expect(first).toMatch(/^tsc: Detected \d+\.\d{3} MHz\n$/);
      expect(second).toBe(first ?? "");
    },
    testLimitMs,
  );

  test(
    "exchange small messages without delayed acknowledgements",
    async () => {
      const program = `${process.execPath} ${import.meta.dir}/round-trips.ts`;
      const server = lab.host(1).run(`exec ${program} serve`, { limitSeconds: 40 });
      const asked = await lab.host(2).run(
        `until (: </dev/tcp/${lab.host(1).address}/7000) 2>/dev/null; do sleep 0.2; done
        exec ${program} ask ${lab.host(1).address}`,
        { limitSeconds: 40 },
      );
      expect(asked.exitCode, asked.log).toBe(0);
      const table = JSON.parse(asked.log) as RoundTrips[];
      console.table(table);
      const held = await lab.run(`awk '/^TcpExt/ { if (n++) print $column; else
        for (i = 1; i <= NF; i++) if ($i == "DelayedACKs") column = i }' /proc/net/netstat`);
      // Some 1000 requests went by; a held-back ACK per request is what would cost 40 ms each.
      for (const result of held) expect(Number(result.log)).toBeLessThan(20);
      await lab.host(1).run("pkill -f round-trips || kill %1", { limitSeconds: 5 });
      await server;
    },
    testLimitMs,
  );
});

describe.skipIf(reason !== undefined)("the command line", () => {
  const bun = process.execPath;

  test(
    "runs on three hosts, shapes one's traffic, returns the first failure, keeps the evidence",
    async () => {
      const script = `/run/lab/busybox ping -c 1 10.9.0.$((LABNODE % 3 + 1)) |
          grep -o '1 packets received'
        tc qdisc show dev eth0 | grep -o 'netem.*delay 5ms'; exit $((LABNODE == 3 ? 9 : 0))`;
      const child = Bun.spawn(
        [
          bun,
          `${import.meta.dir}/main.ts`,
          "--hosts",
          "3",
          "--memory",
          "512",
          "--cmd",
          script,
        ].concat(["--netem", "2:delay 5ms"]),
        { stdout: "pipe", stderr: "pipe" },
      );
      const output = await new Response(child.stdout).text();
      const errors = await new Response(child.stderr).text();
      expect(await child.exited, errors).toBe(9);
      expect(output.match(/^[123]\| 1 packets received$/gm)?.length).toBe(3);
      expect(output.match(/^.*netem.*$/gm)).toEqual([expect.stringMatching(/^2\| netem/)]);
      const kept = /consoles and logs are in (\S+)/.exec(errors)?.[1] ?? "";
      expect(existsSync(`${kept}/console-3`)).toBe(true);
      await Bun.$`rm -r ${kept}`;
    },
    bootLimitMs,
  );

  test(
    "leaves nothing behind when it is told to stop",
    async () => {
      const child = Bun.spawn(
        [bun, `${import.meta.dir}/main.ts`, "--memory", "512", "--cmd", "echo up; sleep 1000"],
        { stdout: "pipe", stderr: "ignore" },
      );
      let started: { directory: string; pids: string[] } | undefined;
      for await (const _ of child.stdout) {
        started = runOf(child.pid);
        child.kill("SIGTERM");
      }
      expect(await child.exited).toBe(143);
      expect(started?.pids.length).toBe(2); // itself and one host
      expect(existsSync(started?.directory ?? "/")).toBe(false);
      for (const pid of started?.pids ?? []) expect(await ended(pid)).toBe(true);
    },
    bootLimitMs,
  );

  test.each([
    [["--cmd", "true", "--hosts", "0"], "--hosts takes a whole number"],
    [["--hosts", "2"], "--cmd is missing"],
    [["--cmd", "true", "--netem", "5:loss 1%"], "the lab has hosts 1 to 1"],
    [["--frobnicate"], "frobnicate"],
  ])("refuses %p before anything starts", async (flags, words) => {
    const child = Bun.spawn([bun, `${import.meta.dir}/main.ts`, ...flags], { stderr: "pipe" });
    const errors = await new Response(child.stderr).text();
    expect(await child.exited).toBe(2);
    expect(errors).toContain(words);
    expect(errors).not.toMatch(/^\s+at /m);
  });
});

function streamOf(bytes: Uint8Array): ReadableStream<Uint8Array> {
  return new Response(bytes).body ?? new ReadableStream();
}

// The run directory that a lab process owns, and the processes noted there.
function runOf(owner: number): { directory: string; pids: string[] } | undefined {
  for (const name of readdirSync(labDirectory)) {
    const list = `${labDirectory}/${name}/pids`;
    if (!name.startsWith("run-") || !existsSync(list)) continue;
    const pids = [...readFileSync(list, "utf8").matchAll(/^([0-9]+) /gm)].map(
      (match) => `${match[1]}`,
    );
    if (pids.includes(`${owner}`)) return { directory: `${labDirectory}/${name}`, pids };
  }
  return undefined;
}

// Dead, or dead and not yet collected by its parent: state Z in /proc/PID/stat.
async function ended(pid: string): Promise<boolean> {
  const running = () => {
    const path = `/proc/${pid}/stat`;
    return existsSync(path) && !/\) Z /.test(readFileSync(path, "utf8"));
  };
  for (let tries = 0; tries < 100 && running(); tries += 1) await Bun.sleep(20);
  return !running();
}
