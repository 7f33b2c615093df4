// `ssihv coordinator --store` and what belongs to it: the state in a file of this host, or in an
// etcd that several coordinators share. Names as etcdctl has them.

import type { FlagParametersForType } from "@stricli/core";

import type { EtcdOptions } from "../../coordinator/etcd-client.ts";
import { SsihvError } from "../base/errors.ts";
import type { CliContext } from "./context.ts";
import { path } from "./flags.ts";
import { wholeNumber } from "./run-options.ts";

export interface EtcdFlags {
  readonly store: readonly string[];
  readonly storePrefix?: string;
  readonly storeCert?: string;
  readonly storeKey?: string;
  readonly storeCacert?: string;
}

/** `store` absent: a file. */
export interface StoreFlags extends Partial<EtcdFlags> {
  readonly lease?: number;
}

function invalid(message: string, hint: string): SsihvError {
  return new SsihvError("flag_invalid", message, { hint });
}

const STORE_HINT = "--store etcd=https://10.0.0.1:2379,https://10.0.0.2:2379";

/** Endpoints of an etcd. */
export function parseStore(value: string): string[] {
  const [kind, rest = ""] = value.split(/=(.*)/s);
  if (kind !== "etcd" || rest === "") {
    throw invalid(`--store: "${value.slice(0, 80)}" is no store`, STORE_HINT);
  }
  const endpoints = rest.split(",").map((text) => {
    const url = URL.canParse(text.trim()) ? new URL(text.trim()) : undefined;
    const plain = url?.pathname === "/" && url.search === "" && url.username === "";
    if (url !== undefined && plain && /^https?:$/.test(url.protocol)) return url.origin;
    throw invalid(`--store: "${text.slice(0, 80)}" is no endpoint of an etcd`, STORE_HINT);
  });
  if (new Set(endpoints.map((endpoint) => endpoint.split(":")[0])).size > 1) {
    throw invalid("--store: all endpoints are http, or all are https", STORE_HINT);
  }
  return endpoints;
}

const PREFIX = /^\/[A-Za-z0-9._-]+(\/[A-Za-z0-9._-]+)*$/;

function parsePrefix(value: string): string {
  if (PREFIX.test(value)) return value;
  throw invalid(`--store-prefix: "${value.slice(0, 80)}" is no prefix`, "--store-prefix /ssihv");
}

/** Undefined: the state is a file. */
export function etcdOf(flags: EtcdFlags): EtcdOptions;
export function etcdOf(flags: StoreFlags): EtcdOptions | undefined;
export function etcdOf(flags: StoreFlags): EtcdOptions | undefined {
  const { store: endpoints, storePrefix, storeCert: cert, storeKey: key } = flags;
  const { storeCacert: cacert, lease } = flags;
  if (endpoints === undefined) {
    if ((storePrefix ?? cert ?? key ?? cacert ?? lease) === undefined) return undefined;
    throw invalid("--store-.. and --lease are about an etcd", `${STORE_HINT}, or leave them out`);
  }
  const secure = endpoints.some((endpoint) => endpoint.startsWith("https:"));
  if (!secure && (cert ?? key ?? cacert) !== undefined) {
    throw invalid("--store: certificates are for https endpoints", STORE_HINT);
  }
  if ((cert === undefined) !== (key === undefined)) {
    throw invalid("--store-cert and --store-key go together", "name both files, or neither");
  }
  return {
    ...{ endpoints, prefix: storePrefix ?? "/ssihv" },
    ...(cert !== undefined && { cert }),
    ...(key !== undefined && { key }),
    ...(cacert !== undefined && { cacert }),
  };
}

export const LEASE_SECONDS = 5;

/** Of an etcd, once it is named. */
const ACCESS_FLAGS: FlagParametersForType<Omit<EtcdFlags, "store">, CliContext> = {
  storePrefix: {
    kind: "parsed",
    parse: parsePrefix,
    optional: true,
    brief: "before all keys in it [/ssihv]",
    placeholder: "PREFIX",
  },
  storeCert: {
    kind: "parsed",
    parse: path("--store-cert"),
    optional: true,
    brief: "certificate that etcd is shown",
    placeholder: "FILE",
  },
  storeKey: {
    kind: "parsed",
    parse: path("--store-key"),
    optional: true,
    brief: "its private key",
    placeholder: "FILE",
  },
  storeCacert: {
    kind: "parsed",
    parse: path("--store-cacert"),
    optional: true,
    brief: "CA that etcd's certificate is of [those of this system]",
    placeholder: "FILE",
  },
};

export const STORE_FLAGS: FlagParametersForType<StoreFlags, CliContext> = {
  store: {
    kind: "parsed",
    parse: parseStore,
    optional: true,
    brief: "etcd=URL,URL: the state in an etcd, which several coordinators share [a file]",
    placeholder: "WHERE",
  },
  ...ACCESS_FLAGS,
  lease: {
    kind: "parsed",
    parse: wholeNumber("--lease", 2, 300),
    optional: true,
    brief: `seconds after which another takes over from a leader that died [${LEASE_SECONDS}]`,
    placeholder: "SECONDS",
  },
};

/** Of commands that are about an etcd. */
export const ETCD_FLAGS: FlagParametersForType<EtcdFlags, CliContext> = {
  store: {
    kind: "parsed",
    parse: parseStore,
    brief: "etcd=URL,URL: which one",
    placeholder: "WHERE",
  },
  ...ACCESS_FLAGS,
};
