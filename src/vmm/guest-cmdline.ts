// Default kernel command lines, as data: one line per situation, each option with its reason.
// What the user gives with --cmdline comes after, so that it wins (Linux takes the last).

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
