import { expect, test } from "bun:test";
import { etcdOf, parseStore } from "./store-flag.ts";

test("endpoints of an etcd, by http or https", () => {
  expect(parseStore("etcd=https://a:2379,https://[fd00::1]:2379")).toEqual([
    ...["https://a:2379", "https://[fd00::1]:2379"],
  ]);
  expect(parseStore("etcd=http://10.0.0.1:2379/")).toEqual(["http://10.0.0.1:2379"]);
  const wrong: [string, string][] = [
    ["sqlite", "is no store"],
    ["etcd=", "is no store"],
    ["etcd=a:2379", "is no endpoint"],
    ["etcd=https://a:2379/path", "is no endpoint"],
    ["etcd=https://u@a:2379", "is no endpoint"],
    ["etcd=http://a:1,", "is no endpoint"],
    ["etcd=http://a:1,https://b:1", "all are https"],
  ];
  for (const [text, words] of wrong) expect(() => parseStore(text)).toThrow(words);
});

test("flags that belong to it, and only to it", () => {
  expect(etcdOf({})).toBeUndefined();
  const store = ["https://a:2379"];
  expect(etcdOf({ store, lease: 3 })).toEqual({ endpoints: store, prefix: "/ssihv" });
  const files = { storeCert: "/c", storeKey: "/k", storeCacert: "/ca", storePrefix: "/x/y" };
  expect(etcdOf({ store, ...files })).toEqual({
    ...{ endpoints: store, prefix: "/x/y", cert: "/c", key: "/k", cacert: "/ca" },
  });
  expect(() => etcdOf({ lease: 3 })).toThrow("about an etcd");
  expect(() => etcdOf({ store, storeCert: "/c" })).toThrow("go together");
  const plain = { store: ["http://a:2379"], storeCacert: "/ca" };
  expect(() => etcdOf(plain)).toThrow("for https endpoints");
});
