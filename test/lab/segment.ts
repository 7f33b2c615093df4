// The private network of a lab: one Ethernet segment that never leaves the QEMU processes. Two
// hosts send each other datagrams through a pair of Unix sockets; three and more meet in a hub,
// which is a QEMU without a machine. Socket names are relative to the run directory (a socket path
// is limited to 107 bytes), so every process of a lab runs there. No ports, so labs never collide.

/** Largest frame payload: fits the 4 KiB page with headers, and is what Soft-RoCE wants. */
export const segmentMtu = 9000;

/** Address of host `index` (1-based) on the segment. */
export function hostAddress(index: number): string {
  return `10.9.0.${index}`;
}

export function networkArguments(index: number, hosts: number): string[] {
  const mac = `52:54:00:09:00:${index.toString(16).padStart(2, "0")}`;
  const device = `virtio-net-pci,netdev=segment,mac=${mac},host_mtu=${segmentMtu},romfile=`;
  return ["-netdev", netdev(index, hosts), "-device", device];
}

function netdev(index: number, hosts: number): string {
  // Alone on its segment a host still has a card, so that tests of addresses and Soft-RoCE work.
  if (hosts === 1) return "hubport,id=segment,hubid=0";
  return datagram("segment", `host-${index}`, hosts === 2 ? `host-${3 - index}` : `hub-${index}`);
}

function datagram(id: string, local: string, remote: string): string {
  return (
    `dgram,id=${id},local.type=unix,local.path=${local},` + `remote.type=unix,remote.path=${remote}`
  );
}

/** Arguments of the QEMU that only forwards frames, or undefined where none is needed. */
export function hubArguments(hosts: number): string[] | undefined {
  if (hosts < 3) return undefined;
  const ports = Array.from({ length: hosts }, (_, position) => position + 1).flatMap((index) => [
    "-netdev",
    datagram(`line${index}`, `hub-${index}`, `host-${index}`),
    "-netdev",
    `hubport,id=port${index},hubid=0,netdev=line${index}`,
  ]);
  return ["-machine", "none", "-nodefaults", "-display", "none", ...ports];
}
