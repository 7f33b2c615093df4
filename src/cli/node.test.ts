import { expect, test } from "bun:test";
import { hostFacts } from "../node/host-facts.ts";
import { capacityOf, nameOfHost } from "./node.ts";

test("a host's name in the cluster is the first part of its own, as far as a name can be", () => {
  const names = ["Host-A.example.com", "web_1", "-x-", "a".repeat(80), "10.0.0.1"].map(nameOfHost);
  expect(names).toEqual(["host-a", "web-1", "x", "a".repeat(63), "10"]);
});

test("a host gives what its user said, else its CPUs and nine tenths of what is free", () => {
  const facts = { ...hostFacts(), cpus: 8, memoryTotal: 1000, memoryAvailable: 500 };
  expect(capacityOf({}, facts)).toEqual({ cpus: 8, memoryBytes: 450 });
  expect(capacityOf({ cpus: 2, memory: 600n }, facts)).toEqual({ cpus: 2, memoryBytes: 600 });
  expect(() => capacityOf({ memory: 1001n }, facts)).toThrow("--memory: this host has 0 MiB");
});
