// What pictures have of arithmetic: ends of axes, lines with gaps, steps of colour. Pure.

/** The next of 1, 2, 5, 10, 20, ... */
export function niceMax(value: number): number {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  const step = [1, 2, 5, 10].find((each) => each * power >= value) ?? 10;
  return step * power;
}

/** An SVG path that begins anew after each gap; a point between two gaps is a dot. */
export function pathOf(points: readonly (readonly [number, number] | null)[]): string {
  let down = false;
  return points
    .map((point) => {
      const command = down ? "L" : "M";
      const begins = !down;
      down = point !== null;
      if (point === null) return "";
      return `${command}${point[0].toFixed(1)} ${point[1].toFixed(1)}${begins ? "h0" : ""}`;
    })
    .join("");
}

/** Remote faults from which on a block has the next colour. */
export const HEAT_STEPS = ["0", "1", "10", "100", "1k", "10k"];

/** A step for each decade: a colour means the same whatever else is there. */
export function heatStep(faults: number): number {
  if (faults <= 0) return 0;
  return Math.min(HEAT_STEPS.length - 1, 1 + Math.floor(Math.log10(faults)));
}
