// One of several words, as a TypeBox schema that keeps their types.

import { type TUnsafe, Type } from "@sinclair/typebox";

export function literals<const T extends readonly string[]>(values: T): TUnsafe<T[number]> {
  return Type.Unsafe<T[number]>(Type.Union(values.map((value) => Type.Literal(value))));
}
