// Finds the programs the lab runs: on this machine, else installed by apt (root), else unpacked
// from their .debs into the cache and run from there. SSIHV_LAB_TOOLS=unpacked forces the last way,
// as if this machine had nothing installed.

import { existsSync } from "node:fs";
import { unpackedClosure } from "./debian.ts";
import { labError, run } from "./subprocess.ts";

const packageOf = {
  "qemu-system-x86_64": "qemu-system-x86",
  busybox: "busybox-static",
  depmod: "kmod",
  xz: "xz-utils",
} as const;

export type ToolName = keyof typeof packageOf;

export interface Tool {
  /** The program's own file. */
  path: string;
  /** How to start it: the file and the options it needs where it is. */
  command: string[];
  env: Record<string, string | undefined>;
}

const systemFolders = [
  "/usr/local/sbin",
  "/usr/local/bin",
  "/usr/sbin",
  "/usr/bin",
  "/sbin",
  "/bin",
];

/** Why this machine can have no lab, for tests that skip aloud; undefined when it can. */
export function labMissing(): string | undefined {
  if (process.platform !== "linux" || process.arch !== "x64") return "the lab needs x86-64 Linux";
  if (systemPath("apt-get") === undefined)
    return "the lab takes its kernel from Debian: no apt-get";
  const helpers = ["setpriv", "flock", "dpkg-deb"];
  const missing = helpers.find((name) => systemPath(name) === undefined);
  return missing === undefined ? undefined : `the lab needs ${missing}`;
}

let unpackedRoot: Promise<string | undefined> | undefined;

/** The tool, after making sure that all of them are there (one apt run for all). */
export async function findTool(name: ToolName): Promise<Tool> {
  unpackedRoot ??= ensureTools();
  const root = await unpackedRoot;
  const own = root === undefined ? undefined : unpackedTool(root, name);
  if (own !== undefined) return own;
  const path = systemPath(name);
  if (path === undefined) throw labError(`no ${name} in Debian package ${packageOf[name]}`);
  return { path, command: [path], env: process.env };
}

// Undefined when the machine itself has everything, else the folder of the unpacked packages.
async function ensureTools(): Promise<string | undefined> {
  const bareMachine = process.env["SSIHV_LAB_TOOLS"] === "unpacked";
  const names = Object.keys(packageOf) as ToolName[];
  const missing = bareMachine ? names : names.filter((name) => systemPath(name) === undefined);
  if (missing.length === 0) return undefined;
  const packages = [...new Set(missing.map((name) => packageOf[name]))];
  if (!bareMachine && process.getuid?.() === 0 && (await install(packages))) return undefined;
  const name = bareMachine ? "tools-bare" : `tools-${packages.join("-")}`;
  return unpackedClosure(name, packages, { bareMachine });
}

async function install(packages: readonly string[]): Promise<boolean> {
  console.error(`lab: installing Debian packages ${packages.join(", ")}`);
  const apt = ["apt-get", "-qq", "-y", "--no-install-recommends", "install", ...packages];
  const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
  try {
    await run(apt, { env }).catch(async () => {
      await run(["apt-get", "-qq", "update"], { env });
      await run(apt, { env });
    });
    return true;
  } catch (error) {
    // A machine where root may not install (read-only root, held dpkg lock) still gets its lab.
    console.error(`lab: ${error instanceof Error ? error.message : error}; unpacking them instead`);
    return false;
  }
}

function unpackedTool(root: string, name: ToolName): Tool | undefined {
  const path = systemFolders.map((folder) => `${root}${folder}/${name}`).find(existsSync);
  if (path === undefined) return undefined;
  const multiarch = "lib/x86_64-linux-gnu";
  const libraries = [`${root}/usr/${multiarch}`, `${root}/${multiarch}`].join(":");
  const env = {
    ...process.env,
    LD_LIBRARY_PATH: libraries,
    QEMU_MODULE_DIR: `${root}/usr/${multiarch}/qemu`,
  };
  // QEMU's firmware path is compiled in: name where the option ROMs and SeaBIOS are here.
  const roms = ["qemu", "seabios"].flatMap((folder) => ["-L", `${root}/usr/share/${folder}`]);
  return { path, command: name.startsWith("qemu") ? [path, ...roms] : [path], env };
}

function systemPath(name: string): string | undefined {
  const folders = [...(process.env["PATH"] ?? "").split(":"), ...systemFolders];
  return folders.map((folder) => `${folder}/${name}`).find(existsSync);
}
