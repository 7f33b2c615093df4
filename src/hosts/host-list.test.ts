import { expect, test } from "bun:test";
import { hostname } from "node:os";

import { isThisHost, parseHosts } from "./host-list.ts";

const parse = parseHosts("--hosts");

test("names, users, ports, IPv6 and addresses for the others", () => {
  expect(parse("a, root@b.example:2222,[2001:db8::1]:22,c_1=10.0.0.3,[::1]=2001:db8::2")).toEqual([
    { name: "a", host: "a" },
    { name: "root@b.example:2222", host: "b.example", user: "root", port: 2222 },
    { name: "[2001:db8::1]:22", host: "2001:db8::1", port: 22 },
    { name: "c_1", host: "c_1", address: "10.0.0.3" },
    { name: "[::1]", host: "::1", address: "2001:db8::2" },
  ]);
});

test.each([
  ["", "is not a host"],
  ["a,,b", "is not a host"],
  ["-oProxyCommand=reboot", "is not a host"],
  ["-l@b", "is not a host"],
  ["a b", "is not a host"],
  ["a:0", "is not a host"],
  ["a:70000", "is not a host"],
  ["a;reboot", "is not a host"],
  ["a'", "is not a host"],
  ["a=b", "is not an IP address"],
  ["a=", "is not an IP address"],
  ["a,b,a=10.0.0.1", "a is there twice"],
])("refuses %p", (text, why) => {
  expect(() => parse(text)).toThrow(why);
});

test("this host by its name, unless ssh is to go there as somebody", () => {
  const isThis = (text: string) => parse(text).map(isThisHost);
  expect(isThis(`localhost,${hostname()},root@localhost,localhost:22,b`)).toEqual([
    true,
    true,
    false,
    false,
    false,
  ]);
});
