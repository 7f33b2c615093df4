import { afterAll, expect, test } from "bun:test";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { type InstallHost, install, requireService, uninstall } from "./installer.ts";

const folders: string[] = [];
afterAll(() => {
  for (const folder of folders) rmSync(folder, { recursive: true });
});

/** Of each service that runs. */
const PID = 42;

/** A host whose systemctl only remembers what it was told. */
function fakeHost(more: Partial<InstallHost> = {}) {
  const base = mkdtempSync(join(tmpdir(), "ssihv-install-"));
  folders.push(base);
  const executable = join(base, "ssihv");
  writeFileSync(executable, "an executable");
  const told: string[] = [];
  const said: string[] = [];
  const active = new Set<string>();
  const host: InstallHost = {
    ...{ base, executable, root: true, booted: true },
    systemctl: (...args) => {
      const unit = args.at(-1) ?? "";
      if (args[0] === "is-active") {
        return { status: 0, out: active.has(unit) ? "active" : "inactive", err: "" };
      }
      if (args[0] === "show") return { status: 0, out: String(PID), err: "" };
      told.push(args.join(" "));
      if (args[0] === "start") active.add(unit);
      return { status: 0, out: "", err: "" };
    },
    say: (line) => said.push(line),
    ...more,
  };
  const read = (path: string) => readFileSync(join(base, path), "utf8");
  return { host, base, told, said, read };
}

const NODE = "/etc/systemd/system/ssihv-node.service";

test("an agent becomes a service: executable, unit, options, started and enabled", () => {
  const { host, base, told, read } = fakeHost();
  install({ daemon: "node", words: ["--memory", "64G"], start: true }, host);
  expect(read("/usr/local/bin/ssihv")).toBe("an executable");
  expect(statSync(join(base, "usr/local/bin/ssihv")).mode & 0o777).toBe(0o755);
  const unit = read(NODE);
  expect(unit).toContain("\nExecStart=/usr/local/bin/ssihv node $SSIHV_OPTIONS\n");
  expect(unit).toContain("\nEnvironmentFile=-/etc/default/ssihv-node\n");
  expect(unit).toContain("\nKillMode=mixed\n");
  expect(read("/etc/default/ssihv-node")).toContain('SSIHV_OPTIONS="--memory 64G"\n');
  expect(told).toEqual(["daemon-reload", "enable ssihv-node.service", "start ssihv-node.service"]);
});

test("a second time nothing is written, started or restarted", () => {
  const { host, told, said } = fakeHost();
  install({ daemon: "node", words: ["--memory", "64G"], start: true }, host);
  told.length = 0;
  said.length = 0;
  install({ daemon: "node", words: ["--memory", "64G"], start: true }, host);
  expect(told).toEqual(["daemon-reload", "enable ssihv-node.service"]);
  expect(said.filter((line) => line.endsWith("written"))).toEqual([]);
  expect(said.at(-1)).toBe("ssihv-node.service runs already, and nothing has changed");
});

test("a coordinator that runs an older file is restarted, an agent is told of", () => {
  const { host, base, told, said } = fakeHost();
  const running = join(base, "proc", String(PID));
  mkdirSync(running, { recursive: true });
  for (const daemon of ["node", "coordinator"] as const) {
    install({ daemon, words: [], start: true }, host);
    symlinkSync(join(base, "usr/local/bin/ssihv"), join(running, "exe"));
    install({ daemon, words: [], start: true }, host);
    rmSync(join(running, "exe"));
    // As a package does: the new one by rename, so the old one runs on without a name.
    symlinkSync(join(base, "ssihv"), join(running, "exe"));
    said.length = 0;
    install({ daemon, words: [], start: true }, host);
    rmSync(join(running, "exe"));
    if (daemon === "node") expect(said.at(-1)).toStartWith("ssihv-node.service goes on as it was");
  }
  expect(told.filter((line) => line.startsWith("restart"))).toEqual([
    "restart ssihv-coordinator.service",
  ]);
});

test("options stay where none are given, as they were written, and unit folders with them", () => {
  const { host, base, read } = fakeHost();
  install({ daemon: "node", words: ["--state", "/srv/state"], start: false }, host);
  const own = `# mine\n${read("/etc/default/ssihv-node")}`;
  writeFileSync(join(base, "etc/default/ssihv-node"), own);
  install({ daemon: "node", words: [], start: false }, host);
  expect(read("/etc/default/ssihv-node")).toBe(own);
  expect(read(NODE)).toContain('\nReadWritePaths=-"/srv/state"\n');
});

test("a running agent is left alone, for its VMs' sake; a coordinator is restarted", () => {
  const { host, told, said } = fakeHost();
  for (const daemon of ["node", "coordinator"] as const) {
    install({ daemon, words: [], start: true }, host);
    install({ daemon, words: ["--metrics", "127.0.0.1:9400"], start: true }, host);
  }
  expect(told.filter((line) => line.startsWith("restart"))).toEqual([
    "restart ssihv-coordinator.service",
  ]);
  expect(said.join("\n")).toContain("ssihv-node.service goes on as it was");
});

test("below another root only files are made", () => {
  const { host, base, told } = fakeHost();
  const root = join(base, "image");
  install({ daemon: "coordinator", words: [], start: true, root }, host);
  expect(told).toEqual([]);
  expect(existsSync(join(root, "usr/local/bin/ssihv"))).toBe(true);
  expect(existsSync(join(root, "etc/systemd/system/ssihv-coordinator.service"))).toBe(true);
  expect(existsSync(join(base, "etc"))).toBe(false);
  uninstall("coordinator", host, root);
  expect(existsSync(join(root, "etc/systemd/system/ssihv-coordinator.service"))).toBe(false);
  expect(told).toEqual([]);
});

test("uninstalling ends the service, removes what was written and tells what stays", () => {
  const { host, base, told, said } = fakeHost();
  install({ daemon: "node", words: [], start: true }, host);
  told.length = 0;
  uninstall("node", host);
  expect(told).toEqual([
    "disable --now ssihv-node.service",
    "daemon-reload",
    "reset-failed ssihv-node.service",
  ]);
  expect(existsSync(join(base, NODE))).toBe(false);
  expect(existsSync(join(base, "etc/default/ssihv-node"))).toBe(false);
  expect(said.at(-1)).toBe(`left as they are: ${join(base, "usr/local/bin/ssihv")}`);
  uninstall("node", host);
  expect(said).toContain("ssihv-node.service is not installed");
});

test("an executable of a package is used where it lies", () => {
  const { host, base, read } = fakeHost({ executable: "/usr/bin/ssihv" });
  install({ daemon: "node", words: [], start: true }, host);
  expect(read(NODE)).toContain("\nExecStart=/usr/bin/ssihv node ");
  expect(existsSync(join(base, "usr/local/bin/ssihv"))).toBe(false);
});

test("what cannot be done is refused in words, before anything is changed", () => {
  const refused = (more: Partial<InstallHost>) => () => {
    requireService("install node", fakeHost(more).host);
  };
  expect(refused({ root: false })).toThrow("ssihv install node needs root");
  expect(refused({ booted: false })).toThrow("systemd does not run this host");
  const source = fakeHost({ executable: undefined });
  expect(() => install({ daemon: "node", words: [], start: true }, source.host)).toThrow(
    "this ssihv runs from its source",
  );
  expect(existsSync(join(source.base, "etc"))).toBe(false);
});

test("what systemctl says is passed on", () => {
  const failing = () => ({ status: 1, out: "", err: "Job for ssihv-node.service failed." });
  const { host } = fakeHost({ systemctl: failing });
  expect(() => install({ daemon: "node", words: [], start: true }, host)).toThrow(
    "systemctl daemon-reload: Job for ssihv-node.service failed.",
  );
});
