// Debian packages without installing them: downloaded by apt, unpacked by dpkg-deb into the lab's
// cache, found there by later runs without network. Kernels always come this way (the machine's own
// kernel stays as it is), tools only where they can't be installed.
// Invariant: a folder `<cache>/debian/<name>` is complete, because it appears by rename.

import { existsSync } from "node:fs";
import { lstat, mkdir, mkdtemp, readdir, readlink, rename, rm, symlink } from "node:fs/promises";
import { cacheDirectory } from "./paths.ts";
import { labError, run, runText } from "./subprocess.ts";

const unpacked = `${cacheDirectory}/debian`;
const mirrorHint =
  "the first lab run needs a Debian mirror: check the network and /etc/apt/sources.list";

/** Folder with one package's unpacked files; `pattern` picks what a meta-package stands for. */
export async function unpackedPackage(name: string, pattern?: string): Promise<string> {
  return once(name, async (scratch) => {
    const concrete = await resolveName(name, pattern);
    console.error(`lab: fetching Debian package ${concrete} (${await downloadSize(concrete)})`);
    await run(["apt-get", ...aptOptions(), "download", concrete], {
      cwd: scratch,
      hint: mirrorHint,
    });
    return scratch;
  });
}

export interface ClosureOptions {
  /** Pretend that nothing but the C library is installed on this machine. */
  bareMachine: boolean;
}

/** Folder with the packages and all they depend on that this machine does not have. */
export async function unpackedClosure(
  name: string,
  packages: readonly string[],
  options: ClosureOptions,
): Promise<string> {
  return once(name, async (scratch) => {
    console.error(`lab: fetching Debian packages to run from the cache: ${packages.join(", ")}`);
    if ((await dependencies(packages[0] ?? "")) === "") await refreshLists();
    const archives = `${scratch}/archives`;
    await mkdir(`${archives}/partial`, { recursive: true });
    const emptyStatus = `${scratch}/status`;
    await Bun.write(emptyStatus, "");
    const status = options.bareMachine ? ["-o", `Dir::State::status=${emptyStatus}`] : [];
    await run(
      [
        "apt-get",
        ...aptOptions(),
        ...status,
        // Nothing is installed, so apt's locks (root's) are not needed.
        "-o",
        "Debug::NoLocking=1",
        "-o",
        `Dir::Cache::archives=${archives}`,
        "-qq",
        "-y",
        "--no-install-recommends",
        "--download-only",
        "install",
        ...packages,
      ],
      { hint: mirrorHint },
    );
    // The C library belongs to the machine's own program loader: never bring another.
    for (const file of await readdir(archives)) {
      if (file.startsWith("libc6_")) await rm(`${archives}/${file}`);
    }
    return archives;
  });
}

// Unpacks the .debs that `fetch` leaves in the folder it names, unless an earlier call already did.
async function once(name: string, fetch: (scratch: string) => Promise<string>): Promise<string> {
  const folder = `${unpacked}/${name}`;
  if (existsSync(folder)) return folder;
  await mkdir(unpacked, { recursive: true });
  const scratch = await mkdtemp(`${unpacked}/.fetch-`);
  try {
    const archives = await fetch(scratch);
    const files = (await readdir(archives)).filter((file) => file.endsWith(".deb"));
    if (files.length === 0) throw labError(`apt-get downloaded nothing for ${name}`, mirrorHint);
    await mkdir(`${scratch}/root`);
    for (const file of files) {
      await run(["dpkg-deb", "--extract", `${archives}/${file}`, `${scratch}/root`]);
    }
    await redirectLinks(`${scratch}/root`, `${scratch}/root`, folder);
    await rename(`${scratch}/root`, folder).catch((cause: unknown) => {
      // Another lab of this checkout may have been faster; its copy is as good as ours.
      if (!existsSync(folder)) throw cause;
    });
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
  return folder;
}

// Absolute links (sbin/depmod -> /bin/kmod) would leave the unpacked tree for the machine's files.
async function redirectLinks(folder: string, root: string, final: string): Promise<void> {
  for (const name of await readdir(folder)) {
    const path = `${folder}/${name}`;
    const status = await lstat(path);
    if (status.isDirectory()) await redirectLinks(path, root, final);
    if (!status.isSymbolicLink()) continue;
    const target = await readlink(path);
    if (!target.startsWith("/") || !existsSync(`${root}${target}`)) continue;
    await rm(path);
    await symlink(`${final}${target}`, path);
  }
}

// A meta-package (linux-image-amd64) names the real one in its first dependency that matches.
async function resolveName(name: string, pattern: string | undefined): Promise<string> {
  let text = await dependencies(name);
  if (text === "") {
    await refreshLists();
    text = await dependencies(name);
  }
  if (text === "") throw labError(`apt knows no package ${name}`, mirrorHint);
  if (pattern === undefined) return name;
  const found = text.match(new RegExp(`Depends: (${pattern})$`, "m"))?.[1];
  if (found === undefined) throw labError(`package ${name} depends on nothing like ${pattern}`);
  return found;
}

// Empty when apt does not know the package, which is what a machine without lists looks like.
async function dependencies(name: string): Promise<string> {
  return runText(["apt-cache", ...aptOptions(), "depends", name]).catch(() => "");
}

async function downloadSize(name: string): Promise<string> {
  const text = await runText(["apt-cache", ...aptOptions(), "--no-all-versions", "show", name]);
  const bytes = Number(/^Size: ([0-9]+)$/m.exec(text)?.[1] ?? 0);
  return `${Math.ceil(bytes / 1e6)} MB`;
}

async function refreshLists(): Promise<void> {
  console.error("lab: fetching apt's package lists");
  if (process.getuid?.() !== 0) {
    await mkdir(`${cacheDirectory}/apt/lists/partial`, { recursive: true });
  }
  await run(["apt-get", ...aptOptions(), "-qq", "update"], { hint: mirrorHint });
}

// Once fetched without root, apt's lists are in our cache; else the machine's own are used.
function aptOptions(): string[] {
  const lists = `${cacheDirectory}/apt/lists`;
  if (process.getuid?.() === 0 || !existsSync(lists)) return [];
  return ["-o", `Dir::State::lists=${lists}`, "-o", `Dir::Cache=${cacheDirectory}/apt`];
}
