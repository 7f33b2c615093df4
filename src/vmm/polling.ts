// How long the thread that serves faults polls before it sleeps.

/** A fault between two nodes takes about half as long when both poll (zig/bench_fault.zig). */
const POLL_US = 200;

/** Polling pays only where it takes no CPU from a vCPU: `engines` threads beside `vcpus`. */
export function pollUsMaxFor(cpus: number, vcpus: number, engines: number): number {
  return cpus >= vcpus + engines ? POLL_US : 0;
}
