// Numbers as the dashboard writes them: few digits, always with their unit, and "-" for what is not
// known. Pure, so that tests hold the page's cells against the API's numbers.

export const NONE = "-";
/** Between the thousands, and between a number and its unit: no line breaks there. */
const THIN = "\u202f";
const SPACE = "\u00a0";

/** Three digits that count. */
function short(value: number): string {
  if (value === 0) return "0";
  if (value >= 100) return value.toFixed(0);
  return value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

export function whole(value: number): string {
  return Math.round(value)
    .toString()
    .replace(/\B(?=(\d{3})+$)/g, THIN);
}

export function bytes(value: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let at = 0;
  let rest = value;
  while (rest >= 1024 && at < units.length - 1) {
    rest /= 1024;
    at += 1;
  }
  const text = Number.isInteger(rest) ? String(rest) : short(rest);
  return `${text}${SPACE}${units[at]}`;
}

/** A count a second. */
export function rate(value: number): string {
  if (value > 0 && value < 10) return value.toFixed(1);
  return whole(value);
}

/** Bytes a second, by the thousand as networks have it. */
export function megabytes(value: number): string {
  const each = value / 1e6;
  return each === 0 ? "0" : each < 100 ? each.toFixed(2) : each.toFixed(0);
}

export function micros(us: number): string {
  if (us === 0) return "0";
  if (us < 1000) return `${short(us)}${SPACE}µs`;
  if (us < 1e6) return `${short(us / 1000)}${SPACE}ms`;
  return `${short(us / 1e6)}${SPACE}s`;
}

export function percent(share: number): string {
  return `${(share * 100).toFixed(1)}${SPACE}%`;
}

export function address(gpa: number): string {
  return `0x${gpa.toString(16)}`;
}

/** Of the day, where the reader is. */
export function clock(at: Date): string {
  const two = (value: number) => String(value).padStart(2, "0");
  return [at.getHours(), at.getMinutes(), at.getSeconds()].map(two).join(":");
}

/** How long ago, in its two largest units. */
export function age(seconds: number): string {
  const whole = Math.max(0, Math.floor(seconds));
  const parts = [
    [Math.floor(whole / 86_400), "d"],
    [Math.floor(whole / 3600) % 24, "h"],
    [Math.floor(whole / 60) % 60, "min"],
    [whole % 60, "s"],
  ] as const;
  const first = parts.findIndex(([value]) => value > 0);
  if (first < 0) return `0${SPACE}s`;
  return parts
    .slice(first, first + 2)
    .map(([value, unit]) => `${value}${SPACE}${unit}`)
    .join(" ");
}

export function sinceText(iso: string | null, now: number): string {
  return iso === null ? NONE : age((now - Date.parse(iso)) / 1000);
}
