// dist/ssihv as a user has it: one file, on a machine without Bun, Node or Zig, in any folder.

import { describe, expect, test } from "bun:test";
import { copyFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import manifest from "../../package.json" with { type: "json" };
import { ABI_HASH } from "../../src/native/abi.gen.ts";
import { binary, checkout, isRoot, run, temporaryFolder } from "./support.ts";

const noSuchKernel = ["run", "--kernel", "/nonexistent/bzImage", "--memory", "64M"];

test("--version names version, commit and ABI hash", async () => {
  const { code, out } = await run([binary, "--version"]);
  expect(code).toBe(0);
  expect(out).toContain(manifest.version);
  expect(out).toContain(readFileSync(`${checkout}/build/commit`, "utf8").trim());
  expect(out).toContain(ABI_HASH.toString(16).padStart(16, "0"));
});

/** The shared libraries and the loader that the executable itself names. */
async function libraries(): Promise<string[]> {
  const { out } = await run(["ldd", binary]);
  return [...out.matchAll(/(\/\S+) \(0x/g)].map(([, path = ""]) => path);
}

test.skipIf(!isRoot)("runs in a bare root: itself, glibc and /proc (needs root)", async () => {
  using root = temporaryFolder();
  const files = [...(await libraries()), binary];
  expect(files.length).toBeGreaterThan(2);
  expect(files.length).toBeLessThan(9);
  for (const file of files) {
    const target = `${root.path}${file === binary ? "/ssihv" : file}`;
    mkdirSync(dirname(target), { recursive: true });
    copyFileSync(file, target);
  }
  mkdirSync(`${root.path}/proc`);
  const script = `mount -t proc proc ${root.path}/proc && exec chroot ${root.path} /ssihv "$@"`;
  const inside = (args: string[]) => run(["unshare", "-m", "sh", "-c", script, "sh", ...args]);

  const version = await inside(["--version"]);
  expect(version.err).toBe("");
  expect(version.out).toContain(ABI_HASH.toString(16));
  // The Zig library loads there too and finds no KVM, which is not an error of ours.
  const check = await inside(["check", "--json"]);
  expect(check.err).toBe("");
  const { lines, verdict } = JSON.parse(check.out);
  expect(verdict).toBe("unfit");
  const kvm = lines.find(({ id }: { id: string }) => id === "kvm");
  expect(kvm.state).not.toBe("good");
  expect(check.out).not.toContain("library");
});

describe("the current folder has no say", () => {
  const preload = `require("node:fs").writeFileSync("planted", "ran");`;

  test("bunfig.toml is not read", async () => {
    using folder = temporaryFolder();
    writeFileSync(`${folder.path}/evil.js`, preload);
    writeFileSync(`${folder.path}/bunfig.toml`, 'preload = ["./evil.js"]\n');
    const { code } = await run([binary, "--version"], { cwd: folder.path });
    expect(code).toBe(0);
    expect(existsSync(`${folder.path}/planted`)).toBe(false);

    // The plant works: Bun itself runs it.
    await run([process.execPath, "-e", "0"], { cwd: folder.path });
    expect(existsSync(`${folder.path}/planted`)).toBe(true);
  });

  test(".env is not read", async () => {
    using folder = temporaryFolder();
    const plain = await run([binary, ...noSuchKernel], { cwd: folder.path });
    expect(plain.code).not.toBe(0);
    writeFileSync(`${folder.path}/.env`, "SSIHV_DEBUG=1\n");
    expect(await run([binary, ...noSuchKernel], { cwd: folder.path })).toEqual(plain);

    // The plant works: the same variable from the environment shows a stack.
    const debug = await run([binary, ...noSuchKernel], { env: { SSIHV_DEBUG: "1" } });
    expect(debug.err).not.toBe(plain.err);
  });
});

test("a wrong flag is told in words, never as a stack", async () => {
  const { code, err } = await run([binary, "run", "--kernal", "x"]);
  expect(code).not.toBe(0);
  expect(err).toContain("kernel");
  expect(err).not.toMatch(/^\s+at /m);
});
