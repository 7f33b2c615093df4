// Default kernel command lines, as data: one line per situation, each option with its reason.
// What the user gives with --cmdline comes after, so that it wins (Linux takes the last).
//
// Tried one by one on a boot over two nodes (test/lab/span-bench.ts; remote faults, two boots
// without any option: 33,642 and 44,017) and left out, since none of them helps:
//   nohz=off 44,353; skew_tick=1 44,262; percpu_alloc=page 43,517, =embed 43,619;
//   numa_balancing=disable 41,587; transparent_hugepage=never 44,509; idle=halt 50,458;
//   idle=poll 44,954; clocksource=tsc 47,672. Watchdogs on: 52,190.

interface Option {
  text: string;
  why: string;
}

const CONSOLE: readonly Option[] = [
  { text: "console=ttyS0", why: "the only console this machine has" },
];

const SPAN: readonly Option[] = [
  {
    text: "nowatchdog",
    why: "a vCPU may wait for pages longer than a real CPU ever stands still",
  },
];

export const GUEST_OPTIONS = { always: CONSOLE, span: SPAN } as const;

/** The line for a VM on `nodes` nodes, the user's own options last. */
export function guestCmdline(nodes: number, user = ""): string {
  const options = nodes > 1 ? [...CONSOLE, ...SPAN] : CONSOLE;
  return [...options.map((option) => option.text), user.trim()].filter((text) => text).join(" ");
}
