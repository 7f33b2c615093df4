// Exit statuses of `ssihv`. Our own are even and below 128, because a guest's isa-debug-exit value
// v is passed on as (v << 1) | 1, which is always odd: a script can tell the two apart. Statuses
// are part of the interface: never renumber one.

import { type ErrorCode, SsihvError } from "../base/errors.ts";

export const EXIT = {
  /** The guest powered off, or the command did what it was asked. */
  ok: 0,
  /** Wrong flags, configuration or input files: nothing was started. */
  usage: 2,
  /** This host cannot run the VM. */
  hostUnfit: 4,
  /** The guest reset and --no-reboot was given. */
  guestReset: 6,
  /** The guest's CPU shut down (triple fault). */
  tripleFault: 8,
  /** An engine died or failed, or a node, a vCPU or a page was lost. */
  engineDead: 10,
  /** A defect in ssihv itself. */
  defect: 12,
  /** Every vCPU halted with interrupts off: the guest can never run again. */
  guestHalted: 14,
} as const;

/** What --help says about them. */
export const EXIT_HELP = `Exit status:
   0  the guest powered off (or Ctrl-A X was pressed)
   2  wrong flags, configuration or files; nothing was started
   4  this host cannot run the VM (ssihv check tells why)
   6  the guest reset and --no-reboot was given
   8  the guest's CPU stopped with a triple fault; its registers are shown
  10  an engine died or failed, or a node, a vCPU or a page was lost
  12  a defect in ssihv itself
  14  every vCPU of the guest halted with interrupts off
  odd the guest wrote v to isa-debug-exit (port 0xf4): (v << 1) | 1, modulo 256
 128+n ended by signal n`;

const STATUS_OF_CODE: Record<ErrorCode, number> = {
  abi_mismatched: EXIT.engineDead,
  acpi_invalid: EXIT.usage,
  address_invalid: EXIT.usage,
  admin_failed: EXIT.engineDead,
  agent_lost: EXIT.engineDead,
  certificate_expired: EXIT.usage,
  certificate_invalid: EXIT.usage,
  certificate_needed: EXIT.usage,
  config_invalid: EXIT.usage,
  console_failed: EXIT.engineDead,
  coordinator_unreachable: EXIT.engineDead,
  cpu_incompatible: EXIT.hostUnfit,
  defect_found: EXIT.defect,
  engine_dead: EXIT.engineDead,
  engine_failed: EXIT.engineDead,
  flag_invalid: EXIT.usage,
  gpa_invalid: EXIT.usage,
  guest_failed: EXIT.engineDead,
  host_silent: EXIT.engineDead,
  host_unfit: EXIT.hostUnfit,
  host_unknown: EXIT.usage,
  initrd_invalid: EXIT.usage,
  kernel_invalid: EXIT.usage,
  key_invalid: EXIT.usage,
  lab_failed: EXIT.engineDead,
  leader_elsewhere: EXIT.engineDead,
  library_unloadable: EXIT.hostUnfit,
  memory_insufficient: EXIT.usage,
  memory_plain: EXIT.usage,
  method_refused: EXIT.usage,
  name_taken: EXIT.usage,
  node_unreachable: EXIT.engineDead,
  page_lost: EXIT.engineDead,
  path_unknown: EXIT.usage,
  peer_refused: EXIT.engineDead,
  placement_refused: EXIT.usage,
  request_invalid: EXIT.usage,
  role_forbidden: EXIT.usage,
  service_failed: EXIT.engineDead,
  store_failed: EXIT.engineDead,
  token_invalid: EXIT.usage,
  token_unknown: EXIT.usage,
  topology_invalid: EXIT.usage,
  vcpu_lost: EXIT.engineDead,
  vm_busy: EXIT.usage,
  vm_silent: EXIT.engineDead,
  vm_unknown: EXIT.usage,
};

export function exitStatusOf(error: unknown): number {
  return error instanceof SsihvError ? STATUS_OF_CODE[error.code] : EXIT.defect;
}

/** As QEMU's isa-debug-exit device: (v << 1) | 1, of which the kernel keeps 8 bits. */
export function debugExitStatus(value: number): number {
  return ((value << 1) | 1) & 0xff;
}
