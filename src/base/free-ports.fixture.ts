// Ports for tests. They lie below those that the kernel gives to connections (32768 on, proc(5),
// ip_local_port_range), so that no stranger gets one a moment after it was found free; processes of
// tests begin at places of their own, and none gives a port twice before it has been through all.

const FIRST = 10_000;
const END = 30_000;
let next = FIRST + ((process.pid * 61) % (END - FIRST));

function isFree(port: number): boolean {
  try {
    Bun.listen({ hostname: "127.0.0.1", port, socket: { data: () => undefined } }).stop(true);
    return true;
  } catch {
    return false;
  }
}

/** The first of `count` ports in a row that nobody listens on. */
export function freePorts(count = 1): number {
  for (;;) {
    if (next + count > END) next = FIRST;
    const first = next;
    next += count;
    if (Array.from({ length: count }, (_, i) => first + i).every(isFree)) return first;
  }
}
