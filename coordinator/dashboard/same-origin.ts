// Keeps other web sites out: a browser sends its user's certificate or cookie with whatever a page
// makes it send, so what a page of another origin asks for is refused before it is looked at.
// Programs that are no browsers say nothing of origins, and are not meant.

/** Where a browser says that a request comes from (Fetch Metadata): our own page, or the user. */
const OWN = new Set(["same-origin", "none"]);

/** In words; undefined: it is no other site's. */
export function otherOrigin({ headers, method }: Request): string | undefined {
  const origin = headers.get("origin");
  if (origin !== null && hostOf(origin) !== headers.get("host")) {
    return `a page of ${origin.slice(0, 100)} asked for it`;
  }
  const site = headers.get("sec-fetch-site");
  if (site === null || OWN.has(site)) return undefined;
  // A link on another site may lead here: it shows our page, and tells the site nothing.
  const isLink = headers.get("sec-fetch-mode") === "navigate" && method === "GET";
  const isTop = headers.get("sec-fetch-dest") === "document";
  return isLink && isTop ? undefined : "a page of another origin asked for it";
}

function hostOf(origin: string): string | undefined {
  return URL.parse(origin)?.host;
}
