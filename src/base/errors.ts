// The one error type of SSI-HV. A code is `noun_state`, stable, part of the API; the message says
// what happened and to what, `hint` says what to do. Places that print or map errors:
// src/cli/report.ts.

import { constants } from "node:os";

export const ERROR_CODES = [
  "abi_mismatched",
  "acpi_invalid",
  "address_invalid",
  "admin_failed",
  "agent_lost",
  "certificate_expired",
  "certificate_invalid",
  "certificate_needed",
  "config_invalid",
  "console_failed",
  "coordinator_unreachable",
  "cpu_incompatible",
  "defect_found",
  "engine_dead",
  "engine_failed",
  "flag_invalid",
  "gpa_invalid",
  "guest_failed",
  "host_silent",
  "host_unfit",
  "host_unknown",
  "initrd_invalid",
  "kernel_invalid",
  "key_invalid",
  "lab_failed",
  "leader_elsewhere",
  "library_unloadable",
  "memory_insufficient",
  "memory_plain",
  "method_refused",
  "name_taken",
  "node_unreachable",
  "page_lost",
  "path_unknown",
  "peer_refused",
  "placement_refused",
  "request_invalid",
  "role_forbidden",
  "service_failed",
  "store_failed",
  "token_invalid",
  "token_unknown",
  "topology_invalid",
  "vcpu_lost",
  "vm_busy",
  "vm_silent",
  "vm_unknown",
] as const;

export type ErrorCode = (typeof ERROR_CODES)[number];

export function isErrorCode(code: string): code is ErrorCode {
  return (ERROR_CODES as readonly string[]).includes(code);
}

/** As EACCES of 13; a number that this system does not know stays one. */
export function errnoName(errno: number): string {
  const [name] = Object.entries(constants.errno).find(([, value]) => value === errno) ?? [];
  return name ?? `errno ${errno}`;
}

/** Of whatever was thrown. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

export class SsihvError extends Error {
  readonly code: ErrorCode;
  readonly hint: string | undefined;

  constructor(code: ErrorCode, message: string, options: { hint?: string; cause?: unknown } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = "SsihvError";
    this.code = code;
    this.hint = options.hint;
  }
}
