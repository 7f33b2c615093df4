// Finds the programs the lab runs (QEMU, busybox, kmod, iproute2): on this machine, else installed by apt where
// that is possible, else unpacked from their .debs into the cache and run from there.
// SSIHV_LAB_TOOLS=unpacked forces the last way, for its test.

import { existsSync } from "node:fs";
import { run, labError } from "./subprocess.ts";

export interface Tool {
  /** The program's own file. */
  path: string;
  /** How to start it: the file and options it needs where it is. */
  command: string[];
  env: Record<string, string | undefined>;
}

const systemFolders = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

const packageOf: Record<string, string> = {
  "qemu-system-x86_64": "qemu-system-x86",
  busybox: "busybox-static",
  depmod: "kmod",
  modprobe: "kmod",
  xz: "xz-utils",
};

export async function findTool(name: string): Promise<Tool> {
  const found = systemPath(name);
  if (found !== undefined) return { path: found, command: [found], env: process.env };
  const debian = packageOf[name];
  if (debian === undefined) throw labError(`the lab needs ${name}, which is not on this machine`);
  console.error(`lab: installing Debian package ${debian}`);
  await run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", debian], {
    env: { ...process.env, DEBIAN_FRONTEND: "noninteractive" },
    hint: `install ${debian} by hand`,
  });
  const installed = systemPath(name);
  if (installed === undefined) throw labError(`${debian} is installed but has no ${name}`);
  return { path: installed, command: [installed], env: process.env };
}

function systemPath(name: string): string | undefined {
  const folders = [...(process.env["PATH"] ?? "").split(":"), ...systemFolders];
  return folders.map((folder) => `${folder}/${name}`).find((path) => existsSync(path));
}
