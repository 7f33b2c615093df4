import { expect, test } from "bun:test";
import { Coordinators } from "./coordinators.ts";

const [a, b, c] = ["a", "b", "c"].map((host) => ({ host, port: 7781 }));
if (a === undefined || b === undefined || c === undefined) throw new Error("unreachable");

test("one alone is asked again and again, each time after a pause", () => {
  const alone = new Coordinators(a, []);
  expect([alone.next(), alone.current, alone.next()]).toEqual([false, a, false]);
});

test("each is asked once before a pause, wherever one begins", () => {
  const three = new Coordinators(b, [a, b, c]);
  expect(three.current).toEqual(b);
  const round = () =>
    [0, 1, 2].map(() => {
      const goesOn = three.next();
      return [three.current.host, goesOn];
    });
  const whole = [
    ["a", true],
    ["c", true],
    ["b", false],
  ];
  expect([round(), round()]).toEqual([whole, whole]);
  three.next();
  // One that welcomed and went away is followed by all others, and by itself.
  three.welcomed();
  expect(round().map(([, goesOn]) => goesOn)).toEqual([true, true, false]);
});

test("what the one that leads tells is kept, once, and it stays the one that is asked", () => {
  const some = new Coordinators(a, [b]);
  some.next();
  expect(some.learn([a, b, c])).toBe(true);
  expect([some.current, some.all]).toEqual([b, [b, a, c]]);
  expect(some.learn([c, b, a])).toBe(false);
  expect(some.learn([c])).toBe(true);
  // One that the list lacks is known as long as it answers.
  expect(some.all).toEqual([b, c]);
});

test("no more are kept than a host's file takes, the one that is asked among them", () => {
  const some = new Coordinators(a, []);
  expect(some.learn(Array.from({ length: 40 }, (_, i) => ({ host: `h${i}`, port: 1 })))).toBe(true);
  expect([some.all.length, some.all[0]]).toEqual([16, a]);
});
