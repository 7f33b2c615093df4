// What an emulated host boots: Debian's own kernel, unpacked so that the emulated CPU does not
// spend seconds on decompressing it (started through its PVH entry), and a small initramfs with the
// modules needed to reach the machine's root. Built once per kernel and script version, then only
// looked up.

import { existsSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { contentKey, writeWhole } from "./content.ts";
import { type CpioEntry, writeCpio } from "./cpio.ts";
import { unpackedPackage } from "./debian.ts";
import { cacheDirectory } from "./paths.ts";
import { labError, run } from "./subprocess.ts";
import { findTool } from "./tools.ts";

export interface HostImage {
  kernel: string;
  initrd: string;
  /** Folder that a host mounts as /lib/modules. */
  modules: string;
}

// In the order of need: PCI transport, control port, root file system, network, KVM.
const bootModules = [
  "virtio_pci",
  "virtio_console",
  "9pnet_virtio",
  "9p",
  "overlay",
  "virtio_net",
  "kvm-amd",
  "tun",
];

const applets = ["sh", "mount", "mkdir", "insmod", "cp", "switch_root", "cat"];

export async function hostImage(): Promise<HostImage> {
  const folder = await unpackedPackage("linux-image-amd64", "linux-image-[0-9].*-amd64");
  const [version] = await readdir(`${folder}/lib/modules`);
  if (version === undefined) throw labError(`${folder} holds no kernel modules`);
  const tree = `${folder}/lib/modules/${version}`;
  if (!existsSync(`${tree}/modules.dep.bin`)) {
    const depmod = await findTool("depmod");
    await run([...depmod.command, "-b", folder, version], { env: depmod.env });
  }
  const bzImage = await Bun.file(`${folder}/boot/vmlinuz-${version}`).bytes();
  const kernel = `${cacheDirectory}/host-${contentKey([bzImage])}.vmlinux`;
  if (!existsSync(kernel)) await writeWhole(kernel, await unpackKernel(bzImage));
  const archive = writeCpio(await initrdEntries(tree));
  const initrd = `${cacheDirectory}/host-${contentKey([archive])}.initrd`;
  if (!existsSync(initrd)) await writeWhole(initrd, archive);
  return { kernel, initrd, modules: `${folder}/lib/modules` };
}

/** The ELF image inside a bzImage whose payload is compressed with xz (Debian's generic kernel). */
export async function unpackKernel(image: Uint8Array): Promise<Uint8Array> {
  const view = new DataView(image.buffer, image.byteOffset, image.byteLength);
  // Boot protocol, Documentation/x86/boot.rst: setup_sects 0x1f1, payload_offset 0x248 counted from
  // the protected-mode code, payload_length 0x24c.
  const setup = (view.getUint8(0x1f1) + 1) * 512;
  const start = setup + view.getUint32(0x248, true);
  const payload = image.subarray(start, start + view.getUint32(0x24c, true));
  const magic = [0xfd, 0x37, 0x7a, 0x58, 0x5a]; // xz file format 2.1.1.1
  if (!magic.every((byte, index) => payload[index] === byte)) {
    throw labError("the host kernel's payload is not xz; unpackKernel needs to learn its format");
  }
  // The build appends the unpacked size in four bytes, which xz would reject as garbage.
  const xz = await findTool("xz"); // busybox lacks the x86 filter used here
  return run([...xz.command, "-dc"], {
    env: xz.env,
    stdin: payload.subarray(0, payload.length - 4),
  });
}

async function initrdEntries(tree: string): Promise<CpioEntry[]> {
  const script = (name: string) => Bun.file(`${import.meta.dir}/${name}`).bytes();
  const busybox = await findTool("busybox");
  const directories = ["bin", "dev", "lower", "modules", "proc", "root", "sys", "upper"];
  const files = await moduleFiles(tree, bootModules);
  const modules = await Promise.all(
    files.map(async (file, index): Promise<CpioEntry> => {
      const name = `${String(index).padStart(3, "0")}-${file.split("/").at(-1)}`;
      return { kind: "file", path: `modules/${name}`, bytes: await Bun.file(file).bytes() };
    }),
  );
  return [
    ...directories.map((path): CpioEntry => ({ kind: "directory", path })),
    { kind: "character", path: "dev/console", major: 5, minor: 1 },
    { kind: "file", path: "bin/busybox", mode: 0o755, bytes: await Bun.file(busybox.path).bytes() },
    ...applets.map(
      (name): CpioEntry => ({
        kind: "symlink",
        path: `bin/${name}`,
        target: "busybox",
      }),
    ),
    { kind: "file", path: "init", mode: 0o755, bytes: await script("host-init.sh") },
    { kind: "file", path: "agent", bytes: await script("host-agent.sh") },
    ...modules,
  ];
}

// Files of the modules and of all they depend on, each once, in loading order. modules.dep has a
// line `file: dependency...` per module, with the dependencies nearest first.
async function moduleFiles(tree: string, names: readonly string[]): Promise<string[]> {
  const text = await Bun.file(`${tree}/modules.dep`).text();
  const lines = new Map<string, string[]>();
  for (const line of text.split("\n")) {
    const [file, ...needed] = line.split(/:? /);
    const name = file?.replace(/:$/, "").split("/").at(-1)?.replace(/\.ko$/, "");
    if (file && name) lines.set(name.replaceAll("-", "_"), [file.replace(/:$/, ""), ...needed]);
  }
  const files = new Set<string>();
  for (const name of names) {
    const line = lines.get(name.replaceAll("-", "_"));
    if (line === undefined) throw labError(`the host kernel has no module ${name}`);
    for (const file of line.filter((part) => part !== "").reverse()) files.add(`${tree}/${file}`);
  }
  return [...files];
}
