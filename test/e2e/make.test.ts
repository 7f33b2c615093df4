// The build as a whole, in a copy of this checkout: set-up and build need no network once the tools
// are there, and clean and distclean leave nothing, processes included.

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { checkout, isRoot, run } from "./support.ts";

// Inside build/ so that .tools can be hard-linked: 500 MB are not copied.
const copy = `${checkout}/build/e2e-checkout`;
const unshare = isRoot ? ["unshare", "-n"] : ["unshare", "-rn"];

/** Untracked and ignored files of the copy, as git sees them. */
async function leftovers(): Promise<string> {
  return (await run(["git", "status", "--porcelain", "--ignored"], { cwd: copy })).out;
}

beforeAll(async () => {
  rmSync(copy, { recursive: true, force: true });
  mkdirSync(dirname(copy), { recursive: true });
  const clone = await run(["git", "clone", "-q", "--no-local", checkout, copy]);
  expect(clone.err).toBe("");
  // The work tree as it is, so that the test is about these files and not the last commit.
  const listed = await run(["git", "ls-files", "-z", "-co", "--exclude-standard"]);
  for (const path of listed.out.split("\0").filter((name) => existsSync(`${checkout}/${name}`))) {
    if (path !== "") cpSync(`${checkout}/${path}`, `${copy}/${path}`);
  }
  await run(["git", "add", "-A"], { cwd: copy });
  for (const folder of [".tools", "node_modules"]) {
    const linked = await run(["cp", "-al", `${checkout}/${folder}`, `${copy}/${folder}`]);
    expect(linked.err).toBe("");
    rmSync(`${copy}/${folder}/setup-build.stamp`, { force: true });
  }
});

afterAll(() => rmSync(copy, { recursive: true, force: true }));

describe("a checkout with its tools", () => {
  test("sets up and builds without a network", async () => {
    const online = await run([...unshare, "ping", "-c1", "-W1", "1.1.1.1"]);
    expect(online.code).not.toBe(0);
    const made = await run([...unshare, "make"], { cwd: copy });
    expect(made.err).not.toContain("Error");
    expect(made.code).toBe(0);
    const version = await run([`${copy}/dist/ssihv`, "--version"]);
    expect(version.code).toBe(0);
  }, 300_000);

  test("a second make does nothing but look", async () => {
    const made = await run([...unshare, "make"], { cwd: copy });
    expect(made.code).toBe(0);
    expect(made.out).not.toContain("build-lib");
    expect(made.out).not.toContain("--compile");
    expect(made.out).not.toContain("set-up:");
  });

  test("clean ends what a lab recorded, and nothing else", async () => {
    const lab = Bun.spawn(["sleep", "600"]);
    const stranger = Bun.spawn(["sleep", "600"]);
    try {
      const folder = `${copy}/.lab/run-planted`;
      mkdirSync(folder, { recursive: true });
      const started = startTime(lab.pid);
      // The second line is a pid that was reused: same number, other start.
      const lines = [`${lab.pid} ${started} host`, `${stranger.pid} ${started - 1} host`];
      writeFileSync(`${folder}/pids`, `${lines.join("\n")}\n`);
      const cleaned = await run(["make", "clean"], { cwd: copy });
      expect(cleaned.err).toBe("");
      await lab.exited;
      expect(lab.signalCode).toBe("SIGKILL");
      expect(stranger.exitCode).toBeNull();
      expect(existsSync(folder)).toBe(false);
      expect(existsSync(`${copy}/dist`)).toBe(false);
    } finally {
      lab.kill();
      stranger.kill();
    }
  });

  test("distclean leaves a checkout as git made it", async () => {
    expect(await leftovers()).toContain("!! .tools/");
    const cleaned = await run(["make", "distclean"], { cwd: copy });
    expect(cleaned.err).toBe("");
    expect((await leftovers()).split("\n").filter((line) => /^(!!|\?\?)/.test(line))).toEqual([]);
  });
});

/** Field 22 of /proc/PID/stat, proc(5): start time in ticks since boot. */
function startTime(pid: number): number {
  const text = readFileSync(`/proc/${pid}/stat`, "utf8");
  return Number(text.slice(text.lastIndexOf(")") + 2).split(" ")[19]);
}
