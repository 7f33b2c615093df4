// What boots inside the VMM under test: Debian's generic and cloud kernels as they are, and an
// initramfs of busybox and one init script. Everything lives in the lab's cache under a name made
// from its content, so a path never changes its meaning.

import { existsSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { contentKey, writeWhole } from "./content.ts";
import { type CpioEntry, writeCpio } from "./cpio.ts";
import { unpackedPackage } from "./debian.ts";
import { cacheDirectory } from "./paths.ts";
import { labError } from "./subprocess.ts";
import { findTool } from "./tools.ts";

export type GuestKernel = "generic" | "cloud";

const kernels: Record<GuestKernel, { name: string; pattern: string }> = {
  generic: { name: "linux-image-amd64", pattern: "linux-image-[0-9].*-amd64" },
  cloud: { name: "linux-image-cloud-amd64", pattern: "linux-image-[0-9].*-cloud-amd64" },
};

/** Path of an unmodified Debian bzImage. */
export async function guestKernel(kind: GuestKernel): Promise<string> {
  const { name, pattern } = kernels[kind];
  const folder = await unpackedPackage(name, pattern);
  const file = (await readdir(`${folder}/boot`)).find((entry) => entry.startsWith("vmlinuz-"));
  if (file === undefined) throw labError(`${folder}/boot holds no kernel`);
  return `${folder}/boot/${file}`;
}

/** A program or script added to the guest: `bytes` at `path`, executable. */
export interface GuestFile {
  path: string;
  bytes: Uint8Array;
}

/** Modules of that kernel, at lib/NAME.ko; the script has to insmod them in the order of need. */
export async function guestModules(
  kind: GuestKernel,
  names: readonly string[],
): Promise<GuestFile[]> {
  const { name, pattern } = kernels[kind];
  const tree = `${await unpackedPackage(name, pattern)}/lib/modules`;
  const paths = await readdir(tree, { recursive: true });
  return Promise.all(
    names.map(async (module): Promise<GuestFile> => {
      const found = paths.find((path) => path.endsWith(`/${module}.ko`));
      if (found === undefined) throw labError(`${tree} holds no ${module}.ko`);
      return { path: `lib/${module}.ko`, bytes: await Bun.file(`${tree}/${found}`).bytes() };
    }),
  );
}

/** Debian's numactl, with the libraries that it needs. */
export async function guestNumactl(): Promise<GuestFile[]> {
  const libraries = "lib/x86_64-linux-gnu";
  const files = [
    ["numactl", "usr/bin/numactl", "bin/numactl"],
    ["libnuma1", `usr/${libraries}/libnuma.so.1.0.0`, `${libraries}/libnuma.so.1`],
    ["libc6", `${libraries}/libc.so.6`, `${libraries}/libc.so.6`],
    ["libc6", `${libraries}/ld-linux-x86-64.so.2`, "lib64/ld-linux-x86-64.so.2"],
  ] as const;
  const found: GuestFile[] = [];
  for (const [name, from, path] of files) {
    found.push({ path, bytes: await Bun.file(`${await unpackedPackage(name)}/${from}`).bytes() });
  }
  return found;
}

/** Path of the guest's initramfs; `files` go in beside busybox (`bin/` is on its PATH). */
export async function guestInitrd(files: readonly GuestFile[] = []): Promise<string> {
  const busybox = await Bun.file((await findTool("busybox")).path).bytes();
  const init = await Bun.file(`${import.meta.dir}/guest-init.sh`).bytes();
  const standard = ["bin", "dev", "proc", "sys"];
  const folders = [...new Set([...standard, ...files.flatMap((file) => parents(file.path))])];
  const bytes = writeCpio([
    ...folders.map((path): CpioEntry => ({ kind: "directory", path })),
    // The kernel opens it before devtmpfs is there; without it init would have no output.
    { kind: "character", path: "dev/console", major: 5, minor: 1 },
    { kind: "file", path: "bin/busybox", mode: 0o755, bytes: busybox },
    { kind: "symlink", path: "bin/sh", target: "busybox" },
    { kind: "file", path: "init", mode: 0o755, bytes: init },
    ...files.map((file): CpioEntry => ({ kind: "file", mode: 0o755, ...file })),
  ]);
  const path = `${cacheDirectory}/guest-${contentKey([bytes])}.cpio`;
  if (!existsSync(path)) await writeWhole(path, bytes);
  return path;
}

// The kernel makes no parent folders: `a/b/c` needs `a` and `a/b` first.
function parents(path: string): string[] {
  const parts = path.split("/").slice(0, -1);
  return parts.map((_, index) => parts.slice(0, index + 1).join("/"));
}

/** Kernel command line words that make the guest run `script` and power off. */
export function guestRun(script: string): string {
  const word = `ssihv.run=${Buffer.from(script).toString("base64")}`;
  // COMMAND_LINE_SIZE is 2048 on x86; the rest of the line needs some of it.
  if (word.length > 1600) throw labError("the guest script is too long for a kernel command line");
  return word;
}

if (import.meta.main) {
  const [generic, cloud, initrd] = await Promise.all([
    guestKernel("generic"),
    guestKernel("cloud"),
    guestInitrd(),
  ]);
  console.log(JSON.stringify({ generic, cloud, initrd }, null, 2));
}
