import { expect, test } from "bun:test";

import { SsihvError } from "../base/errors.ts";
import { parseIp, parseListen, parseTarget } from "./join-address.ts";
import { remoteLane } from "./join-lane.ts";

function refusal(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    if (error instanceof SsihvError && error.hint !== undefined) return error.message;
    throw error;
  }
  throw new Error("nothing was refused");
}

test("addresses: IPv4, IPv6 in brackets, and names where one may be looked up", () => {
  expect(parseListen("10.0.0.1:7700", "--listen")).toEqual({ host: "10.0.0.1", port: 7700 });
  expect(parseListen("[2001:db8::1]:1", "--listen")).toEqual({ host: "2001:db8::1", port: 1 });
  expect(parseTarget("lead.example:7700", "the lead").host).toBe("lead.example");
  expect(parseIp("[::1]", "--lane")).toBe("::1");
  expect(refusal(() => parseListen("lead:7700", "--listen"))).toContain("not its address");
  expect(refusal(() => parseIp("lead", "--lane"))).toContain("--lane");
  const wrong = [
    "",
    "10.0.0.1",
    ":7700",
    "10.0.0.1:0",
    "10.0.0.1:65536",
    "::1:7700",
    "[10.0.0.1]:1",
  ];
  for (const text of wrong) {
    expect(refusal(() => parseTarget(text, "the lead"))).toContain(`the lead: "${text}"`);
  }
});

test("lanes of two hosts: the last node needs no port, the lead is where it was reached", () => {
  const listen = { host: "0.0.0.0", port: 7700 };
  const places = [{}, { laneHost: "10.0.0.2", leadHost: "10.0.0.1" }];
  expect(remoteLane(listen, places, 0)).toEqual({
    listen: "0.0.0.0:7701",
    peers: [{ node: 1, address: "10.0.0.2:7702" }],
  });
  expect(remoteLane(listen, places, 1)).toEqual({
    listen: "0.0.0.0:0",
    peers: [{ node: 0, address: "10.0.0.1:7701" }],
  });
});

test("lanes of three hosts over IPv6: those between listen on every address, a port each", () => {
  const listen = { host: "2001:db8::1", port: 7700 };
  const places = [{}, { laneHost: "2001:db8::2" }, { laneHost: "2001:db8::3" }];
  expect(remoteLane(listen, places, 1).listen).toBe("[::]:7702");
  expect(remoteLane(listen, places, 2)).toEqual({
    listen: "[::]:0",
    peers: [
      { node: 0, address: "[2001:db8::1]:7701" },
      { node: 1, address: "[2001:db8::2]:7702" },
    ],
  });
});
