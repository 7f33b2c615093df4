import { afterEach, beforeEach, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";

// The functions under test work on the folder of SSIHV_LAB_DIR, so each test runs them in a process
// of its own: that process is also what "the lab's owner" is about.
let folder = "";
beforeEach(() => {
  folder = mkdtempSync(`${tmpdir()}/lab-test-`);
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

async function inOwnProcess(body: string): Promise<string> {
  const prelude = `import * as runs from ${JSON.stringify(`${import.meta.dir}/run-directory.ts`)};`;
  const child = Bun.spawn([process.execPath, "-e", `${prelude}${body}`], {
    env: { ...process.env, SSIHV_LAB_DIR: folder },
    stdout: "pipe",
    stderr: "inherit",
  });
  const output = await new Response(child.stdout).text();
  expect(await child.exited).toBe(0);
  return output.trim();
}

const startSleeper = `
  const directory = runs.createRunDirectory();
  const child = Bun.spawn(["sleep", "600"]);
  child.unref();
  runs.recordProcess(directory, child.pid, "host-1");
  console.log(child.pid);`;

test("a dead lab's processes are ended and its folder removed", async () => {
  const pid = await inOwnProcess(startSleeper);
  expect(existsSync(`/proc/${pid}`)).toBe(true);
  const found = await inOwnProcess("console.log(JSON.stringify(runs.reap()))");
  expect(JSON.parse(found)).toEqual({ directories: 1, processes: 1 });
  expect(await gone(pid)).toBe(true);
  expect(readdirSync(folder)).toEqual([]);
});

test("a pid that now belongs to another process is left alone", async () => {
  const pid = await inOwnProcess(startSleeper);
  const [run] = readdirSync(folder);
  const list = `${folder}/${run}/pids`;
  const text = await Bun.file(list).text();
  await Bun.write(list, text.replace(/^(\d+) (\d+) host-1$/m, "$1 1 host-1"));
  const found = await inOwnProcess("console.log(JSON.stringify(runs.reap()))");
  expect(JSON.parse(found)).toEqual({ directories: 1, processes: 0 });
  expect(existsSync(`/proc/${pid}`)).toBe(true);
  process.kill(Number(pid), "SIGKILL");
});

test("a lab in use is only ended on request, and evidence only removed on request", async () => {
  const found = await inOwnProcess(`
    const used = runs.createRunDirectory();
    const kept = runs.createRunDirectory();
    runs.keepRunDirectory(kept);
    const counts = [{}, { kept: true }, { inUse: true }].map((o) => runs.reap(o).directories);
    console.log(JSON.stringify(counts));`);
  expect(JSON.parse(found)).toEqual([0, 1, 1]);
});

test("only the newest kept folders stay", async () => {
  await inOwnProcess(`
    for (let n = 0; n < 12; n += 1) runs.keepRunDirectory(runs.createRunDirectory());`);
  expect(readdirSync(folder).length).toBe(8);
});

// Dead, or dead and not yet collected by its parent: state Z in /proc/PID/stat.
async function gone(pid: string): Promise<boolean> {
  const running = () => {
    const path = `/proc/${pid}/stat`;
    return existsSync(path) && !/\) Z /.test(readFileSync(path, "utf8"));
  };
  for (let tries = 0; tries < 100 && running(); tries += 1) await Bun.sleep(20);
  return !running();
}
