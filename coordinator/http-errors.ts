// The one place that turns an error into an HTTP status and a body.

import type { ErrorCode } from "../src/base/errors.ts";
import { SsihvError } from "../src/base/errors.ts";
import { faultOf } from "../src/control/messages.ts";
import type { ApiError } from "./api-schemas.ts";

const STATUS: Partial<Record<ErrorCode, number>> = {
  request_invalid: 422,
  memory_insufficient: 422,
  flag_invalid: 422,
  role_forbidden: 403,
  vm_unknown: 404,
  host_unknown: 404,
  token_invalid: 403,
  gpa_invalid: 422,
  memory_plain: 409,
  name_taken: 409,
  vm_busy: 409,
  placement_refused: 409,
  // An agent, another machine, did not do its part.
  host_silent: 503,
  vm_silent: 503,
  store_failed: 503,
};
/** Refused by an agent, with a reason of its own. */
const REFUSED = 502;
const DEFECT = 500;

export function statusOf(error: unknown): number {
  if (!(error instanceof SsihvError)) return DEFECT;
  return STATUS[error.code] ?? REFUSED;
}

export function bodyOf(error: unknown): ApiError {
  return { error: faultOf(error) };
}
