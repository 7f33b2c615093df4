// The command line in one process: usage errors, statuses, --version, check; the host is a
// stand-in.

import { expect, test } from "bun:test";

import { records } from "../native/abi.gen.ts";
import type { HostFacts } from "../node/host-facts.ts";
import { main } from "./app.ts";
import type { HostAccess } from "./context.ts";

const FACTS: HostFacts = {
  kernel: "6.1.0",
  cpus: 2,
  virtualisation: "svm",
  kvmModules: ["kvm_amd"],
  memoryTotal: 2 ** 34,
  memoryAvailable: 2 ** 33,
  overcommit: 0,
  memfdNoexec: 0,
  openFiles: 1024,
  addressSpace: Infinity,
  root: true,
};

type Probe = Awaited<ReturnType<HostAccess["probe"]>>;

function probe(kvm: number): Probe {
  const fields = Object.keys(records.HostProbe.fields).filter((field) => field !== "reserved");
  const good = { state: 1, errno: 0, value: 1n };
  const all = Object.fromEntries(fields.map((field) => [field, good]));
  return { ...all, kvm: { state: kvm, errno: 2, value: 0n } } as Probe;
}

async function ssihv(args: string[], host: Partial<HostAccess> = {}) {
  let out = "";
  let err = "";
  const status = await main(
    args,
    { stdout: { write: (text) => (out += text) }, stderr: { write: (text) => (err += text) } },
    {
      facts: () => FACTS,
      probe: () => Promise.resolve(probe(1)),
      sharedPages: () => Promise.reject(new Error("nothing may be started in this test")),
      kvmOpenError: () => undefined,
      runEngine: () => Promise.resolve(),
      ...host,
    },
  );
  return { status, out, err };
}

test("a usage error: status 2, stdout empty, the flag named, a way out, no stack", async () => {
  const cases: [args: string[], says: string][] = [
    [["runn"], "did you mean"],
    [["run"], "--kernel is missing"],
    [["run", "--kernl", "x"], "did you mean --kernel?"],
    [["run", "--page-table", "x"], "did you mean --page-tables?"],
    [["run", "--kernel"], "--kernel needs a value"],
    [["run", "--kernel", "--cpus", "1"], "--kernel needs a value (--cpus follows)"],
    [["run", "--kernel", "a", "--kernel", "b"], "--kernel was given twice"],
    [["run", "--kernel", "k", "--cpus", "0"], '--cpus: "0" is not a whole number'],
    [["run", "--kernel", "k", "--memory", "big"], '--memory: "big" is not a size'],
    [["run", "--kernel", "k", "--memory", "512"], "--memory 512M"],
    [["run", "--kernel", "k", "--page-tables", "strct"], "--page-tables strict"],
    [["run", "--kernel", "k", "--peer-timeout", "5"], '--peer-timeout: "5" is not a duration'],
    [["run", "--kernel", "k", "extra"], '"extra" is one argument too many'],
    [["run", "--kernel", "/nonexistent"], "--kernel: kernel /nonexistent does not exist"],
    [["run", "--kernel", "/"], "--kernel: kernel / is not a regular file"],
    [["run", "--config", "/nonexistent.yaml"], "--config: /nonexistent.yaml"],
    [["check", "--jsn"], "did you mean --json?"],
    [["-x"], "no command -x"],
  ];
  for (const [args, says] of cases) {
    const { status, out, err } = await ssihv(args);
    expect(err).toContain(says);
    expect(err).toContain("\n  try: ");
    expect(err).not.toMatch(/^\s+at /m);
    expect({ args, status, out }).toEqual({ args, status: 2, out: "" });
    const json = await ssihv([...args, "--json"]);
    const { error } = JSON.parse(json.err.split("\n")[0] ?? "") as { error: { message: string } };
    expect(error.message.length).toBeGreaterThan(0);
  }
});

test("help has examples everywhere and hides what is internal", async () => {
  const root = await ssihv(["--help"]);
  expect(root.status).toBe(0);
  expect(root.out).not.toContain("engine");
  for (const command of [[], ["run"], ["join"], ["check"], ["acpi", "dump"], ["acpi", "explain"]]) {
    const { out, status } = await ssihv([...command, "--help"]);
    expect(status).toBe(0);
    expect(out).toMatch(/Examples?:\n/);
  }
});

test("--version names version, commit and ABI", async () => {
  const { out, status } = await ssihv(["--version"]);
  expect(out).toMatch(/^ssihv \d+\.\d+\.\d+ \(commit \w+, ABI \d+\/[0-9a-f]{16}\)\n$/);
  expect(status).toBe(0);
});

test("check: lines with fixes and a verdict as the status", async () => {
  const good = await ssihv(["check"]);
  expect(good.status).toBe(0);
  expect(good.out).toContain("This host is fit.");
  expect(good.out).not.toContain("fix:");
  const bad = await ssihv(["check"], { probe: () => Promise.resolve(probe(3)) });
  expect(bad.status).toBe(4);
  expect(bad.out).toMatch(/^MISSING +KVM: .*\n +fix: modprobe kvm_amd/m);
  const json = await ssihv(["check", "--json"], { probe: () => Promise.resolve(probe(3)) });
  const { lines, verdict } = JSON.parse(json.out) as { lines: { id: string }[]; verdict: string };
  expect(verdict).toBe("unfit");
  expect(lines.find(({ id }) => id === "kvm")).toMatchObject({ state: "missing", required: true });
});

test("a defect is said as one, with its own status", async () => {
  const broken = { probe: () => Promise.reject(new TypeError("x is undefined")) };
  const { status, err } = await ssihv(["check"], broken);
  expect(status).toBe(12);
  expect(err).toContain("x is undefined");
  expect(err).toContain("defect in ssihv");
});
