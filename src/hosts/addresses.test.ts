import { expect, test } from "bun:test";

import { commonPort, leadAddress, type Reached } from "./addresses.ts";

const OWN = ["127.0.0.1", "192.168.1.5"];

function host(name: string, more: Partial<Reached> = {}): Reached {
  return { name, here: false, freePorts: [7700], ...more };
}

test("the lead's address: as the user says, else as it was reached", () => {
  const a = host("a", { reachedAt: "10.0.0.1", reachedFrom: "10.0.0.9" });
  const b = host("b", { reachedAt: "10.0.0.2", reachedFrom: "192.168.1.5" });
  expect(leadAddress(a, [b], OWN)).toBe("10.0.0.1");
  expect(leadAddress({ ...a, address: "192.168.7.1" }, [b], OWN)).toBe("192.168.7.1");
});

test("this host as the lead: the address that another host saw, where it is one of ours", () => {
  const here = host("localhost", { here: true });
  const b = host("b", { reachedAt: "10.0.0.2", reachedFrom: "192.168.1.5" });
  expect(leadAddress(here, [b], OWN)).toBe("192.168.1.5");
  // It saw a jump host.
  const jumped = host("c", { reachedAt: "10.0.0.3", reachedFrom: "10.0.0.254" });
  expect(leadAddress(here, [jumped, b], OWN)).toBe("192.168.1.5");
  expect(() => leadAddress(here, [jumped], OWN)).toThrow("host localhost: no address is known");
});

test("a loopback address is refused where another host would reach itself by it", () => {
  const a = host("a", { reachedAt: "127.0.0.2" });
  const far = host("b", { reachedAt: "10.0.0.2" });
  expect(() => leadAddress(a, [far], OWN)).toThrow("where b would reach itself");
  expect(leadAddress(a, [host("b", { reachedAt: "127.0.0.3" })], OWN)).toBe("127.0.0.2");
  // As Slurm has it, where the first node calls itself so.
  const node = host("n1", { address: "127.0.1.1" });
  const other = host("n2", { address: "10.0.0.2" });
  expect(() => leadAddress(node, [other], OWN)).toThrow("where n2 would reach itself");
  expect(leadAddress({ ...node, isChosen: true }, [other], OWN)).toBe("127.0.1.1");
});

test("the first ports that are free on every host, or none", () => {
  const ports = (freePorts: number[]) => host("x", { freePorts });
  expect(commonPort([ports([7700, 7716, 7732]), ports([7716, 7732])])).toBe(7716);
  expect(() => commonPort([ports([7700]), ports([7716])])).toThrow("no 16 ports in a row");
});
