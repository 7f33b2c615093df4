// What the framework finds wrong with a request, in our words: its own repeat the whole schema. A
// path that is there with other methods says which (RFC 9110, 405 and Allow).

import { SsihvError } from "../src/base/errors.ts";

/** Which methods a path takes, by the routes; none: there is no such path. */
export type Allowed = (path: string) => readonly string[];

export class MethodRefused extends SsihvError {
  readonly allow: string;

  constructor(method: string, allowed: readonly string[]) {
    const allow = allowed.join(", ");
    super("method_refused", `this path does not take ${method}`, { hint: `it takes ${allow}` });
    this.allow = allow;
  }
}

/** `routes`: of an Elysia application; ":name" stands for one segment. */
export function methodsOf(
  routes: readonly { readonly method: string; readonly path: string }[],
): Allowed {
  const patterns = routes.map(({ method, path }) => {
    const pattern = path.replaceAll(".", "\\.").replaceAll(/:[^/]+/g, "[^/]+");
    // What can be got can be asked for its head (RFC 9110).
    return { methods: method === "GET" ? ["GET", "HEAD"] : [method], at: RegExp(`^${pattern}$`) };
  });
  return (path) => patterns.filter(({ at }) => at.test(path)).flatMap(({ methods }) => methods);
}

export function requestError(
  code: unknown,
  error: unknown,
  { method, url }: Request,
  allowed: Allowed,
): unknown {
  if (error instanceof SsihvError) return error;
  switch (code) {
    case "NOT_FOUND": {
      const methods = allowed(new URL(url).pathname);
      if (methods.length > 0) return new MethodRefused(method, methods);
      return new SsihvError("path_unknown", "there is nothing at this path", {
        hint: "GET /openapi.json lists the paths",
      });
    }
    case "PARSE":
      return new SsihvError("request_invalid", "the body is not JSON");
    case "VALIDATION":
      return validationError(error as Validation);
    default:
      return error;
  }
}

interface Validation {
  readonly type?: string;
  readonly all?: readonly { readonly path?: string }[];
}

function validationError({ type = "request", all = [] }: Validation): SsihvError {
  const places = [...new Set(all.map(({ path }) => path || "/"))].slice(0, 8).join(", ");
  // What we were about to answer: nothing the caller could mend.
  if (type === "response") return new SsihvError("defect_found", `the answer is wrong: ${places}`);
  const part = type === "params" ? "path" : type;
  const message = `the ${part} is not as the API has it: ${places}`;
  return new SsihvError("request_invalid", message, { hint: "GET /openapi.json has the schemas" });
}
