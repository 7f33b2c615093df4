import { expect, test } from "bun:test";
import { SsihvError } from "../base/errors.ts";
import { parseSystemMap, symbolAt } from "./system-map.ts";

const MAP = `ffffffff81000000 T _text
ffffffff81200000 T init_task
ffffffff81000040 T startup_64
not a line
ffffffff81300000 B _end
`;

test("addresses inside the image get the symbol before them", () => {
  const map = parseSystemMap(MAP, "System.map");
  expect(symbolAt(map, 0x100_0000n, 0x100_0000n)).toBe("_text+0x0");
  expect(symbolAt(map, 0x100_1000n, 0x100_0000n)).toBe("startup_64+0xfc0");
  expect(symbolAt(map, 0x120_0010n, 0x100_0000n)).toBe("init_task+0x10");
});

test("addresses outside the image have none", () => {
  const map = parseSystemMap(MAP, "System.map");
  expect(symbolAt(map, 0xff_f000n, 0x100_0000n)).toBeUndefined();
  expect(symbolAt(map, 0x130_0000n, 0x100_0000n)).toBeUndefined();
});

test("a file without _text is refused by name", () => {
  expect(() => parseSystemMap("garbage\n", "x.map")).toThrow(SsihvError);
  expect(() => parseSystemMap("garbage\n", "x.map")).toThrow("x.map has no symbol _text");
});
