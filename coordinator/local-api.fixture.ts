// The coordinator's API on its local socket, for tests.

/** `unix`: the admin socket. */
export function askApi(
  unix: string,
  method: string,
  path: string,
  body?: unknown,
): Promise<Response> {
  return fetch(`http://x${path}`, {
    ...{ unix, method },
    ...(body !== undefined && {
      body: JSON.stringify(body),
      headers: { "content-type": "application/json" },
    }),
  });
}
