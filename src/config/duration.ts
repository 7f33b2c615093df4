// Durations as people write them: "5s", "20ms", "500us", "2min"; where nanoseconds matter "90ns".

import { SsihvError } from "../base/errors.ts";

const MICROSECONDS: Record<string, number> = { us: 1, ms: 1000, s: 1_000_000, min: 60_000_000 };
const NANOSECONDS: Record<string, number> = { ns: 1, us: 1000, ms: 1_000_000, s: 1e9 };
const MILLISECONDS: Record<string, number> = {
  ...{ s: 1000, min: 60_000, h: 3_600_000, d: 86_400_000 },
};
const DURATION = /^(\d{1,9}(?:\.\d{1,6})?)\s*(ns|us|ms|s|min|h|d)$/;

function parse(text: string, what: string, units: Record<string, number>, hint: string): number {
  const [, digits, unit = ""] = DURATION.exec(text.trim()) ?? [];
  const scale = units[unit];
  const value = digits === undefined || scale === undefined ? Number.NaN : Number(digits) * scale;
  if (!Number.isFinite(value)) {
    const shown = text.length > 40 ? `${text.slice(0, 40)}...` : text;
    throw new SsihvError("flag_invalid", `${what}: "${shown}" is not a duration`, { hint });
  }
  return value;
}

/** Whole microseconds; `what` names the text in errors ("--peer-timeout"). */
export function parseDurationUs(text: string, what: string): number {
  return Math.round(
    parse(text, what, MICROSECONDS, "write a number with a unit: 5s, 20ms or 500us"),
  );
}

/** Nanoseconds, perhaps with a fraction. */
export function parseDurationNs(text: string, what: string): number {
  return parse(text, what, NANOSECONDS, "write a number with a unit: 90ns, 40us or 1.5ms");
}

/** Milliseconds, of what lasts for days. */
export function parseLongMs(text: string, what: string): number {
  return parse(text, what, MILLISECONDS, "write a number with a unit: 365d, 12h or 30min");
}
