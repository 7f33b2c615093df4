// Debian packages without installing them: downloaded by apt, unpacked by dpkg-deb into the lab's
// cache, found there by later runs without network. Kernels always come this way (the machine's own
// kernel stays as it is), tools only where they can't be installed.
// Invariant: a folder `<cache>/debian/<name>` is complete, because it appears by rename.

import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readdir, rename, rm } from "node:fs/promises";
import { cacheDirectory } from "./paths.ts";
import { labError, run, runText } from "./subprocess.ts";

const packages = `${cacheDirectory}/debian`;

/** Folder with the unpacked files of one Debian package; downloads it on first use. */
export async function unpackedPackage(name: string, pattern: string = name): Promise<string> {
  const folder = `${packages}/${name}`;
  if (existsSync(folder)) return folder;
  const concrete = await resolveName(name, pattern);
  await mkdir(packages, { recursive: true });
  const scratch = await mkdtemp(`${packages}/.fetch-`);
  try {
    console.error(`lab: fetching Debian package ${concrete}`);
    await run(["apt-get", ...aptOptions(), "download", concrete], {
      cwd: scratch,
      hint: "the first lab run needs a Debian mirror; check apt's sources and the network",
    });
    const archive = (await readdir(scratch)).find((file) => file.endsWith(".deb"));
    if (archive === undefined) throw labError(`apt-get download ${concrete} left no .deb`);
    await run(["dpkg-deb", "--extract", `${scratch}/${archive}`, `${scratch}/root`]);
    await rename(`${scratch}/root`, folder).catch((cause: unknown) => {
      // Another lab of this checkout may have been faster; its copy is as good as ours.
      if (!existsSync(folder)) throw cause;
    });
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
  return folder;
}

// A meta-package (linux-image-amd64) names the real one in its first dependency that matches.
async function resolveName(name: string, pattern: string): Promise<string> {
  let text = await dependencies(name);
  if (text === "") {
    await refreshLists();
    text = await dependencies(name);
  }
  if (text === "") throw labError(`apt knows no package ${name}`, "run: apt-get update");
  if (pattern === name) return name;
  const found = text.match(new RegExp(`Depends: (${pattern})$`, "m"))?.[1];
  if (found === undefined) throw labError(`package ${name} depends on nothing like ${pattern}`);
  return found;
}

async function dependencies(name: string): Promise<string> {
  return runText(["apt-cache", ...aptOptions(), "depends", name]).catch(() => "");
}

async function refreshLists(): Promise<void> {
  console.error("lab: apt has no package lists yet, fetching them");
  if (process.getuid?.() !== 0) await mkdir(`${cacheDirectory}/apt/lists/partial`, { recursive: true });
  await run(["apt-get", ...aptOptions(), "-qq", "update"], {
    hint: "the first lab run needs a Debian mirror; check apt's sources and the network",
  });
}

// Without root, apt keeps its lists in our cache; with root the machine's own are used.
function aptOptions(): string[] {
  if (process.getuid?.() === 0 || !existsSync(`${cacheDirectory}/apt/lists`)) return [];
  return ["-o", `Dir::State::lists=${cacheDirectory}/apt/lists`, "-o", `Dir::Cache=${cacheDirectory}/apt`];
}
