// Where the lab keeps things: everything under one git-ignored folder of the checkout, so that
// removing that folder leaves no trace. SSIHV_LAB_DIR moves it (another disk, a forced empty
// cache).

import { resolve } from "node:path";

export const checkout = resolve(import.meta.dir, "../..");
export const labDirectory = resolve(process.env["SSIHV_LAB_DIR"] ?? `${checkout}/.lab`);
export const cacheDirectory = `${labDirectory}/cache`;
