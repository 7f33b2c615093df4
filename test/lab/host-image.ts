// What an emulated host boots: Debian's own kernel, unpacked so that the emulated CPU does not spend
// seconds on decompressing it (started through its PVH entry), and a small initramfs with the modules
// needed to reach the machine's root. Built once per kernel and script version, then only looked up.

import { existsSync } from "node:fs";
import { mkdir, readdir, rename, writeFile } from "node:fs/promises";
import { cacheDirectory } from "./paths.ts";
import { contentKey } from "./content-key.ts";
import { type CpioEntry, writeCpio } from "./cpio.ts";
import { unpackedPackage } from "./debian.ts";
import { labError, run, runText } from "./subprocess.ts";
import { findTool } from "./tools.ts";

export interface HostImage {
  kernel: string;
  initrd: string;
  /** Folder that a host mounts as /lib/modules. */
  modules: string;
}

// In the order of need: PCI transport, control port, root file system, network, KVM.
const bootModules = [
  "virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay", "virtio_net", "kvm-amd", "tun",
];

const applets = [
  "sh", "mount", "mkdir", "insmod", "cp", "switch_root", "cat",
];

export async function hostImage(): Promise<HostImage> {
  const folder = await unpackedPackage("linux-image-amd64", "linux-image-[0-9].*-amd64");
  const [version] = await readdir(`${folder}/lib/modules`);
  if (version === undefined) throw labError(`${folder} holds no kernel modules`);
  const init = await Bun.file(`${import.meta.dir}/host-init.sh`).bytes();
  const agent = await Bun.file(`${import.meta.dir}/host-agent.sh`).bytes();
  const self = await Bun.file(import.meta.path).bytes();
  const key = contentKey([init, agent, self, new TextEncoder().encode(version)]);
  const image: HostImage = {
    kernel: `${cacheDirectory}/host-${key}/vmlinux`,
    initrd: `${cacheDirectory}/host-${key}/initrd`,
    modules: `${folder}/lib/modules`,
  };
  if (existsSync(image.initrd)) return image;
  if (!existsSync(`${folder}/lib/modules/${version}/modules.dep`)) {
    const depmod = await findTool("depmod");
    await run([...depmod.command, "-b", folder, version], { env: depmod.env });
  }
  const scratch = `${cacheDirectory}/.host-${key}-${process.pid}`;
  await mkdir(scratch, { recursive: true });
  const busybox = await findTool("busybox");
  const kernel = await Bun.file(`${folder}/boot/vmlinuz-${version}`).bytes();
  await writeFile(`${scratch}/vmlinux`, await unpackKernel(kernel));
  const entries = await initrdEntries(folder, version, busybox.path, init, agent);
  await writeFile(`${scratch}/initrd`, writeCpio(entries));
  await rename(scratch, `${cacheDirectory}/host-${key}`).catch((cause: unknown) => {
    if (!existsSync(image.initrd)) throw cause;
  });
  return image;
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

async function initrdEntries(
  folder: string,
  version: string,
  busybox: string,
  init: Uint8Array,
  agent: Uint8Array,
): Promise<CpioEntry[]> {
  const directories = ["bin", "dev", "lower", "modules", "proc", "root", "sys", "upper"];
  const files = await moduleFiles(folder, version, bootModules);
  const modules = await Promise.all(
    files.map(async (file, index): Promise<CpioEntry> => {
      const name = `${String(index).padStart(3, "0")}-${file.split("/").at(-1)}`;
      return { kind: "file", path: `modules/${name}`, bytes: await Bun.file(file).bytes() };
    }),
  );
  return [
    ...directories.map((path): CpioEntry => ({ kind: "directory", path })),
    { kind: "character", path: "dev/console", major: 5, minor: 1 },
    { kind: "file", path: "bin/busybox", mode: 0o755, bytes: await Bun.file(busybox).bytes() },
    ...applets.map((name): CpioEntry => ({
      kind: "symlink", path: `bin/${name}`, target: "busybox",
    })),
    { kind: "file", path: "init", mode: 0o755, bytes: init },
    { kind: "file", path: "agent", mode: 0o755, bytes: agent },
    ...modules,
  ];
}

// Files of the modules and of all they depend on, each once, in loading order.
async function moduleFiles(
  folder: string,
  version: string,
  names: readonly string[],
): Promise<string[]> {
  const modprobe = await findTool("modprobe");
  const files = new Set<string>();
  for (const name of names) {
    const command = [...modprobe.command, "-d", folder, "-S", version, "--show-depends", name];
    const text = await runText(command, { env: modprobe.env });
    for (const match of text.matchAll(/^insmod (\S+)/gm)) if (match[1]) files.add(match[1]);
  }
  return [...files];
}
