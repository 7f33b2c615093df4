// Durations as people write them: "5s", "20ms", "500us", "2min".

import { SsihvError } from "../base/errors.ts";

const MICROSECONDS: Record<string, number> = { us: 1, ms: 1000, s: 1_000_000, min: 60_000_000 };
const DURATION = /^(\d{1,9}(?:\.\d{1,6})?)\s*(us|ms|s|min)$/;

/** Whole microseconds; `what` names the text in errors ("--peer-timeout"). */
export function parseDurationUs(text: string, what: string): number {
  const [, digits, unit = ""] = DURATION.exec(text.trim()) ?? [];
  const scale = MICROSECONDS[unit];
  const us = digits === undefined || scale === undefined ? Number.NaN : Number(digits) * scale;
  if (!Number.isFinite(us)) {
    const shown = text.length > 40 ? `${text.slice(0, 40)}...` : text;
    throw new SsihvError("flag_invalid", `${what}: "${shown}" is not a duration`, {
      hint: "write a number with a unit: 5s, 20ms or 500us",
    });
  }
  return Math.round(us);
}
