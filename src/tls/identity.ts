// Who a certificate says its holder is. The role is the organisational unit of the subject, the
// name its common name; a certificate that our CA signed without both is nobody's.
// A client knows the coordinator by the DNS name below, which is in the coordinator's certificate
// alone: the address that it is reached at does not matter, and no other role can stand in for it.

/** What the holder may do: serve the others, run engines, do everything, or look. */
export const ROLES = ["coordinator", "node", "operator", "read-only"] as const;
export type Role = (typeof ROLES)[number];

export interface Identity {
  readonly name: string;
  readonly role: Role;
}

export const ORGANISATION = "ssihv";
export const COORDINATOR_DNS = "coordinator.ssihv.internal";

/** Names are file names and parts of a subject: nothing in them needs quoting. */
const NAME = /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/;

export function isRole(text: string): text is Role {
  return (ROLES as readonly string[]).includes(text);
}

export function isIdentityName(text: string): boolean {
  return NAME.test(text);
}

/** A subject as TLS libraries give it; a field that is there twice is a list. */
export interface Subject {
  readonly CN?: unknown;
  readonly OU?: unknown;
  readonly O?: unknown;
}

export function identityOf(subject: Subject | undefined): Identity | undefined {
  const { CN, OU, O } = subject ?? {};
  if (typeof CN !== "string" || typeof OU !== "string" || O !== ORGANISATION) return undefined;
  return isIdentityName(CN) && isRole(OU) ? { name: CN, role: OU } : undefined;
}
