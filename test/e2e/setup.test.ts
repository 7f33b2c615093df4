// What set-up says on machines that lack something: what, and what to do, in the first second. Runs
// the script in a copy, with a PATH that holds only what the case allows.

import { describe, expect, test } from "bun:test";
import { cpSync, symlinkSync, writeFileSync } from "node:fs";
import { checkout, type Finished, run, temporaryFolder } from "./support.ts";

const basics = [
  "awk",
  "cat",
  "cksum",
  "cp",
  "cut",
  "date",
  "df",
  "dirname",
  "env",
  "id",
  "ln",
].concat(["mkdir", "mv", "readlink", "rm", "sed", "sh", "sleep", "tail", "touch", "uname"]);

interface Machine {
  /** Programs found in PATH besides the basics. */
  readonly has?: readonly string[];
  /** Programs replaced by a script. */
  readonly fake?: Record<string, string>;
}

async function setUpOn(machine: Machine): Promise<Finished> {
  using folder = temporaryFolder();
  const bin = `${folder.path}/bin`;
  cpSync(`${checkout}/tools`, `${folder.path}/tools`, { recursive: true });
  cpSync(`${checkout}/package.json`, `${folder.path}/package.json`);
  await run(["mkdir", bin]);
  for (const name of [...basics, ...(machine.has ?? [])]) {
    const path = Bun.which(name);
    if (path !== null && machine.fake?.[name] === undefined) symlinkSync(path, `${bin}/${name}`);
  }
  for (const [name, body] of Object.entries(machine.fake ?? {})) {
    writeFileSync(`${bin}/${name}`, `#!/bin/sh\n${body}\n`, { mode: 0o755 });
  }
  const env = { PATH: bin, BUN: undefined, ZIG: undefined };
  return await run(["sh", "tools/setup.sh", "build"], { cwd: folder.path, env });
}

/** A Bun of the right version that installs nothing. */
const bun = `[ "$1" = --version ] && echo ${Bun.version} || mkdir -p node_modules`;

describe("set-up refuses with the reason and the cure", () => {
  test("another processor", async () => {
    const fake = { uname: '[ "$1" = -m ] && echo aarch64 || echo Linux' };
    const { code, err } = await setUpOn({ fake });
    expect(code).toBe(1);
    expect(err).toContain("this machine is Linux on aarch64");
    expect(err).toContain("x86-64 only");
  });

  test("a full disk", async () => {
    const { code, err } = await setUpOn({ fake: { df: "echo; echo '/ 9 9 4096 1% /'" } });
    expect(code).toBe(1);
    expect(err).toContain("only 4 MB free here");
  });

  test("no npm", async () => {
    const { code, err } = await setUpOn({});
    expect(code).toBe(1);
    expect(err).toContain("npm is missing");
    expect(err).toContain("apt-get install npm");
  });

  test("no python3", async () => {
    const { code, err } = await setUpOn({ fake: { bun } });
    expect(code).toBe(1);
    expect(err).toContain("python3 is missing");
  });

  test("a registry out of reach: its own words, and that make goes on from here", async () => {
    const fake = { npm: "echo 'npm ERR! network ENOTFOUND registry' >&2; exit 1" };
    const { code, out, err } = await setUpOn({ fake });
    expect(code).toBe(1);
    expect(out).toContain("by npm: 40 MB to fetch");
    expect(err).toContain("ENOTFOUND registry");
    expect(err).toContain("Calling make again");
  });

  test("pip missing and a wheel that is not the pinned one", async () => {
    // Not the first python3 in PATH: that may be a version manager's script, which needs more.
    const real = await run(["python3", "-c", "import sys; print(sys.executable)"]);
    const python3 = `[ "$1" = -m ] && exit 1; exec ${real.out.trim()} "$@"`;
    using index = planted();
    process.env["PIP_INDEX_URL"] = index.url;
    const { code, err } = await setUpOn({ fake: { bun, python3 } });
    delete process.env["PIP_INDEX_URL"];
    expect(code).toBe(1);
    expect(err).toContain("sha256 is");
    expect(err).toContain("refused");
  });
});

/** A package index whose only wheel is not what it claims to be. */
function planted(): Disposable & { readonly url: string } {
  const file = "ziglang-0.17.1-py3-none-manylinux_2_12_x86_64.whl";
  const server = Bun.serve({
    port: 0,
    hostname: "127.0.0.1",
    fetch: (request) =>
      new URL(request.url).pathname.endsWith(".whl")
        ? new Response("not a wheel")
        : Response.json({ files: [{ url: `../files/${file}#sha256=0` }] }),
  });
  return { url: `${server.url.origin}/simple`, [Symbol.dispose]: () => void server.stop(true) };
}
