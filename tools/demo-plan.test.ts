import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import {
  chooseRung,
  demoOptions,
  type HostFacts,
  notShown,
  obstacle,
  quoted,
  runWords,
  SHELL_MARK,
  withLabFlags,
} from "./demo-plan.ts";

const roomy = { arch: "x64", memoryAvailableKib: 8 << 20, diskFreeBytes: 2 ** 34 };
const both = ["kvm", "userfaultfd"];
const unfit: HostFacts = {
  verdict: "unfit",
  missing: ["TDP"],
  container: false,
  devices: both,
  offered: both,
};
const bare: HostFacts = { ...unfit, container: true, devices: [] };
const DEVICES = "--device /dev/kvm --device /dev/userfaultfd";
const CONFINED = "--security-opt seccomp=unconfined --cap-add SYS_NICE";

test("flags: rung, nodes, and more flags for ssihv run", () => {
  expect(demoOptions([])).toEqual({ nodes: 2, runFlags: [] });
  expect(demoOptions(["--rung", "2", "--nodes=1", "--run-flags= --rung  9 "])).toEqual({
    rung: 2,
    nodes: 1,
    runFlags: ["--rung", "9"],
  });
  expect(demoOptions(["--rung", "3"])).toBe('--rung is 1 or 2, not "3"');
  expect(demoOptions(["--nodes", "two"])).toBe('--nodes is 1 or 2, not "two"');
  expect(demoOptions(["--wrong"])).toContain("--wrong");
});

test("a machine that cannot run it is told why, by what the rung needs", () => {
  expect(obstacle(roomy, 1)).toBeUndefined();
  expect(obstacle(roomy, 2)).toBeUndefined();
  expect(obstacle({ ...roomy, arch: "arm64" }, 1)).toContain("arm64");
  const small = { ...roomy, memoryAvailableKib: 2 << 20, diskFreeBytes: 2 ** 30 };
  expect(obstacle(small, 1)).toBeUndefined();
  expect(obstacle(small, 2)).toBe("2048 MiB of memory available, rung 2 needs 4096");
  expect(obstacle({ ...small, memoryAvailableKib: 1 << 20 }, 1)).toContain("1024 MiB of memory");
  expect(obstacle({ ...roomy, diskFreeBytes: 2 ** 20 }, 1)).toContain("1 MiB of disk");
  expect(obstacle({ ...roomy, diskFreeBytes: 2 ** 30 }, 2)).toContain("1024 MiB of disk");
});

test("rung 1: a fit host, in a container or not, even one with losses", () => {
  for (const verdict of ["fit", "degraded"]) {
    for (const container of [false, true]) {
      const rung = chooseRung({ ...unfit, verdict, missing: [], container });
      expect(rung).toEqual({ rung: 1, why: "KVM with TDP and userfaultfd are fit" });
    }
  }
});

test("rung 2: an unfit host, and a container that has the devices: flags would not help", () => {
  const rung = { rung: 2, why: "this host is unfit (TDP)" } as const;
  expect(chooseRung(unfit)).toEqual(rung);
  expect(chooseRung({ ...unfit, devices: [] })).toEqual(rung);
  expect(chooseRung({ ...unfit, container: true })).toEqual(rung);
  expect(chooseRung({ ...unfit, missing: [] }).why).toBe("this host is unfit (see ssihv check)");
});

test("rung 3: a container that lacks a device is told its flags, then emulates", () => {
  for (const devices of [[], ["kvm"], ["userfaultfd"]]) {
    const rung = chooseRung({ ...bare, devices });
    expect(rung.rung).toBe(2);
    expect(rung.flags).toBe(`${DEVICES} ${CONFINED}`);
  }
  const old = chooseRung({ ...bare, offered: ["kvm"] });
  expect(old.flags).toBe(`--device /dev/kvm --cap-add SYS_PTRACE ${CONFINED}`);
  const unloaded = chooseRung({ ...bare, offered: ["userfaultfd"] });
  expect(unloaded.flags).toStartWith(`${DEVICES} ${CONFINED} (first`);
  expect(unloaded.flags).toContain("modprobe kvm_amd or kvm_intel");
});

test("a rung that is asked for is taken, and that is the reason", () => {
  for (const wanted of [1, 2] as const) {
    expect(chooseRung(bare, wanted)).toEqual({ rung: wanted, why: "--rung asks for it" });
  }
});

const pieces = { kernel: "/k", initrd: "/i" };
const plain = { nodes: 2, runFlags: ["--report"] };

/** What the guest is told to run. */
function script(words: readonly string[]): string {
  const cmdline = words[words.indexOf("--cmdline") + 1] ?? "";
  return Buffer.from(/ssihv\.run=(\S+)/.exec(cmdline)?.[1] ?? "", "base64").toString();
}

test("the guest checks the span and powers off, or leaves its shell to the user", () => {
  const words = runWords(pieces, plain, false);
  expect(words.slice(0, 5)).toEqual(["run", "--kernel", "/k", "--initrd", "/i"]);
  expect(words.slice(-7)).toEqual(["--nodes", "2", "--cpus", "2", "--memory", "512M", "--report"]);
  expect(script(words)).toEndWith("span_check all");
  expect(words.join(" ")).not.toContain("ssihv.shell");
  const attended = runWords(pieces, plain, true);
  expect(script(attended)).toEndWith("span_check all");
  expect(attended).toContainEqual(expect.stringMatching(/ ssihv\.run=\S+ ssihv\.shell$/));
  const init = readFileSync(`${import.meta.dir}/../test/lab/guest-init.sh`, "utf8");
  expect(init).toContain(`echo "${SHELL_MARK}"`);
});

test("an emulated host gets its flags unless they are given", () => {
  const patience = ["--peer-timeout", "30s"];
  const dilated = ["--clock-dilation", "50"];
  expect(withLabFlags(plain).runFlags).toEqual([...dilated, ...patience, "--report"]);
  const own = withLabFlags({ ...plain, runFlags: ["--clock-dilation=9"] });
  expect(own.runFlags).toEqual([...patience, "--clock-dilation=9"]);
});

test("only a guest of the asked nodes with passed checks counts", () => {
  const good = "ssihv-guest: ready cpus=2 nodes=2 uptime=1\nspan-check: all ok\n";
  expect(notShown(good, 2)).toBeUndefined();
  expect(notShown(good, 1)).toBe("the guest did not see 2 CPUs on 1 node");
  expect(notShown(good.replace("nodes=2", "nodes=1"), 2)).toContain("2 nodes");
  expect(notShown(good.replace("all ok", "x FAILED"), 2)).toContain("did not pass");
});

test("quoting keeps a word whole in a shell", () => {
  const word = `it's "$HOME" \\ here`;
  const child = Bun.spawnSync(["sh", "-c", `printf %s ${quoted(word)}`]);
  expect(child.stdout.toString()).toBe(word);
});
