// Completion as shells do it, each with what the built binary gave it: bash of this machine, zsh
// and fish of Debian, unpacked.

import { afterAll, beforeAll, expect, test } from "bun:test";
import { symlinkSync } from "node:fs";
import { unpackedClosure } from "../lab/debian.ts";
import { binary, run, temporaryFolder } from "./support.ts";

const folder = temporaryFolder();
afterAll(() => folder[Symbol.dispose]());
// The shells call it by its name.
const env = { PATH: `${folder.path}:${process.env["PATH"]}`, HOME: folder.path };
beforeAll(() => symlinkSync(binary, `${folder.path}/ssihv`));

test("bash", async () => {
  const script = `source <(ssihv completion bash)
    try() {
      COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
      _ssihv; echo "\${COMPREPLY[@]}"
    }
    complete -p ssihv; try ssihv vm sh; try ssihv run --page-tables r; try ssihv run --kernel /`;
  const { code, out, err } = await run(["bash", "--norc", "-c", script], { env });
  expect([code, err]).toEqual([0, ""]);
  expect(out).toBe("complete -F _ssihv ssihv\nshow\nreplicated\n\n");
});

/** A shell of a Debian package, with the libraries it came with. */
async function shell(name: string, path: string) {
  const root = await unpackedClosure(name, [name], { bareMachine: false });
  const libraries = ["lib", "usr/lib"].map((each) => `${root}/${each}/x86_64-linux-gnu`);
  return { root, path: `${root}/${path}`, env: { LD_LIBRARY_PATH: libraries.join(":") } };
}

test("zsh", async () => {
  const zsh = await shell("zsh", "bin/zsh");
  // Where it would be installed; and what the completion system would be told.
  const script = `module_path=(${zsh.root}/usr/lib/x86_64-linux-gnu/zsh/*)
    compdef() { print "compdef $*"; }
    _describe() { print -l -- "\${(@P)2}"; }
    _files() { print files; }
    source <(ssihv completion zsh)
    try() { words=("$@"); CURRENT=$#; _ssihv; }
    try ssihv completion z; try ssihv vm sh; try ssihv run --kernel /`;
  const { code, out, err } = await run([zsh.path, "-f", "-c", script], {
    env: { ...env, ...zsh.env },
  });
  expect([code, err]).toEqual([0, ""]);
  const show = "show:state and numbers of a VM and its nodes, as of now";
  expect(out).toBe(`compdef _ssihv ssihv\nzsh:the shell\n${show}\nfiles\n`);
});

test("fish", async () => {
  const fish = await shell("fish", "usr/bin/fish");
  const script = `ssihv completion fish | source
    complete -C 'ssihv vm sh'
    complete -C 'ssihv run --page-tables s'`;
  const { code, out, err } = await run([fish.path, "--no-config", "-c", script], {
    env: { ...env, ...fish.env },
  });
  expect([code, err]).toEqual([0, ""]);
  const show = "show\tstate and numbers of a VM and its nodes, as of now";
  expect(out).toBe(`${show}\nstrict\thow nodes share the guest's page tables [auto]\n`);
});
