// The one place that turns an error into an HTTP status and a body.

import type { ErrorCode } from "../src/base/errors.ts";
import { SsihvError } from "../src/base/errors.ts";
import { faultOf } from "../src/control/messages.ts";
import type { ApiError } from "./api-schemas.ts";

const STATUS: Partial<Record<ErrorCode, number>> = {
  request_invalid: 400,
  path_unknown: 404,
  method_refused: 405,
  role_forbidden: 403,
  vm_unknown: 404,
  host_unknown: 404,
  token_unknown: 404,
  token_invalid: 403,
  flag_invalid: 422,
  gpa_invalid: 422,
  memory_insufficient: 422,
  topology_invalid: 422,
  memory_plain: 409,
  name_taken: 409,
  vm_busy: 409,
  placement_refused: 409,
  // An agent, another machine, did not do its part.
  host_silent: 503,
  vm_silent: 503,
  store_failed: 503,
  // Another coordinator has to be asked.
  leader_elsewhere: 503,
};
/** Refused by an agent, with a reason of its own. */
const REFUSED = 502;
const DEFECT = 500;

/** What each status means. */
export const ERROR_STATUSES: Readonly<Record<number, string>> = {
  400: "the request is not as this document has it",
  403: "this certificate's role may not do that",
  404: "there is no such thing",
  405: "this path takes other methods, which the header Allow names",
  409: "not as things stand",
  422: "well-formed, but no VM can be like that",
  502: "an agent refused, for the reason given",
  503: "an agent did not answer, the state cannot be had, or another coordinator leads",
};

export function statusOf(error: unknown): number {
  if (!(error instanceof SsihvError)) return DEFECT;
  if (error.code === "defect_found") return DEFECT;
  return STATUS[error.code] ?? REFUSED;
}

export function bodyOf(error: unknown): ApiError {
  return { error: faultOf(error) };
}
